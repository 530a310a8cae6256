from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from flawmap.detectors.mahalanobis_ad import learn_pooled
from flawmap.errors import TrainingSetError


def vectors(n, d, seed=0):
    """Correlated vectors (n, d) with a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d + rng.normal(size=d)).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 30), (3, 5), (200, 64)])
def test_distances_are_those_of_a_float64_twin(n, d):
    learnt, new = vectors(n, d), vectors(7, d, seed=1)
    gaussian, _ = learn_pooled(learnt)
    twin = LedoitWolf().fit(learnt.astype(np.float64))
    assert gaussian.shrinkage == pytest.approx(twin.shrinkage_, rel=1e-9)
    naive = [mahalanobis(x, twin.location_, np.linalg.inv(twin.covariance_)) for x in new]
    np.testing.assert_allclose(gaussian.distances(new), naive, rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 30), (3, 5), (200, 64)])
def test_leave_one_out_equals_refits_with_the_same_shrinkage(n, d):
    learnt = vectors(n, d)
    gaussian, left_out = learn_pooled(learnt)
    naive = []
    for i in range(n):
        others = np.delete(learnt, i, axis=0).astype(np.float64)
        spread = np.cov(others, rowvar=False, bias=True)
        shrunk = (1 - gaussian.shrinkage) * spread + gaussian.shrinkage * np.trace(spread) / d * np.eye(d)
        naive.append(mahalanobis(learnt[i].astype(np.float64), others.mean(axis=0), np.linalg.inv(shrunk)))
    np.testing.assert_allclose(left_out, naive, rtol=1e-8)


def test_leave_one_out_is_close_to_refits_with_their_own_shrinkage():
    learnt = vectors(100, 20)
    _, left_out = learn_pooled(learnt)
    refits = [learn_pooled(np.delete(learnt, i, axis=0))[0].distances(learnt[i : i + 1])[0] for i in range(100)]
    np.testing.assert_allclose(left_out, refits, rtol=0.03)


def test_one_image_unlike_the_others_stands_out_without_end():
    learnt = np.repeat(vectors(1, 5), 6, axis=0)
    learnt[3] += 1
    _, left_out = learn_pooled(learnt)
    assert np.isfinite(left_out).all()
    assert left_out[3] > 1e3 * np.delete(left_out, 3).max()


def test_equal_vectors_are_refused_and_two_are_too_few_to_leave_one_out():
    with pytest.raises(TrainingSetError, match="all alike"):
        learn_pooled(np.ones((4, 3), np.float32))
    assert len(learn_pooled(vectors(2, 3))[1]) == 0
