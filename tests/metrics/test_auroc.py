from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flawmap.errors import ParameterError
from flawmap.metrics import image_auroc


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=60))
def test_equals_scikit_learn_with_ties(pairs):
    labels, scores = [label for label, _ in pairs], [float(score) for _, score in pairs]
    if len(set(labels)) < 2:
        assert image_auroc(labels, scores) is None
    else:
        assert image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_perfect_reversed_and_undecided():
    assert image_auroc([0, 0, 1], [1, 2, 3]) == 1
    assert image_auroc([1, 0, 0], [1, 2, 3]) == 0
    assert image_auroc([1, 0, 1, 0], [5, 5, 5, 5]) == 0.5
    assert image_auroc([0, 1], [0, np.inf]) == 1


def test_nan_and_unequal_lengths_are_refused():
    with pytest.raises(ParameterError, match="NaN"):
        image_auroc([0, 1], [0, np.nan])
    with pytest.raises(ParameterError, match=r"\(2,\) and \(3,\)"):
        image_auroc([0, 1], [0, 1, 2])


@pytest.mark.parametrize("name", ["padim_resnet18_rd100_screw", "padim_efficientnet_lite0_screw"])
def test_golden(shared, name):
    golden = np.load(shared / "golden" / f"{name}.npz")
    assert image_auroc(golden["label"], golden["image_score"]) == pytest.approx(float(golden["image_auroc"]), abs=1e-4)
