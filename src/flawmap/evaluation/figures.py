"""Figures of merit over groups of images, and their means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import Decision
from flawmap.evaluation.metrics import Defect, PixelScores, Rate, Reliability, image_auroc

PROMISED = 0.05
"""False-alarm rate of the threshold at which `found_at_5` and `flagged_at_5` are taken, whatever the model's own is."""


@dataclass(frozen=True)
class Figures:
    """Figures over some images; None where they are not defined (one class only, or no masks).

    Attributes:
        n_images: number of anomalous images of a type; of all images in the overall figures.
        image_auroc: area under the ROC curve of the image scores.
        pixel_auroc: the same over all pixels of the maps at the model's input size.
        pro_score: per-region overlap, integrated up to a false-positive rate of 0.3.
        spro_score: saturated per-region overlap, integrated up to 0.05; None of data without saturation thresholds.
        found_at_5: share of the anomalous images above the threshold that promises 5 % false alarms, from held-out
            scores, those whose part was not found included; None of a model that was not calibrated, or on too few good
            images to promise that.
        flagged_at_5: share of the good images above that threshold; None likewise.

    Example:
        >>> Figures(n_images=160, image_auroc=0.97, pixel_auroc=None, pro_score=None).image_auroc
        0.97
    """

    n_images: int
    image_auroc: float | None
    pixel_auroc: float | None
    pro_score: float | None
    spro_score: float | None = field(default=None, kw_only=True)
    found_at_5: float | None = field(default=None, kw_only=True)
    flagged_at_5: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Evaluation(Figures):
    """Figures over all images and, by defect type, over that type's images and the good ones.

    Attributes:
        by_type: the figures of each defect type.
        type_mean: mean of the figures over the types, as the paper of MVTec LOCO AD has it; None of other data.
        false_alarm_rate: share of good images labelled anomalous; None without good images or without a decision.
        miss_rate: share of anomalous images labelled good; None likewise.
        reliability: guaranteed and realised false-alarm rates; None likewise.
        warnings: limits of these figures, in words.
        remarks: what is unusual about images, in words, and their paths.

    Example:
        >>> bent = Figures(9, 0.97, 0.95, 0.9)
        >>> Evaluation(30, 0.97, 0.95, 0.9, by_type={"bent": bent}).to_json()["by_type"]["bent"]["n_images"]
        9
    """

    by_type: dict[str, Figures]
    type_mean: Figures | None = field(default=None, kw_only=True)
    false_alarm_rate: Rate | None = None
    miss_rate: Rate | None = None
    reliability: Reliability | None = None
    warnings: tuple[str, ...] = ()
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """One plain object: the overall figures, `by_type`, `warnings` and `remarks`."""
        return asdict(self)


@dataclass(frozen=True)
class ClassMean:
    """Figures of each class, and their mean.

    Attributes:
        by_class: the evaluation of each class that has test images.
        mean: mean of each figure over the classes where it is defined; `n_images` is their sum.

    Example:
        >>> by_class = {"01": Evaluation(6, 1.0, 0.8, None, {}), "02": Evaluation(4, 0.5, 0.6, None, {})}
        >>> mean = ClassMean(by_class, mean_figures(by_class)).mean
        >>> mean.n_images, mean.image_auroc, mean.pixel_auroc, mean.pro_score
        (10, 0.75, 0.7, None)
    """

    by_class: dict[str, Evaluation]
    mean: Figures

    def to_json(self) -> dict[str, object]:
        """One plain object."""
        return asdict(self)


@dataclass
class ImageGroup:
    """Scores and pixels of the good images, or of the anomalous images of one type.

    Attributes:
        n_without_mask: anomalous images without a mask, those with an empty one included.
        n_empty: anomalous images with a mask that marks nothing.
        n_without_map: images without an anomaly map.
        judged: the scores that labels come from, infinite of an image whose part was not found.
    """

    is_anomalous: bool
    scores: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    p_values: list[float] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
    n_without_mask: int = 0
    n_empty: int = 0
    n_without_map: int = 0

    @property
    def n_masked(self) -> int:
        """Images that count in the pixel figures."""
        return len(self.scores) - self.n_without_mask - self.n_without_map

    def add(
        self,
        score: float,
        anomaly_map: NDArray[np.float32] | None,
        mask: NDArray[np.bool_] | None,
        defects: Sequence[Defect] = (),
        *,
        found: bool = True,
        inspected: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add an image. Pixel figures leave out an anomalous image without a mask; `defects` are for sPRO.

        `inspected` (H, W) are the pixels that count; None for all.
        """
        self.scores.append(score)
        self.judged.append(score if found else math.inf)
        if anomaly_map is None:
            self.n_without_map += 1
        elif self.is_anomalous and mask is None:
            self.n_without_mask += 1
        else:
            mask = mask if self.is_anomalous else None
            self.pixels.add(anomaly_map, mask, defects=defects, inspected=inspected)


def promising_threshold(decision: Decision | None) -> float | None:
    """The threshold that promises 5 % false alarms; None of a model whose held-out scores cannot promise that."""
    if decision is None or decision.lowest_rate > PROMISED:
        return None
    return decision.at_rate(PROMISED).threshold


def group_figures(
    good: ImageGroup, anomalous: Sequence[ImageGroup], n_images: int, *, threshold: float | None = None
) -> Figures:
    """Figures over the good images and some groups of anomalous ones; `threshold` is that of `found_at_5`."""
    scores = [score for group in anomalous for score in group.scores]
    masked = [group.pixels for group in anomalous if group.n_masked]
    labels = [0] * len(good.scores) + [1] * len(scores)
    return Figures(
        n_images=n_images,
        image_auroc=image_auroc(labels, good.scores + scores) if labels else None,
        pixel_auroc=good.pixels.auroc(masked) if masked else None,
        pro_score=good.pixels.pro(masked) if masked else None,
        spro_score=good.pixels.spro(masked) if masked else None,
        found_at_5=_share_above([score for group in anomalous for score in group.judged], threshold),
        flagged_at_5=_share_above(good.judged, threshold),
    )


def _share_above(scores: Sequence[float], threshold: float | None) -> float | None:
    """Share of scores above a threshold; None of no scores, or without one."""
    if threshold is None or not scores:
        return None
    return sum(score > threshold for score in scores) / len(scores)


def mean_figures(by_class: Mapping[str, Figures]) -> Figures:
    """Mean of each figure over the classes where it is defined, None if no class defines it; the sum of `n_images`."""

    def mean(name: str) -> float | None:
        values = [value for figures in by_class.values() if (value := getattr(figures, name)) is not None]
        return sum(values) / len(values) if values else None

    return Figures(
        n_images=sum(figures.n_images for figures in by_class.values()),
        image_auroc=mean("image_auroc"),
        pixel_auroc=mean("pixel_auroc"),
        pro_score=mean("pro_score"),
        spro_score=mean("spro_score"),
        found_at_5=mean("found_at_5"),
        flagged_at_5=mean("flagged_at_5"),
    )
