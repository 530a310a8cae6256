"""Data sets of several classes or scenes: a model for each, its figures, and their mean, as the papers' tables have it.

For ShanghaiTech Campus that is the protocol of table IV of the PaDiM paper: pixel-level AUROC (`pixel_auroc`) over all
frames of a scene, by a model of that scene, averaged over the scenes; frame-level AUROC (`image_auroc`) beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from flawmap.datasets import find_classes, open_dataset
from flawmap.detectors import Detector
from flawmap.errors import DatasetError
from flawmap.evaluation.evaluate import Evaluation, Figures, evaluate
from flawmap.options import OnBad
from flawmap.progress import Progress

__all__ = ["ClassMean", "evaluate_classes", "mean_figures"]


@dataclass(frozen=True)
class ClassMean:
    """Figures of each class, and their mean.

    Attributes:
        by_class: the evaluation of each class that has test images.
        mean: mean of each figure over the classes where it is defined; `n_images` is their sum.
    """

    by_class: dict[str, Evaluation]
    mean: Figures

    def to_json(self) -> dict[str, object]:
        """One plain object."""
        return asdict(self)


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
        classes: names of the classes that are wanted; None for all.
        stride: every `stride`-th image of each clip is learnt from and evaluated on.
        progress: as for `Detector.fit`.
        on_bad: is told of each image that cannot be used; None raises ImageError.

    A class without training or test images is passed over: ShanghaiTech Campus has no test clips of scene 13. Raises
    DatasetError if no class is left.
    """
    layout, paths = find_classes(where)
    wanted = None if classes is None else set(classes)
    if wanted is not None and (unknown := wanted - {path.name for path in paths}):
        raise DatasetError(f"{where}: has no class {', '.join(sorted(unknown))}")
    by_class = {}
    for path in paths:
        if wanted is not None and path.name not in wanted:
            continue
        data = open_dataset(f"{layout.name}:{path}").every(stride)
        if data.train and data.test:
            detector = new_detector().fit(data.train, progress=progress, on_bad=on_bad)
            by_class[path.name] = evaluate(detector, data.test, progress=progress, on_bad=on_bad)
    if not by_class:
        raise DatasetError(f"{where}: no class has both images to learn from and images to test on")
    return ClassMean(by_class, mean_figures(by_class))


def mean_figures(by_class: Mapping[str, Figures]) -> Figures:
    """Mean of each figure over the classes where it is defined, None where it is nowhere; the sum of `n_images`."""

    def mean(name: str) -> float | None:
        values = [getattr(figures, name) for figures in by_class.values() if getattr(figures, name) is not None]
        return sum(values) / len(values) if values else None

    n_images = sum(figures.n_images for figures in by_class.values())
    return Figures(n_images, mean("image_auroc"), mean("pixel_auroc"), mean("pro_score"))
