from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flawmap.errors import ParameterError
from flawmap.evaluation.metrics import image_auroc


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


def test_infinite_and_signed_zero_scores():
    assert image_auroc([0, 1, 0, 1], [-np.inf, np.inf, 0, 1]) == 1
    assert image_auroc([0, 1], [np.inf, np.inf]) == 0.5
    assert image_auroc([0, 1], [0.0, -0.0]) == 0.5


def test_one_class_has_no_auroc():
    assert image_auroc([1, 1], [1, 2]) is None
    assert image_auroc(np.zeros(3, bool), [1, 2, 3]) is None


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0, np.nan], "NaN"),
        ([0, 1], [0, 1, 2], r"\(2,\) and \(3,\)"),
        ([[0, 1]], [[0, 1]], r"\(1, 2\)"),
        ([], [], "none"),
        ([0, 2], [0, 1], "labels 0"),
        ([-1, 1], [0, 1], "labels 0"),
        ([0.5, 1], [0, 1], "labels 0"),
    ],
)
def test_bad_input_is_refused(labels, scores, message):
    with pytest.raises(ParameterError, match=message):
        image_auroc(labels, scores)


@pytest.mark.parametrize("name", ["padim_resnet18_rd100_screw", "padim_efficientnet_lite0_screw"])
def test_golden(shared, name):
    golden = np.load(shared / "golden" / f"{name}.npz")
    assert image_auroc(golden["label"], golden["image_score"]) == pytest.approx(float(golden["image_auroc"]), abs=1e-4)
