from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from flawmap.errors import ParameterError
from flawmap.evaluation.metrics import PixelScores, pixel_auroc, pro_score
from flawmap.evaluation.metrics.pixel_scores import MAX_REGIONS, REGION_WEIGHT
from flawmap.evaluation.metrics.score_counts import ScoreCounts


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


def naive_auroc(maps, masks):
    """Scikit-learn's; it takes no infinite scores, so ranks stand in for them."""
    truth, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    return roc_auc_score(truth, np.unique(scores, return_inverse=True)[1])


def check_against_twins(maps, masks, *, max_fpr=0.3):
    assert pixel_auroc(masks, maps) == pytest.approx(naive_auroc(maps, masks), abs=1e-9)
    got = pro_score(masks, maps, max_fpr=max_fpr)
    assert got == pytest.approx(naive_pro(maps, masks, max_fpr), abs=1e-9)
    assert 0 <= got <= 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    n_maps=st.integers(1, 3),
    n_values=st.sampled_from([1, 2, 5, 1000]),
    share=st.floats(0.05, 0.9),
    max_fpr=st.sampled_from([0.01, 0.3, 1.0]),
)
def test_equal_to_the_naive_twins_on_random_maps(seed, shape, n_maps, n_values, share, max_fpr):
    rng = np.random.default_rng(seed)
    maps = [rng.integers(-2, n_values, shape).astype(np.float32) for _ in range(n_maps)]
    masks = [rng.random(shape) < share for _ in range(n_maps)]
    masks[0].flat[0], masks[0].flat[-1] = True, False
    check_against_twins(maps, masks, max_fpr=max_fpr)


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
        ([[2, 2, 2], [1, 2, 2], [3, 1, 2]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        ([[4, 0, 3], [1, 2, 1], [2, 0, 5]], [[1, 0, 1], [0, 0, 0], [1, 0, 1]]),
        ([[np.inf, 1], [-np.inf, np.inf]], [[1, 1], [0, 0]]),
        ([[3e38, -3e38], [1e-45, -1e-45]], [[1, 0], [0, 1]]),
    ],
    ids=[
        "equal",
        "adjacent floats",
        "signed zeros",
        "diagonal",
        "negative",
        "one worst normal",
        "one best normal",
        "long diagonal",
        "regions of one pixel",
        "infinite",
        "largest and smallest floats",
    ],
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


def test_wholly_anomalous_and_good_maps_count():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(6, 5)).astype(np.float32).round(1) for _ in range(3)]
    masks = [np.ones((6, 5), bool), np.zeros((6, 5), bool), np.eye(6, 5, dtype=bool)]
    check_against_twins(maps, masks)
    assert pro_score([masks[0], None, masks[2]], maps) == pro_score(masks, maps)


def test_maps_may_differ_in_size_and_come_from_generators():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=size).astype(np.float32) for size in ((3, 9), (8, 2), (1, 5))]
    masks = [one > 0.5 for one in maps]
    assert pixel_auroc(iter(masks), (one for one in maps)) == pixel_auroc(masks, maps) == 1
    assert pro_score(iter(masks), (one for one in maps)) == pro_score(masks, maps) == 1
    check_against_twins([one[:, ::-1] for one in maps], masks)


def test_small_and_large_regions_weigh_the_same():
    mask = np.zeros((40, 40), bool)
    mask[:30, :30] = mask[39, 39] = True
    scores = np.zeros((40, 40), np.float32)
    scores[39, 39] = 1
    # The single pixel is found at once; the square rises with the false-positive rate, from 0 to 0.3 at 0.3.
    assert pro_score([mask], [scores]) == pytest.approx((1 + 0.15) / 2, abs=1e-9)


def test_masks_may_hold_0_and_255():
    scores = np.float32([[1, 2], [3, 1]])
    assert pixel_auroc([np.uint8([[0, 0], [255, 0]])], [scores]) == 1


