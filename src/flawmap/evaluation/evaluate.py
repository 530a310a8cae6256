"""How well a detector separates good images from anomalous ones, and where: the figures of the paper's tables.

Data sets of several classes or scenes get a model for each class and the mean of the figures, as in the papers' tables.
For ShanghaiTech Campus that is the protocol of table IV of the PaDiM paper: pixel-level AUROC (`pixel_auroc`) over all
frames of a scene, averaged over the scenes; frame-level AUROC (`image_auroc`) beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from flawmap.datasets import Sample, find_classes, open_dataset
from flawmap.detectors import Detector
from flawmap.errors import DatasetError, ImageError
from flawmap.evaluation.metrics import PixelScores, Rate, Reliability, image_auroc, reliability
from flawmap.images import first_page, read_mask
from flawmap.options import OnBad
from flawmap.prediction import Prediction
from flawmap.progress import Progress, report_progress


@dataclass(frozen=True)
class Figures:
    """Figures over some images; None where they are not defined (one class only, or no masks).

    Attributes:
        n_images: number of anomalous images of a type; of all images in the overall figures.
        image_auroc: area under the ROC curve of the image scores.
        pixel_auroc: the same over all pixels of the maps at the model's input size.
        pro_score: per-region overlap, integrated up to a false-positive rate of 0.3.

    Example:
        >>> Figures(n_images=160, image_auroc=0.97, pixel_auroc=None, pro_score=None).image_auroc
        0.97
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
        reliability: promised and realised false-alarm rates; None likewise.
        warnings: limits of these figures, in words.
        remarks: what is unusual about images, in words, and their paths.

    Example:
        >>> bent = Figures(9, 0.97, 0.95, 0.9)
        >>> Evaluation(30, 0.97, 0.95, 0.9, by_type={"bent": bent}).to_json()["by_type"]["bent"]["n_images"]
        9
    """

    by_type: dict[str, Figures]
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
        >>> ClassMean(by_class, mean_figures(by_class)).mean
        Figures(n_images=10, image_auroc=0.75, pixel_auroc=0.7, pro_score=None)
    """

    by_class: dict[str, Evaluation]
    mean: Figures

    def to_json(self) -> dict[str, object]:
        """One plain object."""
        return asdict(self)


@dataclass
class ImageGroup:
    """Scores and pixels of the good images, or of the anomalous images of one type."""

    is_anomalous: bool
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

    def add(self, score: float, anomaly_map: NDArray[np.float32] | None, mask: NDArray[np.bool_] | None) -> None:
        """Add an image. Pixel figures leave out an anomalous image without a mask."""
        self.scores.append(score)
        if anomaly_map is None:
            self.n_without_map += 1
        elif self.is_anomalous and mask is None:
            self.n_without_mask += 1
        else:
            self.pixels.add(anomaly_map, mask if self.is_anomalous else None)


def group_figures(good: ImageGroup, anomalous: Sequence[ImageGroup], n_images: int) -> Figures:
    """Figures over the good images and some groups of anomalous ones."""
    scores = [score for group in anomalous for score in group.scores]
    masked = [group.pixels for group in anomalous if group.n_masked]
    labels = [0] * len(good.scores) + [1] * len(scores)
    return Figures(
        n_images=n_images,
        image_auroc=image_auroc(labels, good.scores + scores) if labels else None,
        pixel_auroc=good.pixels.auroc(masked) if masked else None,
        pro_score=good.pixels.pro(masked) if masked else None,
    )


def score_samples(
    model: Detector, samples: Sequence[Sample], what: str, *, progress: Progress = False, on_bad: OnBad | None = None
) -> Iterator[tuple[Sample, Prediction]]:
    """Labelled images and their predictions, in one streaming pass; `what` names the pass in the progress bar."""
    images = [first_page(sample.path) for sample in samples]  # a sample is one image, with one mask
    by_path = {str(image): sample for image, sample in zip(images, samples, strict=True)}
    with report_progress(progress, what, len(samples)) as advance:
        for prediction in model.iter_predict(images, on_bad=on_bad):
            yield by_path[str(prediction.path)], prediction
            advance(1)


