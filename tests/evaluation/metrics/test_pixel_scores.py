from __future__ import annotations

from functools import partial
from itertools import pairwise

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


def naive_spro(maps, masks, defects, max_fpr):
    """Every distinct threshold, defect by defect, as the paper defines it."""
    negatives = np.concatenate([one[~mask] for one, mask in zip(maps, masks, strict=True)])
    x, y = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        found = [
            min(np.count_nonzero(one[defect] >= threshold) / area, 1)
            for one, own in zip(maps, defects, strict=True)
            for defect, area in own
        ]
        x.append(np.mean(negatives >= threshold))
        y.append(np.mean(found))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if x0 < min(x1, max_fpr):
            end = min(x1, max_fpr)
            area += (end - x0) * (y0 + (y1 - y0) * (end - x0) / (x1 - x0) / 2)
    return area / max_fpr


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n_maps=st.integers(1, 3),
    n_values=st.sampled_from([1, 2, 5, 1000]),
    max_fpr=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_spro_equals_its_naive_twin(seed, n_maps, n_values, max_fpr):
    rng = np.random.default_rng(seed)
    maps = [np.float32(rng.integers(0, n_values, (6, 7))) for _ in range(n_maps)]
    masks, defects = [], []
    for _ in maps:
        parts = [rng.random((6, 7)) < 0.3 for _ in range(rng.integers(1, 4))]  # they may overlap
        parts = [part for part in parts if part.any()]
        masks.append(np.logical_or.reduce([*parts, np.zeros((6, 7), bool)]))
        defects.append([(part, rng.uniform(0.01, 1) * part.sum()) for part in parts])
        if rng.random() < 0.3 and parts:
            defects[-1][0] = parts[0], int(parts[0].sum())
    if not any(defects) or all(mask.all() for mask in masks):
        return
    whole, halves = PixelScores(), [PixelScores(), PixelScores()]
    for i, (one, mask, own) in enumerate(zip(maps, masks, defects, strict=True)):
        whole.add(one, mask, defects=own)
        halves[i % 2].add(one, mask, defects=own)
    wanted = naive_spro(maps, masks, defects, max_fpr)
    assert whole.spro(max_fpr=max_fpr) == pytest.approx(wanted, abs=1e-9)
    assert halves[0].spro([halves[1]], max_fpr=max_fpr) == whole.spro(max_fpr=max_fpr)
    halves[0].merge(halves[1])
    assert halves[0].spro(max_fpr=max_fpr) == whole.spro(max_fpr=max_fpr)


def test_spro_by_hand():
    """Twenty normal pixels, one of them above the second half of the defect; half of the defect is enough."""
    scores = np.float32([[9, 9, 5, 5], [7, 0, 0, 0], *[[0, 0, 0, 0]] * 4])
    mask = np.zeros((6, 4), bool)
    mask[0] = True
    half, whole = PixelScores(), PixelScores()
    half.add(scores, mask, defects=[(mask, 2)])
    whole.add(scores, mask, defects=[(mask, 4)])
    assert half.spro() == pytest.approx(1)
    # half is found before the first false alarm (rate 0.05), all of it at once after that
    assert whole.spro() == pytest.approx(0.5)
    assert whole.spro(max_fpr=0.1) == pytest.approx(0.75)
    assert whole.spro(max_fpr=0.3) == pytest.approx(whole.pro())


def test_a_defect_of_several_parts_counts_once_and_saturated_as_pro_does_without():
    rng = np.random.default_rng(0)
    scores, mask = np.float32(rng.normal(size=(40, 40))), np.zeros((40, 40), bool)
    mask[3:9, 3:9] = mask[20:30, 5:8] = True
    scores[mask] += 1
    parts = [mask & (np.arange(40) < 15)[:, None], mask & (np.arange(40) >= 15)[:, None]]
    pixels = PixelScores()
    pixels.add(scores, mask, defects=[(part, int(part.sum())) for part in parts])
    assert pixels.spro(max_fpr=0.3) == pytest.approx(pixels.pro(), abs=1e-9)
    assert pixels.n_defects == 2
    one = PixelScores()
    one.add(scores, mask, defects=[(mask, int(mask.sum()))])
    assert one.spro(max_fpr=0.3) != pytest.approx(pixels.pro(), abs=1e-4)


def test_defects_that_are_none_are_refused_and_nothing_is_added():
    mask = np.array([[True, False]])
    for defect, area in ((~mask, 1), (mask, 0), (mask, 1.5), (mask, float("nan"))):
        pixels = PixelScores()
        with pytest.raises(ParameterError, match="expected a defect within its ground truth"):
            pixels.add([[1.0, 2.0]], mask, defects=[(defect, area)])
        assert (pixels.n_maps, pixels.n_defects, pixels.spro()) == (0, 0, None)
    pixels = PixelScores()
    pixels.add([[1.0, 2.0]], mask)
    assert pixels.spro() is None
    with pytest.raises(ParameterError, match="max_fpr"):
        pixels.spro(max_fpr=0)


def test_only_inspected_pixels_count():
    rng = np.random.default_rng(5)
    maps, masks = rng.normal(0, 1, (4, 30, 30)), rng.random((4, 30, 30)) < 0.1
    inspected = np.zeros((30, 30), bool)
    inspected[4:20, 7:29] = True
    pixels, inner = PixelScores(), PixelScores()
    for one, mask in zip(maps, masks, strict=True):
        pixels.add(one, mask, inspected=inspected)
        inner.add(one[4:20, 7:29], mask[4:20, 7:29])
    assert (pixels.auroc(), pixels.pro(), pixels.n_normal) == (inner.auroc(), inner.pro(), inner.n_normal)
    with pytest.raises(ParameterError, match="shape"):
        pixels.add(maps[0], inspected=inspected[1:])
