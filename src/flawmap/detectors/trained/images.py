"""Good images in two parts: those a network learns from, and those held out for honest scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flawmap.detectors.grouping import Grouping, HoldOut
from flawmap.errors import TrainingSetError
from flawmap.images import Loaded, Preprocessing, Replay
from flawmap.progress import Progress, report_progress

__all__ = ["ReplayedImages", "Split", "crop", "split_images"]


@dataclass(frozen=True, eq=False)
class Split:
    """Places, in the training order, of good images.

    Attributes:
        learnt: those to learn from.
        held_out: those of each group that is held out.
        copies: names of images that equal an earlier one of another group.
        digest: fingerprint of the learnt images' pixels.
    """

    learnt: list[int]
    held_out: list[list[int]]
    copies: tuple[str, ...]
    digest: str


def split_images(
    replay: Replay,
    count: int | None,
    *,
    hold_out: bool,
    groups: str | Callable[[str], Hashable] | None,
    seed: int,
    progress: Progress,
) -> Split:
    """Read all good images once, and part them.

    Raises TrainingSetError for fewer than two to learn from, and for ones that cannot be read again.
    """
    grouping, held_out = Grouping(groups), HoldOut(seed) if hold_out else None
    digests: list[bytes] = []
    with report_progress(progress, "Reading", count) as advance:
        for image in replay.first():
            grouping.add(image.name)
            digests.append(hashlib.blake2b(image.pixels.tobytes(), digest_size=16).digest())
            advance(1)
    grouping.check()
    again = set(replay.places)
    if len(again) < grouping.n_images:
        raise TrainingSetError(
            f"{grouping.n_images - len(again)} of {grouping.n_images} images came from an iterator and did not fit "
            f"into cache_mb; a training sees them many times: give files or a list, or a larger cache_mb"
        )
    held = [group for key, group in grouping.members.items() if held_out is not None and held_out(key)]
    out = {place for group in held for place in group}
    learnt = sorted(again - out)
    if len(learnt) < 2:
        raise TrainingSetError(
            f"a network learns from at least 2 good images, got {len(learnt)} usable; a few dozen are a good start"
        )
    group_of = {place: number for number, group in enumerate(grouping.members.values()) for place in group}
    return Split(
        learnt,
        held,
        tuple(replay.names[later] for first, later in replay.copies if group_of[first] != group_of[later]),
        hashlib.sha256(b"".join(digests[place] for place in learnt)).hexdigest(),
    )


class ReplayedImages:
    """Good images to learn from, by their number; `window` crops them, else they are whole.

    A `flawmap.detectors.trained.pixels.GoodImages`.
    """

    def __init__(self, replay: Replay, places: Sequence[int], window: Preprocessing | None) -> None:
        self._replay, self._places, self._window = replay, places, window

    def __len__(self) -> int:
        return len(self._places)

    def take(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Some of them, (B, H, W, 3)."""
        images = self._replay.second([self._places[number] for number in numbers])
        return np.stack([(crop(image, self._window) if self._window else image).pixels for image in images])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """All of them, in order."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))


def crop(image: Loaded, preprocessing: Preprocessing) -> Loaded:
    """An image that was resized, and not cropped yet, as the model takes it."""
    if preprocessing.crop is None:
        return image
    placement = preprocessing.place(image.placement.image_size)
    canvas = preprocessing.place(preprocessing.resize)  # of an image that has that size already
    (top, left), (height, width) = canvas.offset, preprocessing.input_size
    return replace(image, pixels=image.pixels[top : top + height, left : left + width], placement=placement)
