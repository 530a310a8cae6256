"""Whether good images are aligned, and how: learnt from them alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.images.alignment.aligner import LONGEST, Aligner, grey_picture
from flawmap.images.alignment.pose import Frame
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
KINDS: tuple[AlignmentKind, ...] = ("shift", "rigid", "similarity")
"""The simplest first."""
FAR_OUT = 3.0
"""Interquartile ranges below the first quartile (Tukey 1977) at which a match is no longer that of a good part."""
LEAST_RANGE = 0.05
"""Interquartile range, in Fisher's z, that is assumed at least: of few or equal images it is too small by chance."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Good images, small, from which an alignment is learnt.

    Attributes:
        greys: (h, w) float32 each.
        colours: (h, w, 3) uint8 each.
        proportions: (height, width) of what they show.
        size: (height, width) of the images that will be aligned.
    """

    greys: Sequence[Grey]
    colours: Sequence[NDArray[np.uint8]]
    proportions: tuple[float, float]
    size: Size

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
        return cls(greys, colours, frame.proportions, frame.size)


def spread(items: Iterable[ImageSource], n_first: int) -> tuple[list[ImageSource], Iterable[ImageSource]]:
    """Images to learn an aligner from, spread over all, or `n_first` of an iterator; and all images, still unread."""
    if isinstance(items, Sequence):
        return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(MOST_IMAGES, len(items)))], items
    rest = iter(items)
    some = list(islice(rest, n_first))
    return some, chain(some, rest) if len(some) == n_first else some


def learn_aligner(sample: Sample, kind: Alignment) -> Aligner | None:
    """The aligner of some good images; None for none, and where "auto" finds that alignment does not help."""
    if kind == "none" or len(sample.greys) < 2:
        return None
    if kind != "auto":
        return _aligner(sample, learn_reference(sample.greys, kind, sample.proportions))
    spread = np.linspace(0, len(sample.greys) - 1, min(N_SCREENED, len(sample.greys))).round().astype(int)
    screened = [sample.greys[i] for i in spread]
    chosen = _best_kind(screened, KINDS, sample.proportions)
    if chosen is not None and len(screened) < len(sample.greys):
        chosen = _best_kind(sample.greys, (chosen.reference.kind,), sample.proportions)
    return None if chosen is None else _aligner(sample, chosen)


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


def _aligner(sample: Sample, learnt: Learnt) -> Aligner:
    return Aligner(learnt.reference, _mean_colours(sample, learnt), _least_match(learnt.matches), sample.size)


def _least_match(matches: NDArray[np.float64]) -> float:
    """The match below which a part counts as not found: far below those of the good images (in Fisher's z)."""
    scores = np.arctanh(np.clip(matches[matches > LOST], -0.999, 0.999))
    if len(scores) == 0:
        return 0.0
    first, third = np.quantile(scores, [0.25, 0.75])
    return float(np.tanh(first - FAR_OUT * max(third - first, LEAST_RANGE)))


def _mean_colours(sample: Sample, learnt: Learnt) -> NDArray[np.uint8]:
    """Mean (h, w, 3) of the aligned images; pixels that none shows get the mean of the rest."""
    mean, counts = mean_aligned(sample.colours, learnt.poses, learnt.reference.frame)
    return np.round(np.where(counts[..., None] > 0, mean, mean[counts > 0].mean(axis=0))).astype(np.uint8)
