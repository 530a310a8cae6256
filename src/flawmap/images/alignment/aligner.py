"""Brings the part of every image to where it lies in the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawmap.images.alignment.pose import Box, Frame, Matrix, inside, resample
from flawmap.images.alignment.search import Grey, Reference, usual_border
from flawmap.images.photo import Reduction
from flawmap.images.preprocessing import Preprocessing
from flawmap.prediction import Placement, Pose, Size

LONGEST = 256
"""Longer side, at most, of what an alignment keeps of pictures, in pixels."""
SAMPLED = 4
"""Of so many rows and columns one is looked at for an image's brightness."""


@dataclass(frozen=True, eq=False)
class Aligner:
    """Finds a part, and turns and shifts its image as the reference lies.

    Attributes:
        reference: what the part looks like, and how it may lie.
        colours: (h, w, 3) uint8, the mean of aligned good images; it stands in where an image shows nothing.
        least_match: correlation with the reference below which a part counts as not found.
        size: (height, width) of the images that are aligned.
        least_shown: share of the part that an image must show of it, for it to count as found.
    """

    reference: Reference
    colours: NDArray[np.uint8]
    least_match: float
    size: Size
    least_shown: float = 0.0

    @property
    def frame(self) -> Frame:
        """Of the images that are aligned."""
        return Frame(self.size, self.reference.proportions)

    @cached_property
    def _stand_in(self) -> Image.Image:
        """The mean colours, of the size of images."""
        return Image.fromarray(self.colours).resize(self.size[::-1], Image.Resampling.BILINEAR)

    @cached_property
    def _part(self) -> NDArray[np.float32]:
        """(*size): how much of the part each pixel of the reference holds, by its contrast; the sum is 1."""
        grey = np.asarray(Image.fromarray(self.reference.grey).resize(self.size[::-1], Image.Resampling.BILINEAR))
        contrast = np.square(grey - usual_border(grey))
        return np.asarray(contrast / max(float(contrast.sum(dtype=np.float64)), 1e-6), np.float32)

    def shown(self, seen: NDArray[np.bool_]) -> float:
        """Share of the part among some pixels (*size) of the reference."""
        return float(self._part[seen].sum(dtype=np.float64))

    def locate(self, canvas: NDArray[np.uint8], content: Box) -> tuple[Matrix, float]:
        """The part's pose in an image (H, W, 3) that shows something inside `content`, and how well it was found."""
        return self.reference.locate(grey_picture(canvas, content, self.reference.frame.size))

    def is_found(self, match: float, seen: NDArray[np.bool_]) -> bool:
        """Whether an image of which these pixels (*size) are seen shows the part, by how well they agree."""
        return match >= self.least_match and self.shown(seen) >= self.least_shown

    def move(self, canvas: NDArray[np.uint8], content: Box, affine: Matrix) -> NDArray[np.uint8]:
        """The image (H, W, 4) as the reference lies; its fourth channel is 255 where the image shows something.

        Elsewhere it has the mean colours, as much brighter or darker as the image is: a seam would look like a defect.
        """
        seen = inside(affine, self.size, content, margin=0.5)
        moved = resample(Image.fromarray(canvas), affine, self.size)
        mask = Image.fromarray(seen.astype(np.uint8) * 255)
        if not seen.all():
            moved = Image.composite(moved, self._stand_in_for(moved, seen), mask)
        moved.putalpha(mask)
        return np.asarray(moved)

    def _stand_in_for(self, moved: Image.Image, seen: NDArray[np.bool_]) -> Image.Image:
        """The mean colours, as bright as an image where it is seen (*size)."""
        some = np.s_[SAMPLED // 2 :: SAMPLED, SAMPLED // 2 :: SAMPLED]
        change = (np.asarray(moved)[some].astype(np.float32) - np.asarray(self._stand_in)[some])[seen[some]]
        if not len(change):
            return self._stand_in
        levels = np.arange(256) + np.round(change.mean(axis=0))[:, None]
        return self._stand_in.point(np.clip(levels, 0, 255).astype(np.uint8).ravel().tolist())


@dataclass(frozen=True)
class AlignedPreprocessing(Preprocessing):
    """From an image of any size to the model's input, aligned: RGB and, as a fourth channel, what the image shows.

    Attributes:
        aligner: finds the part.
    """

    aligner: Aligner | None = None

    @classmethod
    def of_aligner(cls, plain: Preprocessing, aligner: Aligner) -> Self:
        """The same, aligned."""
        return cls(plain.resize, plain.crop, plain.aspect, plain.bits, plain.reading, aligner)

    @property
    def n_channels(self) -> int:
        """Channels of the model's input: RGB, and what the image shows."""
        return 4

    def apply(
        self, rgb: NDArray[np.uint8] | Image.Image, *, whole: bool = False, reduction: Reduction | None = None
    ) -> tuple[NDArray[np.uint8], Placement]:
        """The model's input (h, w, 4) uint8 from RGB (H, W, 3) uint8, and where it lies on the image."""
        if self.aligner is None:
            raise ValueError("there is no aligner")
        canvas, plain = super().apply(rgb, whole=True, reduction=reduction)
        content = self.content(plain.resized_size)
        pose, match = self.aligner.locate(canvas, content)
        affine = self.aligner.frame.affine(pose)
        aligned = self.aligner.move(canvas, content, affine)
        rows, columns = self.window
        tall, wide = (plain.image_size[axis] / plain.resized_size[axis] for axis in (0, 1))
        on_photo = np.array([[tall, 0, -content[0] * tall], [0, wide, -content[1] * wide]]) @ affine
        on_window = on_photo @ np.array([[1, 0, rows.start], [0, 1, columns.start], [0, 0, 1]])
        middle = on_photo @ np.array([self.resize[0] / 2, self.resize[1] / 2, 1])
        placement = replace(
            plain,
            affine=(tuple(on_window[0].tolist()), tuple(on_window[1].tolist())),
            pose=Pose(
                angle=math.degrees(math.atan2(pose[0, 1], pose[0, 0])),
                scale=math.hypot(pose[0, 0], pose[0, 1]),
                shift=(float(middle[0] - plain.image_size[0] / 2), float(middle[1] - plain.image_size[1] / 2)),
                match=match,
                found=self.aligner.is_found(match, aligned[..., 3] > 0),
            ),
        )
        return aligned if whole else np.ascontiguousarray(aligned[rows, columns]), placement


def grey_picture(canvas: NDArray[np.uint8], content: Box, size: Size) -> Grey:
    """Grey of an image (H, W, 3), averaged to a size; a letterbox's padding becomes the usual border of the rest."""
    grey = np.asarray(Image.fromarray(canvas).convert("L"))
    top, left, bottom, right = content
    if (top, left, bottom, right) != (0, 0, *grey.shape):
        inner = grey[top:bottom, left:right]
        grey = np.full_like(grey, usual_border(inner))
        grey[top:bottom, left:right] = inner
    return np.asarray(Image.fromarray(grey).resize(size[::-1], Image.Resampling.BOX), np.float32)
