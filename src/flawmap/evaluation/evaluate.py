"""How well a detector separates good images from anomalous ones, and where: the figures of the paper's tables.

Data sets of several classes or scenes get a model for each class and the mean of the figures, as in the papers' tables.
For ShanghaiTech Campus that is the protocol of table IV of the PaDiM paper: pixel-level AUROC (`pixel_auroc`) over all
frames of a scene, averaged over the scenes; frame-level AUROC (`image_auroc`) beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from flawmap.datasets import Dataset, Sample, find_classes, open_dataset
from flawmap.datasets.mvtec_loco import TYPES
from flawmap.detectors import Detector
from flawmap.errors import DatasetError, ImageError
from flawmap.evaluation.doubts import Doubts
from flawmap.evaluation.figures import (
    ClassMean,
    Evaluation,
    ImageGroup,
    group_figures,
    mean_figures,
    promising_threshold,
)
from flawmap.evaluation.metrics import Rate, reliability
from flawmap.evaluation.truth import Truth
from flawmap.images import describe_passed_over, first_page
from flawmap.options import OnBad
from flawmap.prediction import Prediction
from flawmap.progress import Progress, report_progress


def score_samples(
    model: Detector, samples: Sequence[Sample], what: str, *, progress: Progress = False, on_bad: OnBad | None = None
) -> Iterator[tuple[Sample, Prediction]]:
    """Labelled images and their predictions, in one streaming pass; `what` names the pass in the progress bar.

    Raises DatasetError for an image that is given twice: it may have two labels.
    """
    images = [first_page(sample.path) for sample in samples]  # a sample is one image, with one mask
    by_path: dict[str, Sample] = {}
    for image, sample in zip(images, samples, strict=True):
        if (first := by_path.setdefault(str(image), sample)) is not sample:
            raise DatasetError(f"{sample.path}: is given twice, as {first.type} and as {sample.type}; leave one out")
    with report_progress(progress, what, len(samples)) as advance:
        for prediction in model.iter_predict(images, on_bad=on_bad):
            yield by_path[str(prediction.path)], prediction
            advance(1)


def evaluate(
    model: Detector, samples: Dataset | Sequence[Sample], *, progress: Progress = False, on_bad: OnBad | None = None
) -> Evaluation:
    """Score labelled images, or the test images of a data set, and compare with their labels and masks, in one pass.

    Masks are resized (nearest) and cropped as the images. Pixel figures leave out what lies outside a region of
    interest, and, with a warning, anomalous images whose mask is missing or marks nothing; they are None if there is no
    mask at all. `on_bad` is called with each image and each mask that cannot be used; None raises ImageError. An image
    with such a mask counts as one without.
    """
    remarks: tuple[str, ...] = ()
    if isinstance(samples, Dataset):
        remarks, samples = samples.remarks, samples.test
    if not samples:
        raise DatasetError("there are no labelled images to evaluate on")
    good, types, doubts = ImageGroup(is_anomalous=False), dict[str, ImageGroup](), Doubts()
    unusual: dict[str, list[str]] = {}
    for sample, prediction in score_samples(model, samples, "Evaluating", progress=progress, on_bad=on_bad):
        group = types.setdefault(sample.type, ImageGroup(is_anomalous=True)) if sample.is_anomalous else good
        doubts.add(sample, prediction)
        anomaly_map, truth, inspected = prediction.anomaly_map, None, None
        if anomaly_map is not None:
            if prediction.placement.affine is not None:  # pixels count where they lie in the photo
                anomaly_map = prediction.placement.straighten(anomaly_map)
            top, left, bottom, right = prediction.placement.unaligned.content
            anomaly_map = anomaly_map[top:bottom, left:right]  # the padding of a letterbox is no part of the image
            roi = prediction.placement.unaligned.roi
            inspected = None if roi is None else roi[top:bottom, left:right]
            truth = _truth(model, sample, prediction, on_bad)
        if truth is None:
            group.add(prediction.pred_score, anomaly_map, None, inspected=inspected, found=prediction.found)
        else:
            doubts.add_mask(sample, truth)
            group.n_empty += truth.mask is None
            group.add(
                prediction.pred_score,
                anomaly_map,
                truth.mask,
                truth.defects,
                inspected=inspected,
                found=prediction.found,
            )
        if prediction.pred_label is not None:
            group.labels.append(prediction.pred_label)
        if prediction.p_value is not None:
            group.p_values.append(prediction.p_value)
        for remark in prediction.remarks:
            unusual.setdefault(remark, []).append(str(sample.path))
    result = _summarise(good, types, promising_threshold(model.decision_))
    if model.roi_ is not None:
        outside = f"{1 - float(model.roi_.mean()):.0%} of the model's input lies outside its region of interest"
        remarks = (*remarks, f"{outside}: it is not inspected, and the pixel figures leave it out")
    said = (*doubts.of_masks(), *doubts.of_labels(model.decision_, result.reliability))
    of_images = {remark: tuple(paths) for remark, paths in unusual.items()}
    return replace(result, warnings=(*result.warnings, *remarks, *said), remarks=of_images)


class LabelledScores(NamedTuple):
    """Labels (1 = anomalous) and scores of labelled images, and what limits their use, in words.

    Example:
        >>> labels, scores, warnings = LabelledScores([0, 1], [2.5, 7.0], ())
        >>> scores[labels.index(1)]
        7.0
    """

    labels: list[int]
    scores: list[float]
    warnings: tuple[str, ...]


def labelled_scores(
    model: Detector, samples: Sequence[Sample], *, progress: Progress = False, on_bad: OnBad | None = None
) -> LabelledScores:
    """Labels and scores of labelled images, for `metrics.best_threshold`."""
    labels, scores, p_values, doubts = [], [], [], Doubts()
    for sample, prediction in score_samples(model, samples, "Scoring", progress=progress, on_bad=on_bad):
        doubts.add(sample, prediction)
        labels.append(int(sample.is_anomalous))
        scores.append(prediction.pred_score)
        if prediction.p_value is not None and not sample.is_anomalous:
            p_values.append(prediction.p_value)
    return LabelledScores(labels, scores, tuple(doubts.of_labels(model.decision_, reliability(p_values))))


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
            detector = new_detector().fit(data, progress=progress, on_bad=on_bad)
            result = evaluate(detector, data, progress=progress, on_bad=on_bad)
            told = (describe_passed_over(data.passed_over),) if data.passed_over else ()
            by_class[path.name] = replace(result, warnings=(*result.warnings, *told))
    if not by_class:
        raise DatasetError(f"{where}: no class has both training images and test images")
    return ClassMean(by_class, mean_figures(by_class))


def _truth(model: Detector, sample: Sample, prediction: Prediction, on_bad: OnBad | None) -> Truth | None:
    """The mask of an anomalous image, or None; ImageError for one that cannot be used, unless `on_bad` is given."""
    try:
        return Truth.of(sample, prediction, model.preprocessing)
    except ImageError as error:
        if on_bad is None:
            raise
        on_bad(error)
        return None


def _summarise(good: ImageGroup, types: dict[str, ImageGroup], threshold: float | None) -> Evaluation:
    groups = list(types.values())
    has_masks = any(group.n_masked for group in groups)
    warnings = []
    if any(group.n_without_map for group in (good, *groups)):
        warnings.append("the detector is image-level and makes no anomaly maps: there are no pixel figures")
    by_type = {}
    for name, group in sorted(types.items()):
        if has_masks and (n_without := group.n_without_mask - group.n_empty):
            warnings.append(f"{name}: {n_without} of {len(group.scores)} images have no mask")
        by_type[name] = group_figures(good, [group], len(group.scores), threshold=threshold)
    n_images = len(good.scores) + sum(len(group.scores) for group in groups)
    overall = group_figures(good, groups, n_images, threshold=threshold)
    labels = [label for group in groups for label in group.labels]
    return Evaluation(
        **asdict(overall),
        by_type=by_type,
        type_mean=mean_figures(by_type) if set(by_type) == set(TYPES) else None,
        false_alarm_rate=Rate.of(sum(good.labels), len(good.labels)),
        miss_rate=Rate.of(len(labels) - sum(labels), len(labels)),
        reliability=reliability(good.p_values),
        warnings=tuple(warnings),
    )
