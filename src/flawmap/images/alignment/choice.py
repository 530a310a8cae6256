"""Whether good images are aligned, and how: learnt from them alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.errors import TrainingSetError
from flawmap.images.alignment.aligner import LONGEST, Aligner, grey_picture
from flawmap.images.alignment.pose import Box, Frame, inside
from flawmap.images.alignment.reference import Learnt, learn_reference, match_unaligned, mean_aligned
from flawmap.images.alignment.search import LOST, Grey
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource
from flawmap.images.stream import Loaded
from flawmap.options import Alignment, AlignmentKind
from flawmap.prediction import Size

MOST_IMAGES = 96
"""Good images that a reference is learnt from, at most."""
LEAST_MEDIAN = 0.85
"""Median match of good images from which alignment is trusted; of parts that only look alike it stays below."""
STILL = 0.97
"""Median correlation of good images with their mean, as they lie, from which nothing is left to be aligned."""
LEAST_GAIN = 0.3
"""Part of what images and their mean do not share that alignment must take away."""
LEAST_KIND = 0.1
"""The same that an angle, or a scale, must take away beyond a simpler kind."""
WORST = 0.05
"""Part of the good images that counts as the worst ones."""
N_SCREENED = 24
"""Good images by which a kind is chosen, before it is learnt from all: most parts lie still, and need no more."""
SCREENED = 128
"""Longer side of their pictures, in pixels."""
KINDS: tuple[AlignmentKind, ...] = ("shift", "rigid", "similarity")
"""The simplest first."""
FAR_OUT = 3.0
"""Interquartile ranges below the first quartile (Tukey 1977) at which a match is no longer that of a good part."""
LEAST_RANGE = 0.05
"""Interquartile range, in Fisher's z, that is assumed at least: of few or equal images it is too small by chance."""
SURE = 0.95
"""Match from which a part is found, however alike the good images are: what differs then is a defect of it."""
RECOGNISED = 0.3
"""Median match of good images below which there is no part that they share."""
LESS_SHOWN = 0.05
"""Share of the part that an image may show less than every good one does."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Good images, small, from which an alignment is learnt.

    Attributes:
        greys: (h, w) float32 each.
        colours: (h, w, 3) uint8 each.
        proportions: (height, width) of what they show.
        size: (height, width) of the images that will be aligned.
        contents: where each of those shows something.
    """

    greys: Sequence[Grey]
    colours: Sequence[NDArray[np.uint8]]
    proportions: tuple[float, float]
    size: Size
    contents: Sequence[Box]

    @classmethod
    def of(cls, images: Sequence[Loaded], preprocessing: Preprocessing) -> Sample:
        """From images that hold their canvas."""
        shown = preprocessing.resize if preprocessing.aspect == "letterbox" else images[0].placement.image_size
        frame = Frame(preprocessing.resize, (float(shown[0]), float(shown[1])))
        small = frame.resized(LONGEST)
        contents = [preprocessing.content(image.placement.resized_size) for image in images]
        greys = [grey_picture(one.pixels, box, small.size) for one, box in zip(images, contents, strict=True)]
        box = Image.Resampling.BOX
        colours = [np.asarray(Image.fromarray(one.pixels).resize(small.size[::-1], box)) for one in images]
        return cls(greys, colours, frame.proportions, frame.size, contents)


def spread(items: Iterable[ImageSource], n_first: int) -> tuple[list[ImageSource], Iterable[ImageSource]]:
    """Images to learn an aligner from, spread over all, or `n_first` of an iterator; and all images, still unread."""
    if isinstance(items, Sequence):
        return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(MOST_IMAGES, len(items)))], items
    rest = iter(items)
    some = list(islice(rest, n_first))
    return some, chain(some, rest) if len(some) == n_first else some


