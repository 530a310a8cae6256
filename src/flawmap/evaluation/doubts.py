"""What limits the figures of an evaluation: gathered image by image, then said in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from flawmap.datasets import Sample
from flawmap.decision import Decision
from flawmap.evaluation.metrics import Reliability, scored_lower
from flawmap.evaluation.truth import Truth
from flawmap.images import LEARNT
from flawmap.prediction import Prediction

DOUBTFUL = 0.01
"""p-value below which good images are taken for others than the guarantee holds for."""


@dataclass
class Doubts:
    """Images that were learnt from, and masks that are unusual.

    Attributes:
        good_scores: of the good images.
        n_anomalous: number of anomalous images.
        learnt_good, learnt_anomalous: names of images that were learnt from, by their label.
        n_masks: masks that were read.
        empty, unseen: names of those that mark nothing, and of those that mark nothing the model sees.
        remarks: names of masks by what is unusual about them.
    """

    good_scores: list[float] = field(default_factory=list)
    n_anomalous: int = 0
    learnt_good: list[str] = field(default_factory=list)
    learnt_anomalous: list[str] = field(default_factory=list)
    n_masks: int = 0
    empty: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sample: Sample, prediction: Prediction) -> None:
        """Add a labelled image."""
        if sample.is_anomalous:
            self.n_anomalous += 1
        else:
            self.good_scores.append(prediction.pred_score)
        if LEARNT in prediction.remarks:
            (self.learnt_anomalous if sample.is_anomalous else self.learnt_good).append(str(sample.path))

    def add_mask(self, sample: Sample, truth: Truth) -> None:
        """Add the mask of an image."""
        name = str(sample.mask_path)
        self.n_masks += 1
        if truth.mask is None:
            self.empty.append(name)
        elif not truth.mask.any():
            self.unseen.append(name)
        if truth.remark is not None:
            self.remarks.setdefault(truth.remark, []).append(name)

    def of_labels(self, decision: Decision | None, kept: Reliability | None) -> Iterator[str]:
        """What is doubtful about the images and their labels."""
        n_good = len(self.good_scores)
        if not n_good:
            yield "there are no good images: AUROC and false-alarm rate need some"
        if not self.n_anomalous:
            yield "there are no anomalous images: AUROC and miss rate need some"
        if self.learnt_anomalous:
            yield (
                f"{len(self.learnt_anomalous)} of {self.n_anomalous} anomalous images were learnt from as good ones: "
                f"fit again without them; first {self.learnt_anomalous[0]}"
            )
        if self.learnt_good:
            yield (
                f"{len(self.learnt_good)} of {n_good} good images were learnt from: their scores are too low, leave "
                f"them out; first {self.learnt_good[0]}"
            )
        elif n_good and decision is not None and _are_lower(self.good_scores, decision):
            yield (
                "these good images score lower than images that the model has not seen: were they, or copies of them, "
                "learnt from? Then leave them out"
            )
        elif kept is not None and kept.uniformity < DOUBTFUL:
            yield (
                f"the scores of these good parts differ from those of the training images (uniformity "
                f"{kept.uniformity:.2g}): their false-alarm rate may exceed the guaranteed one; refit on parts like "
                f"these"
            )

    def of_masks(self) -> Iterator[str]:
        """What is doubtful about the masks."""
        if self.empty:
            yield (
                f"{len(self.empty)} of {self.n_masks} masks mark nothing: first {self.empty[0]}; their images are left "
                f"out of the pixel figures"
            )
        if self.unseen:
            yield (
                f"{len(self.unseen)} of {self.n_masks} masks mark nothing that the model sees, after resize, crop "
                f"and region of interest: first {self.unseen[0]}"
            )
        for remark, names in self.remarks.items():
            others = "" if len(names) == 1 else f" and {len(names) - 1} more masks"
            yield f"{names[0]}{others}: {remark}"


def _are_lower(scores: list[float], decision: Decision) -> bool:
    """Whether scores are lower than held-out ones; False where images of a group depend on each other."""
    return decision.group_sizes is None and scored_lower(scores, decision.scores) < DOUBTFUL
