"""From scores to labels: thresholds and p-values from good images alone, with a guaranteed false-alarm rate.

Held-out scores of N good images and the score of one more good image are exchangeable, so its rank among them is
uniform. A p-value is (1 + #{scores >= s}) / (N + 1), and the threshold for a false-alarm rate q is the score of
conformal rank ceil((N + 1) (1 - q)) (Vovk et al. 2005). That is exact for a hold-out set, and nearly so for
leave-one-out, a jackknife: the model that scores the one more has seen all N (docs/decision.md).

Where images come in groups of near-duplicates, the groups are exchangeable and not the images: each of K groups then
weighs 1 / (K + 1), however many images it has (hierarchical conformal prediction, Lee, Barber, Willett 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from flawmap.decision.guarantee import CONFIDENCE, certified_threshold, groups_above, upper_bound
from flawmap.errors import ModelFileError, ParameterError
from flawmap.images import Loaded
from flawmap.options import SAME_PROPORTIONS
from flawmap.prediction import Placement, Prediction, Region, Size

FALSE_ALARM_RATE = 0.01
"""Share of good images that are flagged, unless the user asks for another."""
PIXEL_FALSE_ALARM_RATE = 0.001
"""Share of good images' pixels above the pixel threshold, unless the user asks for another."""
MOST = float(np.finfo(np.float32).max)
"""Largest threshold: no score is beyond it."""
PIXEL_RATES = np.geomspace(0.5, 1e-6, 96)
"""Shares of pixels for which a model keeps the value they exceed."""
LOST = "the part was not found, and counts as anomalous"
"""Remark on an image whose part does not match the reference."""
ROUNDING = 1e-6
"""Pixels by which a corner may miss a whole one."""
MUCH_SMALLER, ENLARGED = 2, 4
"""How many times the smallest good image is as high or wide as an image that is too small, or the model's input is."""
TOP_SHARE = 0.002
"""Part of a map whose mean is the score."""
STRIDE = 4
"""Every so many rows and columns of a map count: it is smooth over so many pixels."""


@dataclass(frozen=True)
class GoodPhotos:
    """What the photos of the good images were like, with which later ones are compared.

    Attributes:
        sizes: their distinct sizes (height, width); empty if proportions do not matter, or the sizes are too many.
        bits: of a sample; None if the photos differ.
        smallest: least height and width; None if it is not known.

    Example:
        >>> good = GoodPhotos(sizes=((100, 200),), bits=8)
        >>> [has_proportions(size, good.sizes[0]) for size in [(50, 100), (50, 102), (100, 100)]]
        [True, True, False]
    """

    sizes: tuple[Size, ...] = ()
    bits: int | None = None
    smallest: Size | None = None

    def compare(self, image: Loaded) -> tuple[str, ...]:
        """Remarks on an image that differs from all of them."""
        remarks = []
        if self.bits is not None and image.bits != self.bits:
            remarks.append(f"its samples have {image.bits} bits, those of the good images {self.bits}")
        size = image.placement.image_size
        least, times = (self.smallest, MUCH_SMALLER) if self.smallest else (image.placement.resized_size, ENLARGED)
        if size[0] * times < least[0] or size[1] * times < least[1]:
            what = "half of the smallest good image's" if self.smallest else "a quarter of the model's"
            remarks.append(f"a side of its {size[0]} x {size[1]} pixels is less than {what} {least[0]} x {least[1]}")
        if self.sizes and not any(has_proportions(size, known) for known in self.sizes):
            remarks.append(
                f"it is squashed from {size[0]} x {size[1]} (height x width), the good images were from "
                f"{' or '.join(f'{height} x {width}' for height, width in self.sizes[:3])}; crop it alike, or fit with "
                f"--aspect letterbox"
            )
        return tuple(remarks)