def learn_aligner(sample: Sample, kind: Alignment, *, in_part: bool = False) -> Aligner | None:
    """The aligner of some good images; None for none, and where "auto" finds that alignment does not help.

    Raises TrainingSetError for images that show no part in common, unless it is "auto" that looks for one. Where images
    are inspected `in_part`, the rest of the part may differ from the reference, and a part counts as found from the
    match on from which alignment is trusted.
    """
    learnt = _learn(sample, kind)
    if learnt is None:
        return None
    least_match = _least_match(learnt.matches)
    least_match = min(least_match, LEAST_MEDIAN) if in_part else least_match
    aligner = Aligner(learnt.reference, _mean_colours(sample, learnt), least_match, sample.size)
    frame = aligner.frame
    shown = [
        aligner.shown(inside(frame.affine(pose), frame.size, content, margin=0.5))
        for pose, content, match in zip(learnt.poses, sample.contents, learnt.matches, strict=True)
        if match >= least_match
    ]
    return replace(aligner, least_shown=max(0.0, min(shown, default=0.0) - LESS_SHOWN))


def _learn(sample: Sample, kind: Alignment) -> Learnt | None:
    greys, proportions = sample.greys, sample.proportions
    if kind == "none" or len(greys) < 2:
        return None
    if kind == "auto":
        spread = np.linspace(0, len(greys) - 1, min(N_SCREENED, len(greys))).round().astype(int)
        screened = _best_kind([_reduced(greys[i]) for i in spread], KINDS, proportions)
        return None if screened is None else _best_kind(greys, (screened.reference.kind,), proportions)
    learnt = learn_reference(greys, kind, proportions)
    if (median := float(np.median(learnt.matches))) < RECOGNISED:
        raise TrainingSetError(
            f"align='{kind}' finds no part that the good images have in common: their median match is "
            f"{max(median, 0.0):.2f} of 1. Fit with align='none', or 'auto'"
        )
    return learnt


def _reduced(grey: Grey) -> Grey:
    """A picture of `SCREENED` pixels at most."""
    height, width = grey.shape
    factor = min(1.0, SCREENED / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))


def _best_kind(
    greys: Sequence[Grey], kinds: Sequence[AlignmentKind], proportions: tuple[float, float]
) -> Learnt | None:
    """What a kind of alignment makes of images, of the simplest kind that helps; None if none does.

    It must help the usual image and the worst ones: one that loses some of them is no gain.
    """
    missed = _missed(match_unaligned(greys))
    best: Learnt | None = None
    if missed[0] <= 1 - STILL:
        return None
    for kind in kinds:
        learnt = learn_reference(greys, kind, proportions)
        left = _missed(learnt.matches)
        needed = LEAST_GAIN if best is None else LEAST_KIND
        if 1 - left[0] >= LEAST_MEDIAN and (left <= (1 - needed) * missed).all():
            best, missed = learnt, left
    return best


def _missed(matches: NDArray[np.float64]) -> NDArray[np.float64]:
    """What images and their mean do not share (2,): of the usual image, and of the worst ones."""
    return 1 - np.quantile(matches, [0.5, WORST])


def _least_match(matches: NDArray[np.float64]) -> float:
    """The match below which a part counts as not found: far below those of the good images (in Fisher's z)."""
    scores = np.arctanh(np.clip(matches[matches > LOST], -0.999, 0.999))
    if len(scores) == 0:
        return 0.0
    first, third = np.quantile(scores, [0.25, 0.75])
    return min(SURE, float(np.tanh(first - FAR_OUT * max(third - first, LEAST_RANGE))))


def _mean_colours(sample: Sample, learnt: Learnt) -> NDArray[np.uint8]:
    """Mean (h, w, 3) of the aligned images; pixels that none shows get the mean of the rest."""
    mean, counts = mean_aligned(sample.colours, learnt.poses, learnt.reference.frame)
    return np.round(np.where(counts[..., None] > 0, mean, mean[counts > 0].mean(axis=0))).astype(np.uint8)