def evaluate(
    model: Detector, samples: Sequence[Sample], *, progress: Progress = False, on_bad: OnBad | None = None
) -> Evaluation:
    """Score labelled images and compare with their labels and masks, in one streaming pass.

    Masks are resized (nearest) and cropped as the images. Pixel figures leave out anomalous images that have no mask,
    with a warning, and are None if there is no mask at all. `on_bad` is called with each image and each mask that
    cannot be used; None raises ImageError. An image with such a mask counts as one without.
    """
    if not samples:
        raise DatasetError("there are no labelled images to evaluate on")
    good, types, remarks = ImageGroup(is_anomalous=False), dict[str, ImageGroup](), dict[str, list[str]]()
    for sample, prediction in score_samples(model, samples, "Evaluating", progress=progress, on_bad=on_bad):
        group = types.setdefault(sample.type, ImageGroup(is_anomalous=True)) if sample.is_anomalous else good
        top, left, bottom, right = prediction.placement.content
        inside = slice(top, bottom), slice(left, right)  # the padding of a letterbox is no part of the image
        anomaly_map, mask = prediction.anomaly_map, None
        if anomaly_map is not None and (whole := _mask(sample, prediction, on_bad)) is not None:
            mask = model.preprocessing.apply_mask(whole, prediction.placement)[inside]
        group.add(prediction.pred_score, None if anomaly_map is None else anomaly_map[inside], mask)
        if prediction.pred_label is not None:
            group.labels.append(prediction.pred_label)
        if prediction.p_value is not None:
            group.p_values.append(prediction.p_value)
        for remark in prediction.remarks:
            remarks.setdefault(remark, []).append(str(sample.path))
    return replace(_summarise(good, types), remarks={remark: tuple(paths) for remark, paths in remarks.items()})


def labelled_scores(
    model: Detector, samples: Sequence[Sample], *, progress: Progress = False, on_bad: OnBad | None = None
) -> tuple[list[int], list[float]]:
    """Labels (1 = anomalous) and scores of labelled images, for `metrics.best_threshold`."""
    labels, scores = [], []
    for sample, prediction in score_samples(model, samples, "Scoring", progress=progress, on_bad=on_bad):
        labels.append(int(sample.is_anomalous))
        scores.append(prediction.pred_score)
    return labels, scores


def evaluate_classes(
    where: str | os.PathLike[str],
    new_detector: Callable[[], Detector],
    *,
    classes: Iterable[str] | None = None,
    stride: int = 1,
    progress: Progress = False,
    on_bad: OnBad | None = None,
) -> ClassMean:
    """Fit a new detector on each class of a data set and evaluate it there.

    Args:
        where: a data set, as for `open_dataset`: its root, or one class.
        new_detector: makes an unfitted detector.
        classes: names of the classes to evaluate; None for all.
        stride: use every `stride`-th image of each clip.
        progress: as for `Detector.fit`.
        on_bad: called with each image that cannot be used; None raises ImageError.

    Classes without training or test images are skipped: ShanghaiTech Campus has no test clips of scene 13. Raises
    DatasetError if no class is left.
    """
    layout, paths = find_classes(where)
    wanted = {path.name for path in paths} if classes is None else set(classes)
    if unknown := wanted - {path.name for path in paths}:
        raise DatasetError(f"{where}: has no class {', '.join(sorted(unknown))}")
    by_class = {}
    for path in paths:
        if path.name not in wanted:
            continue
        data = open_dataset(f"{layout.name}:{path}").every(stride)
        if data.train and data.test:
            detector = new_detector().fit(data.train, progress=progress, on_bad=on_bad)
            by_class[path.name] = evaluate(detector, data.test, progress=progress, on_bad=on_bad)
    if not by_class:
        raise DatasetError(f"{where}: no class has both training images and test images")
    return ClassMean(by_class, mean_figures(by_class))


def mean_figures(by_class: Mapping[str, Figures]) -> Figures:
    """Mean of each figure over the classes where it is defined, None if no class defines it; the sum of `n_images`."""

    def mean(name: str) -> float | None:
        values = [value for figures in by_class.values() if (value := getattr(figures, name)) is not None]
        return sum(values) / len(values) if values else None

    n_images = sum(figures.n_images for figures in by_class.values())
    return Figures(n_images, mean("image_auroc"), mean("pixel_auroc"), mean("pro_score"))


def _mask(sample: Sample, prediction: Prediction, on_bad: OnBad | None) -> NDArray[np.bool_] | None:
    """The mask of an anomalous image, or None; ImageError for one that cannot be used, unless `on_bad` is given."""
    if sample.mask_path is None or not sample.is_anomalous:
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


def _summarise(good: ImageGroup, types: dict[str, ImageGroup]) -> Evaluation:
    groups = list(types.values())
    has_masks = any(group.n_masked for group in groups)
    warnings = []
    if any(group.n_without_map for group in (good, *groups)):
        warnings.append("the detector is image-level and makes no anomaly maps: there are no pixel figures")
    by_type = {}
    for name, group in sorted(types.items()):
        if has_masks and group.n_without_mask:
            warnings.append(f"{name}: {group.n_without_mask} of {len(group.scores)} images have no mask")
        by_type[name] = group_figures(good, [group], len(group.scores))
    overall = group_figures(good, groups, len(good.scores) + sum(len(group.scores) for group in groups))
    labels = [label for group in groups for label in group.labels]
    return Evaluation(
        **asdict(overall),
        by_type=by_type,
        false_alarm_rate=Rate.of(sum(good.labels), len(good.labels)),
        miss_rate=Rate.of(len(labels) - sum(labels), len(labels)),
        reliability=reliability(good.p_values),
        warnings=tuple(warnings),
    )
