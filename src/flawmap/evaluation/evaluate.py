"""How well a detector tells good images from anomalous ones, and where: the figures of the paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from flawmap.datasets import Sample
from flawmap.detectors import Detector
from flawmap.errors import DatasetError, ImageError
from flawmap.evaluation.metrics import PixelScores, Rate, Reliability, image_auroc, reliability
from flawmap.images import Preprocessing, read_mask
from flawmap.options import OnBad
from flawmap.prediction import Prediction
from flawmap.progress import Progress, report_progress

__all__ = ["Evaluation", "Figures", "evaluate", "labelled_scores"]


@dataclass(frozen=True)
class Figures:
    """Figures over some images; None where they are not defined (one class only, or no masks).

    Attributes:
        n_images: number of anomalous images of a type; of all images in the overall figures.
        image_auroc: area under the ROC curve of the image scores.
        pixel_auroc: the same over all pixels of the maps at the model's input size.
        pro_score: per-region overlap, integrated up to a false-positive rate of 0.3.
    """

    n_images: int
    image_auroc: float | None
    pixel_auroc: float | None
    pro_score: float | None


@dataclass(frozen=True)
class Evaluation(Figures):
    """Figures over all images and, by defect type, over that type's images and the good ones.

    Attributes:
        by_type: the figures of each defect type.
        false_alarm_rate: share of good images labelled anomalous; None without good images or without a decision.
        miss_rate: share of anomalous images labelled good; None likewise.
        reliability: promised and realised false-alarm rates over all rates; None likewise.
        warnings: what a reader of the figures should know.
    """

    by_type: dict[str, Figures]
    false_alarm_rate: Rate | None = None
    miss_rate: Rate | None = None
    reliability: Reliability | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """One plain object: the overall figures, `by_type`, and `warnings`."""
        return asdict(self)


@dataclass
class _Group:
    """What has been seen of the good images, or of one defect type."""

    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    p_values: list[float] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
    n_without_mask: int = 0
    n_without_map: int = 0

    @property
    def n_masked(self) -> int:
        """Images that count in the pixel figures."""
        return len(self.scores) - self.n_without_mask - self.n_without_map


def evaluate(
    model: Detector, samples: Sequence[Sample], *, progress: Progress = False, on_bad: OnBad | None = None
) -> Evaluation:
    """Score labelled images and compare with their labels and masks, in one streaming pass.

    Masks take the same resize (nearest) and crop as the images. Pixel figures leave out anomalous images that have no
    mask, with a warning, and are None if there is no mask at all. `on_bad` is told of each image and each mask that
    cannot be used; None raises ImageError. An image with such a mask counts as one without.
    """
    if not samples:
        raise DatasetError("there are no labelled images to evaluate on")
    by_path = {str(sample.path): sample for sample in samples}
    groups: dict[str, _Group] = {"good": _Group()}
    with report_progress(progress, "Evaluating", len(samples)) as advance:
        for prediction in model.iter_predict([sample.path for sample in samples], on_bad=on_bad):
            sample = by_path[str(prediction.path)]
            _take(groups.setdefault(sample.type, _Group()), sample, prediction, model.preprocessing, on_bad)
            advance(1)
    return _summarise(groups.pop("good"), groups)


def labelled_scores(
    model: Detector, samples: Sequence[Sample], *, progress: Progress = False, on_bad: OnBad | None = None
) -> tuple[list[int], list[float]]:
    """Labels (1 = anomalous) and scores of labelled images, for `metrics.best_threshold`."""
    by_path = {str(sample.path): sample for sample in samples}
    labels, scores = [], []
    with report_progress(progress, "Scoring", len(samples)) as advance:
        for prediction in model.iter_predict([sample.path for sample in samples], on_bad=on_bad):
            labels.append(int(by_path[str(prediction.path)].is_anomalous))
            scores.append(prediction.pred_score)
            advance(1)
    return labels, scores


def _take(
    group: _Group, sample: Sample, prediction: Prediction, preprocessing: Preprocessing, on_bad: OnBad | None
) -> None:
    group.scores.append(prediction.pred_score)
    if prediction.pred_label is not None:
        group.labels.append(prediction.pred_label)
    if prediction.p_value is not None:
        group.p_values.append(prediction.p_value)
    top, left, bottom, right = prediction.placement.content
    inside = slice(top, bottom), slice(left, right)  # the padding of a letterbox is no part of the image
    if prediction.anomaly_map is None:
        group.n_without_map += 1
    elif not sample.is_anomalous:
        group.pixels.add(prediction.anomaly_map[inside], None)
    elif (mask := _mask(sample, prediction, on_bad)) is None:
        group.n_without_mask += 1
    else:
        mask = preprocessing.apply_mask(mask, prediction.placement)
        group.pixels.add(prediction.anomaly_map[inside], mask[inside])


def _mask(sample: Sample, prediction: Prediction, on_bad: OnBad | None) -> NDArray[np.bool_] | None:
    """The mask of an image, or None; ImageError for one that cannot be used, unless `on_bad` is told of it."""
    if sample.mask_path is None:
        return None
    try:
        mask = read_mask(sample.mask_path)
        if mask.shape != prediction.image_size:
            raise ImageError(
                str(sample.mask_path),
                f"the mask is {mask.shape[0]} x {mask.shape[1]}, but its image {sample.path} is "
                f"{prediction.image_size[0]} x {prediction.image_size[1]}",
            )
    except ImageError as error:
        if on_bad is None:
            raise
        on_bad(error)
        return None
    return mask


def _summarise(good: _Group, types: dict[str, _Group]) -> Evaluation:
    has_masks = any(group.n_masked for group in types.values())
    warnings = []
    if any(group.n_without_map for group in (good, *types.values())):
        warnings.append("the detector judges whole images and makes no maps: there are no pixel figures")
    by_type = {}
    for name, group in sorted(types.items()):
        if has_masks and group.n_without_mask:
            warnings.append(f"{name}: {group.n_without_mask} of {len(group.scores)} images have no mask")
        by_type[name] = _figures(good, group.scores, [group.pixels] if group.n_masked else [], len(group.scores))
    masked = [group.pixels for group in types.values() if group.n_masked]
    scores = [score for group in types.values() for score in group.scores]
    overall = _figures(good, scores, masked, len(good.scores) + len(scores))
    labels = [label for group in types.values() for label in group.labels]
    return Evaluation(
        **asdict(overall),
        by_type=by_type,
        false_alarm_rate=Rate.of(sum(good.labels), len(good.labels)),
        miss_rate=Rate.of(len(labels) - sum(labels), len(labels)),
        reliability=reliability(good.p_values),
        warnings=tuple(warnings),
    )


def _figures(good: _Group, scores: list[float], masked: list[PixelScores], n_images: int) -> Figures:
    """Figures over the good images and anomalous ones, given by their scores and their pixels."""
    return Figures(
        n_images=n_images,
        image_auroc=image_auroc([0] * len(good.scores) + [1] * len(scores), good.scores + scores)
        if good.scores or scores
        else None,
        pixel_auroc=good.pixels.auroc(masked) if masked else None,
        pro_score=good.pixels.pro(masked) if masked else None,
    )
