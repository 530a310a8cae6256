from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from flawmap.errors import ParameterError
from flawmap.metrics import PixelScores, pixel_auroc, pro_score
from flawmap.metrics import score_counts as score_counts_module
from flawmap.metrics.score_counts import ScoreCounts


def naive_pro(maps, masks, max_fpr=0.3):
    """Every distinct threshold, region by region, in float64."""
    regions = []
    for one, mask in zip(maps, masks, strict=True):
        labels, n = label(mask, structure=np.ones((3, 3)))
        regions += [one[labels == i] for i in range(1, n + 1)]
    negatives = np.concatenate([one[~mask] for one, mask in zip(maps, masks, strict=True)])
    x, y = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        x.append(np.mean(negatives >= threshold))
        y.append(np.mean([np.mean(region >= threshold) for region in regions]))
    x, y = np.array(x), np.array(y)
    end = np.searchsorted(x, max_fpr, side="right")
    if end < len(x):
        last = y[end - 1] + (y[end] - y[end - 1]) * (max_fpr - x[end - 1]) / (x[end] - x[end - 1])
    else:
        last = y[-1]
    x, y = np.append(x[:end], max_fpr), np.append(y[:end], last)
    return np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / max_fpr


def check_against_twins(maps, masks):
    truth, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    got = pro_score(masks, maps)
    assert got == pytest.approx(naive_pro(maps, masks), abs=1e-9)
    assert 0 <= got <= 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    n_maps=st.integers(1, 3),
    n_values=st.sampled_from([1, 2, 5, 1000]),
    share=st.floats(0.05, 0.9),
)
def test_equal_to_the_naive_twins_on_random_maps(seed, shape, n_maps, n_values, share):
    rng = np.random.default_rng(seed)
    maps = [rng.integers(-2, n_values, shape).astype(np.float32) for _ in range(n_maps)]
    masks = [rng.random(shape) < share for _ in range(n_maps)]
    masks[0].flat[0], masks[0].flat[-1] = True, False
    check_against_twins(maps, masks)


ADJACENT = np.nextafter(np.float32(1), np.float32(2))


@pytest.mark.parametrize(
    ("scores", "mask"),
    [
        ([[1, 1], [1, 1]], [[1, 0], [0, 0]]),
        ([[1, ADJACENT], [1, 1]], [[0, 1], [0, 0]]),
        ([[0.0, -0.0], [-0.0, 0.0]], [[0, 1], [1, 0]]),
        ([[5, 1], [1, 5]], [[1, 0], [0, 1]]),
        ([[-3, -2], [-1, 0]], [[1, 0], [0, 0]]),
        ([[2, 1], [1, 1]], [[0, 1], [1, 1]]),
        ([[1, 2], [2, 2]], [[0, 1], [1, 1]]),
    ],
    ids=["equal", "adjacent floats", "signed zeros", "diagonal", "negative", "one worst normal", "one best normal"],
)
def test_adversarial_cases(scores, mask):
    check_against_twins([np.array(scores, np.float32)], [np.array(mask, bool)])


def test_diagonal_pixels_are_one_region():
    pixels = PixelScores()
    pixels.add(np.zeros((3, 3), np.float32), np.eye(3, dtype=bool))
    assert pixels.n_regions == 1


def test_infinite_scores_are_the_most_anomalous():
    maps = [np.array([[0, np.inf]], np.float32)]
    assert pixel_auroc([np.array([[False, True]])], maps) == 1
    assert pro_score([np.array([[False, True]])], maps) == 1


def test_undefined_figures_are_none():
    one = np.ones((2, 2), np.float32)
    for masks in ([np.zeros((2, 2), bool)], [None], [np.ones((2, 2), bool)]):
        assert pixel_auroc(masks, [one]) is None
        assert pro_score(masks, [one]) is None
    assert PixelScores().auroc() is None


def test_bad_input_is_refused():
    pixels = PixelScores()
    with pytest.raises(ParameterError, match=r"shape \(2, 2\), got one of shape \(2, 3\)"):
        pixels.add(np.ones((2, 2), np.float32), np.ones((2, 3), bool))
    with pytest.raises(ParameterError, match="map"):
        pixels.add(np.ones(4, np.float32))
    with pytest.raises(ParameterError, match="NaN"):
        pixels.add(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ParameterError, match="max_fpr"):
        pixels.pro(max_fpr=0)


def random_parts(n=7):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(20, 30)).astype(np.float32).round(2), rng.random((20, 30)) < 0.1) for _ in range(n)]


def test_parts_merge_to_the_same_figures_in_any_order():
    parts = random_parts()
    whole = PixelScores()
    for one, mask in parts:
        whole.add(one, mask)
    halves = [PixelScores(), PixelScores()]
    for i, (one, mask) in enumerate(reversed(parts)):
        halves[i % 2].add(one, mask)
    halves[1].merge(halves[0])
    assert halves[1].auroc() == pytest.approx(whole.auroc(), abs=1e-13)
    assert halves[1].pro() == pytest.approx(whole.pro(), abs=1e-13)
    assert halves[1].n_regions == whole.n_regions


def test_counts_stay_exact_when_the_buffer_overflows(monkeypatch):
    monkeypatch.setattr(score_counts_module, "BUFFER", 100)
    rng = np.random.default_rng(0)
    counts, everything = ScoreCounts(), []
    for _ in range(200):
        values = rng.integers(0, 500, rng.integers(1, 90)).astype(np.float32)
        counts.add(values)
        everything.append(values)
    distinct, n = np.unique(np.concatenate(everything), return_counts=True)
    scores, weights = counts.items()
    assert np.array_equal(scores, distinct)
    assert np.array_equal(weights, n)


def test_weights_add_up_per_score():
    counts, other = ScoreCounts(), ScoreCounts()
    counts.add(np.float32([1, 2, 1]), np.array([5, 20, 2]))
    other.add(np.float32([2, 3]), np.array([10, 10]))
    counts.merge(other)
    scores, weights = counts.items()
    assert scores.tolist() == [1, 2, 3]
    assert weights.tolist() == [7, 30, 10]


@pytest.mark.parametrize("name", ["padim_resnet18_rd100_screw", "padim_efficientnet_lite0_screw"])
def test_real_maps(shared, screw, name):
    golden = np.load(shared / "golden" / f"{name}.npz")
    maps, masks = [], []
    for path, one in zip(golden["map_test"], golden["anomaly_map"], strict=True):
        mask = np.zeros((224, 224), bool)
        if "/good/" not in path:
            file = screw / path.replace("test/", "ground_truth/").replace(".png", "_mask.png")
            image = Image.open(file).resize((256, 256), Image.Resampling.NEAREST).crop((16, 16, 240, 240))
            mask = np.asarray(image) > 127
        maps.append(one[::2, ::2].astype(np.float32))
        masks.append(mask[::2, ::2])
    check_against_twins(maps, masks)
