"""Good images of a fit: a first pass over all of them, then more over some, as far as they can be read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain, islice

from flawmap.backbones import COMPILE_FROM
from flawmap.datasets import training_images
from flawmap.detectors.batches import Batch, check_size, in_batches, make_batch
from flawmap.detectors.grouping import Grouping, HoldOut
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, Replay, collect, stream
from flawmap.options import Groups, OnBad
from flawmap.progress import Progress, report_progress

__all__ = ["GoodImages"]


class GoodImages:
    """What a detector learns from. `first` reads every image once; the attributes below then say what was read.

    Args:
        images: as `Detector.fit` gets them.
        preprocessing: what makes the model's input of them.
        groups: which images belong together.
        hold_out: seed of the draw of images to hold out, one group of four; None to learn from all.
        cache_mb: memory for images between the passes.
        whole: whether images come before their crop.
        batch_size: images per step; None for the detector's choice.
        on_bad: called with each image that cannot be used; None raises ImageError.
        workers: threads that read images.
        progress: as for `Detector.fit`.

    Attributes:
        count: how many images there are, bad ones included; None where only reading on will tell.
        at_least: the same, or how many there are at least.
        learnt: indices in the training order of the images to learn from.
    """

    def __init__(
        self,
        images: ImageInput,
        preprocessing: Preprocessing,
        *,
        groups: Groups | None = None,
        hold_out: int | None = None,
        cache_mb: float = 0,
        whole: bool = False,
        batch_size: int | None = None,
        on_bad: OnBad | None = None,
        workers: int | None = None,
        progress: Progress = False,
    ) -> None:
        if batch_size is not None:
            check_size(batch_size)
        collection = collect(training_images(images) if isinstance(images, (str, os.PathLike)) else images)
        self._items, self.count = collection.items, collection.count
        self.at_least = len(self._peek()) if self.count is None else self.count
        self._preprocessing, self._on_bad, self._workers = preprocessing, on_bad, workers
        self._progress, self.batch_size = progress, batch_size
        self._grouping = Grouping(groups)
        self._held_out = None if hold_out is None else HoldOut(hold_out)
        self._replay_options = {"cache_mb": cache_mb, "on_bad": on_bad, "workers": workers, "whole": whole}
        self._replay: Replay | None = None
        self.learnt: list[int] = []

    @property
    def replay(self) -> Replay:
        """The images that were read."""
        if self._replay is None:
            self._replay = Replay(self._items, self._preprocessing, **self._replay_options)  # type: ignore[arg-type]
        return self._replay

    @property
    def names(self) -> list[str]:
        """Names of all images that were read, in the training order."""
        return self.replay.names

    @property
    def digest(self) -> str:
        """Fingerprint of the pixels of the images to learn from."""
        return hashlib.sha256(b"".join(self.replay.digests[index] for index in self.learnt)).hexdigest()

    def look_ahead(self, size: int) -> Iterator[Batch]:
        """All images, before the first pass; bad ones are left out without a word, since the first pass names them."""
        self._items = list(self._items)
        quietly = self._on_bad and (lambda _: None)
        return in_batches(stream(self._items, self._preprocessing, on_bad=quietly, workers=self._workers), size)

    def first(self, size: int, description: str = "Learning") -> Iterator[Batch]:
        """The images to learn from, in batches of `size` unless the user chose another; those held out are left out.

        Raises ParameterError if a rule was given for groups and it matches no image at all.
        """
        with self.progress(description, self.count) as advance:
            entries = self._entries(advance)
            while chosen := list(islice(entries, self.batch_size or size)):
                indices, groups, images = zip(*chosen, strict=True)
                yield make_batch(images, indices, groups)
                advance(len(chosen))
        self._grouping.check()

    def again(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Some of the images once more, in this order."""
        done = 0
        images = self.replay.second(indices)
        while chosen := list(islice(images, size)):
            yield make_batch(chosen, indices[done : done + len(chosen)])
            done += len(chosen)

    def progress(self, description: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Reports progress: a context that gives a function to call with the number of images just done."""
        return report_progress(self._progress, description, total)

    def groups(self, *, held_out: bool = False) -> list[list[int]]:
        """Indices of the images of each group that can be read again: whole groups, or what is left of one held out."""
        again = set(self.replay.again)
        members = self._grouping.members.items()
        if held_out:
            held = [group for key, group in members if self._held_out is not None and self._held_out(key)]
            return [[index for index in group if index in again] for group in held]
        return [group for _, group in members if again.issuperset(group)]

    def copies(self) -> tuple[str, ...]:
        """Names of images that equal an earlier one of another group."""
        group_of = {index: number for number, group in enumerate(self._grouping.members.values()) for index in group}
        return tuple(self.names[later] for earlier, later in self.replay.copies if group_of[earlier] != group_of[later])

    def _entries(self, advance: Callable[[int], None]) -> Iterator[tuple[int, Hashable, Loaded]]:
        """Index, group and image of each image to learn from."""
        for index, image in enumerate(self.replay.first()):
            group = self._grouping.add(image.name)
            if self._held_out is not None and self._held_out(group):
                advance(1)
                continue
            self.learnt.append(index)
            yield index, group, image

    def _peek(self) -> list[ImageSource]:
        """The first images of an iterator, as many as decide how the networks run; all of them stay to be read."""
        rest = iter(self._items)
        first = list(islice(rest, COMPILE_FROM))
        self._items = chain(first, rest) if len(first) == COMPILE_FROM else first
        return first