@dataclass(frozen=True, eq=False)
class Decision:
    """Thresholds of a model, and the held-out scores they come from.

    Attributes:
        scores: (N,) held-out image scores of good images, in training order.
        pixel_quantiles: (len(PIXEL_RATES),) map values that these shares of good images' pixels exceed; (0,) of a
            detector that makes no maps.
        threshold: image scores above it are anomalous.
        false_alarm_rate: guaranteed share of good images above `threshold`; None if the user set the value.
        confidence: with which that rate holds, if it was certified; None if it holds on average.
        pixel_false_alarm_rate: share of good images' pixels above the pixel threshold.
        group_sizes: (N,) images in the group of each score; None if every image stands alone.
        pixel_value: the pixel threshold, if the user set its value; None if it follows from the rate.

    Example:
        >>> decision = Decision(np.arange(1, 20, dtype=np.float32), np.zeros(0, np.float32)).at_rate(0.1)
        >>> decision.threshold, decision.label(20.0), decision.p_value(20.0)
        (18.0, 1, 0.05)
    """

    scores: NDArray[np.float32]
    pixel_quantiles: NDArray[np.float32]
    threshold: float = math.inf
    false_alarm_rate: float | None = None
    pixel_false_alarm_rate: float = PIXEL_FALSE_ALARM_RATE
    group_sizes: NDArray[np.float32] | None = None
    pixel_value: float | None = None
    confidence: float | None = None

    @property
    def n_groups(self) -> int:
        """Groups of images that are independent of each other."""
        return len(self.scores) if self.group_sizes is None else round(float(np.sum(1 / self.group_sizes)))

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight (N,) of each score; they sum to K / (K + 1)."""
        sizes = np.ones(len(self.scores)) if self.group_sizes is None else self.group_sizes.astype(np.float64)
        return np.asarray(1 / (sizes * (self.n_groups + 1)))

    @property
    def localises(self) -> bool:
        """Whether the detector makes anomaly maps."""
        return len(self.pixel_quantiles) > 0

    @property
    def pixel_threshold(self) -> float:
        """Pixels with higher map values are anomalous; infinite for a detector that makes no maps."""
        if self.pixel_value is not None:
            return self.pixel_value
        if not self.localises:
            return math.inf
        rates = np.log(PIXEL_RATES[::-1])
        return float(np.interp(math.log(self.pixel_false_alarm_rate), rates, self.pixel_quantiles[::-1]))

    @property
    def map_scale(self) -> tuple[float, float]:
        """Map values shown as coolest, the median score of good images, and hottest; the threshold is in the middle."""
        typical = min(float(np.median(self.scores)), 0.9 * self.threshold)
        return typical, 2 * self.threshold - typical

    @property
    def lowest_rate(self) -> float:
        """Lowest false-alarm rate that so many good images, or groups of them, can guarantee.

        That is 1 / (K + 1), and more where the part of some good images was not found: these are flagged at any
        threshold. It is also the smallest p-value.
        """
        return self._one_more + float(self.weights[self._lost].sum())

    @property
    def _one_more(self) -> float:
        """Weight of the image that is judged."""
        return 1 / (self.n_groups + 1)

    @property
    def _lost(self) -> NDArray[np.bool_]:
        """Which good images (N,) count as higher than any score."""
        lost: NDArray[np.bool_] = self.scores >= MOST
        return lost

    @property
    def n_above(self) -> int:
        """Held-out scores, or groups of them, above the threshold."""
        return groups_above(self.scores, self.group_sizes, self.threshold)

    def bound(self, confidence: float = CONFIDENCE) -> float | None:
        """Upper bound, at this confidence, of the share of good images that are flagged; None without a rate."""
        return None if self.false_alarm_rate is None else upper_bound(self.n_above, self.n_groups, confidence)

    def at_rate(self, false_alarm_rate: float) -> Decision:
        """Decide by another rate; one too low for these good images becomes the lowest they can guarantee."""
        if not (_is_number(false_alarm_rate) and 0 < false_alarm_rate < 1):
            raise ParameterError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate!r}")
        rate = max(false_alarm_rate, self.lowest_rate)
        order = np.argsort(self.scores, kind="stable")
        below = np.cumsum(self.weights[order])
        rank = min(int(np.searchsorted(below, 1 - rate - 1e-9)), len(order) - 1)
        return replace(self, threshold=float(self.scores[order[rank]]), false_alarm_rate=rate, confidence=None)

    def certified(self, false_alarm_rate: float, confidence: float = CONFIDENCE) -> Decision:
        """Decide by a rate that holds with this confidence. Raises ParameterError for too few good images."""
        certain = certified_threshold(self.scores, self.group_sizes, self.n_groups, false_alarm_rate, confidence)
        if certain >= MOST:
            raise ParameterError(
                f"the part of {np.count_nonzero(self._lost)} of {len(self.scores)} good images was not found: these "
                f"alone are too many to certify {100 * false_alarm_rate:g} % false alarms with {100 * confidence:g} % "
                f"confidence. Remove them and fit again, or give a higher rate"
            )
        return replace(self, threshold=certain, false_alarm_rate=float(false_alarm_rate), confidence=float(confidence))

    def at_value(self, threshold: float) -> Decision:
        """Decide by a score, which guarantees no rate."""
        if not _is_number(threshold):
            raise ParameterError(f"a threshold must be a finite number, got {threshold!r}")
        return replace(self, threshold=float(threshold), false_alarm_rate=None, confidence=None)

    def at_pixel_rate(self, pixel_false_alarm_rate: float) -> Decision:
        """Set the share of good images' pixels above the pixel threshold."""
        if not self.localises:
            raise ParameterError("this detector is image-level: it has no pixel threshold")
        if not (_is_number(pixel_false_alarm_rate) and PIXEL_RATES[-1] <= pixel_false_alarm_rate <= PIXEL_RATES[0]):
            raise ParameterError(
                f"pixel_false_alarm_rate must lie between {PIXEL_RATES[-1]:g} and {PIXEL_RATES[0]:g}, "
                f"got {pixel_false_alarm_rate!r}"
            )
        return replace(self, pixel_false_alarm_rate=float(pixel_false_alarm_rate), pixel_value=None)

    def p_value(self, score: float) -> float:
        """Share of good images that score as high: uniform for good images, small for anomalous ones."""
        if self.group_sizes is None:  # the quotient of two counts, without what sums of shares round
            return float((1 + np.count_nonzero(self.scores >= score)) / (1 + len(self.scores)))
        return float(self._one_more + self.weights[self.scores >= score].sum())

    def outliers(self) -> NDArray[np.intp]:
        """Indices, in training order, of good images that score far beyond the rest, highest first.

        Far is three interquartile ranges above the third quartile (Tukey 1977): none in a thousand of well-behaved
        scores.
        """
        first, third = np.quantile(self.scores, [0.25, 0.75])
        order = np.argsort(-self.scores, kind="stable")
        far: NDArray[np.intp] = order[self.scores[order] > third + 3 * (third - first)]
        return far

    def label(self, score: float) -> int:
        """1 if anomalous, else 0."""
        return int(score > self.threshold)

    def mask(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Pixels (H, W) above the pixel threshold."""
        above: NDArray[np.bool_] = anomaly_map > self.pixel_threshold
        return above


def _is_number(value: Any) -> bool:  # noqa: ANN401 (whatever a user gives)
    """Whether a value is a number that a score can be compared with: neither NaN nor beyond float32."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_number and bool(abs(value) <= MOST)


def has_proportions(size: Size, other: Size) -> bool:
    """Whether two sizes (height, width) have the same proportions, to within 2 %."""
    tall, wide = size[0] * other[1], size[1] * other[0]
    return max(tall, wide) <= SAME_PROPORTIONS * min(tall, wide)


def judge(
    images: Sequence[Loaded],
    maps: NDArray[np.float32] | None,
    scores: NDArray[np.floating[Any]] | None,
    decision: Decision | None,
    *,
    top_share: float = 0.0,
    good: GoodPhotos | None = None,
) -> list[Prediction]:
    """Predictions of a batch, with labels, p-values, masks and regions if the model was calibrated.

    Args:
        images: the batch.
        maps: (N, H, W) anomaly maps at the model's input size; the padding of letterboxes, and what lies outside the
            region of interest, becomes 0, in place. None from an image-level detector.
        scores: (N,) image scores; None if they are those of the maps (`flawmap.decision.map_score`).
        decision: thresholds and held-out scores; None if the model was not calibrated.
        top_share: part of a map whose mean is its score; 0 for its highest value.
        good: what the images are compared with, for remarks; None if that is not known.

    Raises ModelFileError for a score or map that is not finite: NaN would be labelled good.
    """
    if maps is not None:
        _check_finite(images, maps)
        _blank_uninspected(maps, images)
        scores = _map_scores(maps, images, top_share) if scores is None else scores
    if scores is None:
        raise ParameterError("judge needs maps or scores, got neither")
    _check_finite(images, scores)
    own_maps = [None] * len(images) if maps is None else list(maps)
    compare = (good or GoodPhotos()).compare
    return [
        _prediction(image, anomaly_map, score, decision, (*image.remarks, *compare(image)))
        for image, anomaly_map, score in zip(images, own_maps, scores.tolist(), strict=True)
    ]


def map_score(anomaly_map: NDArray[np.floating[Any]], top_share: float) -> float:
    """Mean of the highest `top_share` of a map (H, W); of less than two values, and of a share of 0, its highest value.

    PaDiM takes the highest value (section III-C). One odd patch of a good image then decides, and the few good images
    that have one set the threshold; the mean of a few is steadier (`docs/decision.md` has the figures). Values are
    taken at every fourth row and column.
    """
    count = n_highest(anomaly_map.shape[0], anomaly_map.shape[1], top_share)
    if count < 2:
        return float(anomaly_map.max())
    values = anomaly_map[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].ravel()
    return float(np.partition(values, -count)[-count:].mean(dtype=np.float64))


def n_highest(height: int, width: int, top_share: float) -> int:
    """How many values of a map of this size the score is the mean of; below 2, it is the highest of all."""
    return round(top_share * len(range(STRIDE // 2, height, STRIDE)) * len(range(STRIDE // 2, width, STRIDE)))


def _map_scores(maps: NDArray[np.float32], images: Sequence[Loaded], top_share: float) -> NDArray[np.float32]:
    """Scores (N,) of maps (N, H, W), from what is no padding."""
    contents = [image.placement.content for image in images]
    crops = [one[top:bottom, left:right] for one, (top, left, bottom, right) in zip(maps, contents, strict=True)]
    return np.array([map_score(crop, top_share) for crop in crops], np.float32)


def _blank_uninspected(maps: NDArray[np.float32], images: Sequence[Loaded]) -> None:
    """Zero the padding of letterboxes in maps (N, H, W), in place, and what lies outside the region of interest."""
    for image, anomaly_map in zip(images, maps, strict=True):
        top, left, bottom, right = image.placement.content
        anomaly_map[:top], anomaly_map[bottom:] = 0, 0
        anomaly_map[:, :left], anomaly_map[:, right:] = 0, 0
        if image.placement.roi is not None:
            anomaly_map[~image.placement.roi] = 0


def _check_finite(images: Sequence[Loaded], values: NDArray[np.floating[Any]]) -> None:
    """Raise ModelFileError, naming the first image whose values (N, ...) are not finite."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        raise ModelFileError(
            f"{images[int(finite.argmin())].name}: the model's scores are not finite. Use device 'cpu', or fit or "
            f"export the model again"
        )


def _prediction(
    image: Loaded,
    anomaly_map: NDArray[np.float32] | None,
    score: float,
    decision: Decision | None,
    remarks: tuple[str, ...],
) -> Prediction:
    is_found = image.placement.pose is None or image.placement.pose.found
    remarks = remarks if is_found else (*remarks, LOST)
    if decision is None:
        return Prediction(image.path, score, anomaly_map, image.placement, remarks=remarks)
    mask = None if anomaly_map is None else decision.mask(anomaly_map)
    return Prediction(
        path=image.path,
        pred_score=score,
        anomaly_map=anomaly_map,
        placement=image.placement,
        pred_label=decision.label(score) if is_found else 1,
        p_value=decision.p_value(score if is_found else MOST),
        pred_mask=mask,
        regions=() if mask is None or anomaly_map is None else find_regions(mask, anomaly_map, image.placement),
        remarks=remarks,
    )


def find_regions(mask: NDArray[np.bool_], anomaly_map: NDArray[np.float32], placement: Placement) -> tuple[Region, ...]:
    """8-connected regions of a mask (H, W), in pixels of the original image, highest peak first."""
    labels = cc3d.connected_components(mask, connectivity=8)
    found = cc3d.statistics(labels)
    on_photo = np.array(placement.on_photo)
    (a, b, _), (c, d, _) = placement.on_photo
    area = abs(a * d - b * c)
    regions = []
    for label in range(1, len(found["voxel_counts"])):
        rows, columns = found["bounding_boxes"][label][:2]
        inside = labels[rows, columns] == label
        values = anomaly_map[rows, columns] * inside
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        centroid = found["centroids"][label] + 0.5
        pixels = np.argwhere(inside)[:, None] + np.array([rows.start, columns.start])
        corners = _moved((pixels + np.array([(0, 0), (0, 1), (1, 0), (1, 1)])).reshape(-1, 2), on_photo)
        points = np.array([(rows.start + row + 0.5, columns.start + column + 0.5), (centroid[0], centroid[1])])
        peak_at, centre = _moved(points, on_photo).tolist()
        (top, left), (bottom, right) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        regions.append(
            Region(
                box=(
                    *(math.floor(n + ROUNDING) for n in (top, left)),
                    *(math.ceil(n - ROUNDING) for n in (bottom, right)),
                ),
                area=float(found["voxel_counts"][label] * area),
                peak=float(values.max()),
                peak_at=(peak_at[0], peak_at[1]),
                centroid=(centre[0], centre[1]),
            )
        )
    return tuple(sorted(regions, key=lambda region: -region.peak))


def _moved(points: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (N, 2) where an affine (2, 3) takes them."""
    moved: NDArray[np.float64] = points @ affine[:, :2].T + affine[:, 2]
    return moved
