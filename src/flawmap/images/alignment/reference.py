"""Learning the reference from good images: a mean of aligned images, refined over a few rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.images.alignment.pose import Frame, Matrix, inside, pose_matrix, resample
from flawmap.images.alignment.search import LOST, Grey, Reference, correlation, usual_border
from flawmap.options import AlignmentKind

N_SEEDS = 5
"""Good images that are tried as the first reference; the one that matches the others best is taken."""
N_TRIED = 12
"""Images with which each of them is compared."""
ROUNDS = 3
LEFT_OUT = 0.25
"""Part of the images, those that match worst, that is left out of the mean."""
FEWEST = 8
"""Images from which on some are left out."""
WIDEST = 150.0
"""Degrees either way; if good parts are turned further, any angle is searched."""
BEYOND = 6.0
"""Degrees by which parts may be turned further than the good ones, at least; else a tenth of their range."""
SCALES = (0.7, 1.4)
"""Scales that are searched until those of the good images are known."""
BEYOND_SCALE = 1.1


@dataclass(frozen=True, eq=False)
class Learnt:
    """A reference, and how the images it was learnt from lie.

    Attributes:
        reference: the mean of the images that match best, and the angles and scales that occur.
        poses: (N) of all images.
        matches: (N) correlation of each image with the mean of the others; -1 of one that is lost.
    """

    reference: Reference
    poses: list[Matrix]
    matches: NDArray[np.float64]


def learn_reference(greys: Sequence[Grey], kind: AlignmentKind, proportions: tuple[float, float]) -> Learnt:
    """The reference of pictures (h, w) of one size, two at least, that show an extent of `proportions`."""
    frame = Frame((greys[0].shape[0], greys[0].shape[1]), proportions)
    reference = _seed(greys, kind, proportions)
    poses, matches = _transposed(map(reference.locate, greys))
    for _ in range(ROUNDS):
        best = _best(matches)
        centre = _centre([poses[i] for i in best])
        poses = [pose @ centre for pose in poses]
        mean, counts = mean_aligned([greys[i] for i in best], [poses[i] for i in best], frame)
        grey = np.where(counts > 0, mean, np.median([usual_border(grey) for grey in greys])).astype(np.float32)
        reference = Reference(kind, grey, proportions, *_ranges(poses, kind))
        poses, matches = _transposed(map(reference.refine, greys, poses))
    poses, matches = _transposed(map(reference.locate, greys))
    for i in best:  # without the image's own part in the mean
        matches[i] = reference.match(greys[i], poses[i], counts) if matches[i] > LOST else LOST
    return Learnt(reference, poses, matches)


def _transposed(found: Iterable[tuple[Matrix, float]]) -> tuple[list[Matrix], NDArray[np.float64]]:
    """Poses and matches (N)."""
    poses, matches = zip(*found, strict=True)
    return list(poses), np.array(matches)


def match_unaligned(greys: Sequence[Grey]) -> NDArray[np.float64]:
    """Correlation (N) of each picture, as it lies, with the mean of the others."""
    total = np.sum(greys, axis=0, dtype=np.float64)
    return np.array([correlation(grey.ravel(), ((total - grey) / (len(greys) - 1)).ravel()) for grey in greys])


def _seed(greys: Sequence[Grey], kind: AlignmentKind, proportions: tuple[float, float]) -> Reference:
    """The image, of a few, that matches some others best."""

    def spread(n: int) -> list[int]:
        return sorted({round(i) for i in np.linspace(0, len(greys) - 1, n)})

    found: list[tuple[float, Reference]] = []
    for index in spread(N_SEEDS):
        reference = Reference(kind, greys[index], proportions, scales=SCALES if kind == "similarity" else (1.0, 1.0))
        others = [greys[other] for other in spread(N_TRIED) if other != index]
        match = float(np.median([match for _, match in map(reference.locate, others)]))
        found.append((match, reference))
    return max(found, key=lambda one: one[0])[1]


def _best(matches: NDArray[np.float64]) -> list[int]:
    """Indices of the images that make the mean."""
    if len(matches) < FEWEST:
        return list(range(len(matches)))
    return [int(i) for i in np.flatnonzero(matches >= np.quantile(matches, LEFT_OUT))]


def _centre(poses: Sequence[Matrix]) -> Matrix:
    """A change of the reference (3, 3) that makes poses small: unturned if there is a usual angle, in the middle."""
    turns = np.array([complex(pose[0, 0], pose[0, 1]) for pose in poses])
    usual = np.mean(turns / abs(turns))
    angle = float(np.angle(usual)) if abs(usual) > 0.5 else 0.0
    scale = float(np.exp(np.mean(np.log(abs(turns)))))
    linear = [pose[:2, :2] for pose in poses]
    normal = np.sum([part.T @ part for part in linear], axis=0)
    towards = np.sum([part.T @ pose[:2, 2] for part, pose in zip(linear, poses, strict=True)], axis=0)
    middle = -np.linalg.solve(normal, towards)
    return pose_matrix(-angle, 1 / scale, (float(middle[0]), float(middle[1])))


def mean_aligned(
    pictures: Sequence[NDArray[Any]], poses: Sequence[Matrix], frame: Frame
) -> tuple[NDArray[np.float64], Grey]:
    """Mean of aligned pictures of a frame, grey (h, w) float32 or RGB (h, w, 3) uint8; and how many show each pixel.

    Where none does, the mean is 0.
    """
    total, counts = np.zeros(pictures[0].shape), np.zeros(frame.size, np.float32)
    for picture, pose in zip(pictures, poses, strict=True):
        affine = frame.affine(pose)
        seen = inside(affine, frame.size, (0, 0, *frame.size), margin=0.5)
        total[seen] += np.asarray(resample(Image.fromarray(picture), affine, frame.size))[seen]
        counts += seen
    return total / np.maximum(counts, 1).reshape(*frame.size, *(1,) * (total.ndim - 2)), counts


def _ranges(poses: Sequence[Matrix], kind: AlignmentKind) -> tuple[tuple[float, float], tuple[float, float]]:
    """Angles in degrees, and scales, that are searched."""
    furthest = max(abs(math.degrees(math.atan2(pose[0, 1], pose[0, 0]))) for pose in poses)
    limit = furthest + max(BEYOND, 0.1 * furthest)
    angles = (-limit, limit) if limit < WIDEST else (-180.0, 180.0)
    if kind != "similarity":
        return angles, (1.0, 1.0)
    sizes = [math.hypot(pose[0, 0], pose[0, 1]) for pose in poses]
    return angles, (min(sizes) / BEYOND_SCALE, max(sizes) * BEYOND_SCALE)