def test_undefined_figures_are_none():
    one = np.ones((2, 2), np.float32)
    for masks in ([np.zeros((2, 2), bool)], [None], [np.ones((2, 2), bool)]):
        assert pixel_auroc(masks, [one]) is None
        assert pro_score(masks, [one]) is None
    assert PixelScores().auroc() is None
    assert PixelScores().pro() is None


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.ones((2, 2)), np.ones((2, 3), bool), r"shape \(2, 2\), got one of shape \(2, 3\)"),
        (np.ones(4), None, "shape \\(4,\\)"),
        (np.ones((1, 2, 2)), np.ones((1, 2, 2), bool), r"\(H, W\), got an array of shape \(1, 2, 2\)"),
        (np.ones((0, 4)), None, r"shape \(0, 4\)"),
        (np.float32([[1, np.nan]]), np.array([[True, False]]), "NaN"),
        (np.ones((2, 2)), np.ones((2, 2)), "booleans"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_trace(anomaly_map, mask, message):
    pixels = PixelScores()
    with pytest.raises(ParameterError, match=message):
        pixels.add(anomaly_map, mask)
    assert pixels.n_maps == pixels.n_regions == pixels.n_normal == pixels.n_anomalous == 0
    assert len(pixels._normal.items()[0]) == len(pixels._anomalous.items()[0]) == 0


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.01, np.nan])
def test_a_false_positive_rate_lies_between_0_and_1(max_fpr):
    with pytest.raises(ParameterError, match="max_fpr"):
        PixelScores().pro(max_fpr=max_fpr)


@pytest.mark.parametrize(("n_masks", "n_maps"), [(1, 2), (2, 1), (0, 1)])
def test_as_many_masks_as_maps(n_masks, n_maps):
    with pytest.raises(ParameterError, match="as many masks as maps"):
        pixel_auroc([None] * n_masks, [np.ones((2, 2), np.float32)] * n_maps)


def test_too_many_regions_for_exact_weights_are_refused():
    pixels, other = PixelScores(max_regions=3), PixelScores()
    pixels.add(np.ones((1, 5), np.float32), np.array([[1, 0, 1, 0, 0]]))
    other.merge(pixels)
    with pytest.raises(ParameterError, match="at most 3"):
        pixels.merge(other)
    with pytest.raises(ParameterError, match="got 4"):
        pixels.add(np.ones((1, 5), np.float32), np.array([[1, 0, 1, 0, 0]]))
    assert (pixels.n_maps, pixels.n_regions, pixels.n_normal, pixels.n_anomalous) == (1, 2, 3, 2)


def test_weights_fit_their_integers():
    assert MAX_REGIONS * REGION_WEIGHT * (1 + 1e-6) < 2**63


def random_parts(n=7):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(20, 30)).astype(np.float32).round(2), rng.random((20, 30)) < 0.1) for _ in range(n)]


def gathered(parts, **options):
    pixels = PixelScores(**options)
    for one, mask in parts:
        pixels.add(one, mask)
    return pixels


SMALL = {"new_counts": partial(ScoreCounts, buffer=100, crowded=3)}


@pytest.mark.parametrize("options", [{}, SMALL], ids=["usual", "small buffers and pages"])
def test_parts_merge_to_the_same_figures_in_any_order(options):
    parts = random_parts()
    whole = gathered(parts, **options)
    assert whole.auroc() == pytest.approx(naive_auroc(*zip(*parts, strict=True)), abs=1e-12)
    assert whole.pro() == pytest.approx(naive_pro(*zip(*parts, strict=True)), abs=1e-9)
    for seed in range(5):
        shuffled = [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]
        total = gathered(shuffled[:2], **options)
        others = [gathered(part, **options) for part in (shuffled[2:5], [], shuffled[5:])]
        assert (total.auroc(others), total.pro(others)) == (whole.auroc(), whole.pro())
        for other in others:
            total.merge(other)
        assert (total.auroc(), total.pro()) == (whole.auroc(), whole.pro())
        assert (total.n_maps, total.n_regions) == (whole.n_maps, whole.n_regions)
        assert (total.n_normal, total.n_anomalous) == (whole.n_normal, whole.n_anomalous)


def test_figures_do_not_change_by_asking_or_by_doubling():
    pixels = gathered(random_parts())
    before = pixels.auroc(), pixels.pro()
    assert (pixels.auroc(), pixels.pro()) == before
    pixels.merge(pixels)
    assert (pixels.auroc(), pixels.pro()) == pytest.approx(before, abs=1e-12)
    assert pixels.n_maps == 2 * len(random_parts())


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
        maps.append(one.astype(np.float32))
        masks.append(mask)
    check_against_twins(maps, masks)
