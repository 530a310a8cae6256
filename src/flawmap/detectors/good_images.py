"""Good images of a fit: a first pass over all of them, then more over some, as far as they can be read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain, islice, tee
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from flawmap.backbones import COMPILE_FROM
from flawmap.datasets import Dataset, training_data
from flawmap.decision import has_proportions
from flawmap.detectors.batches import Batch, check_size, in_batches, make_batch
from flawmap.detectors.calibration import Grouping, HoldOut
from flawmap.errors import ParameterError
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, collect, digest, stream
from flawmap.images.alignment import AlignedPreprocessing, Aligner, Sample, learn_aligner, spread
from flawmap.images.roi import RoiPreprocessing
from flawmap.images.search import capture_order, is_flat
from flawmap.options import MAX_BITS, MIN_BITS, Alignment, Groups, OnBad
from flawmap.prediction import Size
from flawmap.progress import Progress, report_progress

LOST = "its part was not found, and it was not learnt; its like will be flagged"
"""Remark on a good image that could not be aligned."""
ONE_GROUP = "all good images fell into one group, so none can be left out: check groups (--groups)"
ALIGNMENT = 64
"""Bytes to a multiple of which each part of the memory is rounded up, as vector instructions like it."""


class GoodSources(NamedTuple):
    """Good images not yet read, the first of them, how many (None: unknown), and the data set's group by name."""

    items: Iterable[ImageSource]
    first: Sequence[ImageSource]
    n_images: int | None
    clips: Mapping[str, Hashable]

    @classmethod
    def find(cls, images: ImageInput | Dataset) -> Self:
        """The images meant by the argument of `Detector.fit`. Of an iterator the first ones are taken, and kept."""
        if isinstance(images, (str, os.PathLike)) and not is_flat(images):
            images = training_data(images)
        images, clips = (images.train, images.clips) if isinstance(images, Dataset) else (images, {})
        collection = collect(images)
        rest = iter(collection.items)
        first = list(islice(rest, COMPILE_FROM))
        unread = collection.items if collection.count is not None else chain(first, rest)
        return cls(first if len(first) < COMPILE_FROM else unread, first, collection.count, clips)


class GoodImages:
    """What a detector learns from. `first` reads every image once; the attributes below then say what was read.

    `hold_out` is the seed of a draw that holds out one group of four; None to learn from all. With `whole`, images come
    before their crop. The other arguments are those of `Detector.fit` and the parameters of detectors.

    Attributes:
        count: how many images there are, bad ones included; None where only reading on will tell.
        at_least: the same, or how many there are at least.
        learnt: indices in the training order of the images to learn from.
        lost: indices of those whose part was not found, which are not learnt.
        flagged: those of them that would be scored, if it had been found.
        grouping: the group of each image that was read.
    """

    def __init__(
        self,
        sources: GoodSources,
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
        check_size(batch_size)
        self._items, self.count = sources.items, sources.n_images
        self.at_least = len(sources.first) if self.count is None else self.count
        self._preprocessing, self._on_bad, self._workers = preprocessing, on_bad, workers
        self._progress, self.batch_size = progress, batch_size
        self.grouping = Grouping(groups, sources.clips)
        self._held_out = None if hold_out is None else HoldOut(hold_out)
        self._replay_options = {"cache_mb": cache_mb, "on_bad": on_bad, "workers": workers, "whole": whole}
        self._replay: Replay | None = None
        self.learnt, self.lost, self.flagged = list[int](), list[int](), list[int]()

    @property
    def aligned(self) -> bool:
        """Whether the images come aligned, and so may not show every position."""
        return self._preprocessing.n_channels > 3

    def inspect(self, roi: NDArray[np.bool_]) -> None:
        """Inspect only a region (h, w) of the images; before the first pass, and after `align`."""
        self._preprocessing = RoiPreprocessing.of_roi(self._preprocessing, roi)

    def align(self, kind: Alignment, *, in_part: bool = False) -> Aligner | None:
        """Learn an aligner from some of the images, before the first pass, and align all; None where none is used.

        Bad images are left out without a word, since the first pass names them. `in_part` if only a region of the
        images will be inspected.
        """
        if kind == "none":
            return None
        some, self._items = spread(self._items, COMPILE_FROM)  # so many are held anyway
        options: dict[str, Any] = {"on_bad": lambda _: None, "workers": self._workers, "whole": True}
        images = list(stream(some, self._preprocessing, **options))
        if len(images) < 2:
            return None
        aligner = learn_aligner(Sample.of(images, self._preprocessing), kind, in_part=in_part)
        if aligner is not None:
            self._preprocessing = AlignedPreprocessing.of_aligner(self._preprocessing, aligner)
        return aligner

    @property
    def replay(self) -> Replay:
        """The images that were read."""
        if self._replay is None:
            self._replay = Replay(self._items, self._preprocessing, **self._replay_options)  # type: ignore[arg-type]
        return self._replay

    @property
    def readable(self) -> list[int]:
        """Indices, ascending, of the images to learn from that can be read again."""
        return sorted(set(self.learnt) & set(self.replay.again))

    @property
    def names(self) -> list[str]:
        """Names of all images that were read, in the training order."""
        return self.replay.names

    @property
    def digest(self) -> str:
        """Fingerprint of the pixels of the images to learn from."""
        return hashlib.sha256(b"".join(self.replay.digests[index] for index in self.learnt)).hexdigest()

    def digests(self, most: int) -> tuple[str, ...]:
        """Digest of the model's input from every image that was read, in the training order; at most so many."""
        return tuple(seen.hex() for seen in self.replay.input_digests[:most])

    def remarks(self, alone: str | None) -> dict[str, tuple[str, ...]]:
        """What is unusual, in words, with the names of the images; `alone` names a detector that takes no groups."""
        found = self.photos.remarks(self._preprocessing)
        if self.lost:
            found[LOST] = tuple(self.names[index] for index in self.lost)
        if alone is not None and (clips := self.grouping.clips):
            remark = f"{alone} leaves out single images, and not their clips or series: expect more false alarms"
            found[remark] = tuple(clips)
        if self.grouping.is_one:
            found[ONE_GROUP] = tuple(self.names)
        return found

    @property
    def photos(self) -> Photos:
        """What the photos that were read are like."""
        return self.replay.photos

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
        self.grouping.check()

    def again(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Some of the images once more, in this order."""
        done = 0
        images = self.replay.second(indices)
        while chosen := list(islice(images, size)):
            yield make_batch(chosen, indices[done : done + len(chosen)])
            done += len(chosen)

    def progress(self, description: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Reports progress: a context that gives a function to call with the number of images just done."""
        return report_progress(self._progress, description, total) if self._progress else nullcontext(lambda _: None)

    def groups(self, *, held_out: bool = False) -> list[list[int]]:
        """Indices of the images of each group that can be read again: whole groups, or what is left of one held out."""
        again = set(self.replay.again) - set(self.lost)
        members = self.grouping.members.items()
        if held_out:
            held = [group for key, group in members if self._held_out is not None and self._held_out(key)]
            return [[index for index in group if index in again] for group in held]
        kept = [[index for index in group if index not in self.lost] for _, group in members]
        return [group for group in kept if group and again.issuperset(group)]

    def in_order(self, indices: Sequence[int]) -> list[int]:
        """Images of these indices in the order of capture."""
        sources = [self.replay.source(index) for index in indices]
        return [indices[place] for place in capture_order([self.names[index] for index in indices], sources)]

    def found(self) -> tuple[tuple[str, ...], ...]:
        """Names of the images of each group that neither the user nor the data set has named."""
        return tuple(tuple(self.names[index] for index in group) for group in self.grouping.found())

    def copies(self) -> tuple[str, ...]:
        """Names of images that equal an earlier one of another group."""
        group = self.grouping.groups
        return tuple(self.names[later] for earlier, later in self.replay.copies if group[earlier] != group[later])

    def _entries(self, advance: Callable[[int], None]) -> Iterator[tuple[int, Hashable, Loaded]]:
        """Index, group and image of each image to learn from."""
        for index, image in enumerate(self.replay.first()):
            copies = self.replay.copies
            group = self.grouping.add(image.name, copies[-1][0] if copies and copies[-1][1] == index else None)
            is_held = self._held_out is not None and self._held_out(group)
            is_lost = image.placement.pose is not None and not image.placement.pose.found
            self.lost += [index] if is_lost else []
            self.flagged += [index] if is_lost and (is_held or self._held_out is None) else []
            if is_lost or is_held:
                advance(1)
                continue
            self.learnt.append(index)
            yield index, group, image


class Replay:
    """Images for two passes.

    Beyond the budget those of a list are read again, from files or from the list; those that an iterator gave, and that
    have no file, are left out of the second pass.

    Attributes:
        names, digests: of the images of the first pass, in its order; a digest is of the pixels made ready.
        input_digests: the same of the model's inputs, after the crop.
        photos: what they are like.
        copies: indices (earlier, later) of images whose pixels, made ready for the model, are equal.
    """

    def __init__(
        self,
        items: Iterable[ImageSource],
        preprocessing: Preprocessing,
        *,
        cache_mb: float,
        on_bad: OnBad | None = None,
        workers: int | None = None,
        whole: bool = False,
    ) -> None:
        self._items = items
        self._whole = whole
        self._preprocessing = preprocessing
        self._on_bad = on_bad
        self._workers = workers
        # one block, touched as it fills: many small arrays among the large ones of a fit would fragment the memory
        self._free = reserve_memory(cache_mb)
        self._again: dict[int, Loaded | ImageSource] = {}  # index in the first pass: what was kept, or its source
        self._seen: dict[bytes, int] = {}
        self.digests: list[bytes] = []
        self.input_digests: list[bytes] = []
        self.photos = Photos()
        self.names: list[str] = []
        self.copies: list[tuple[int, int]] = []

    def first(self) -> Iterator[Loaded]:
        """All images; bad ones raise, or are reported to `on_bad` and left out."""
        options: dict[str, Any] = {"on_bad": self._on_bad, "workers": self._workers, "whole": self._whole}
        for image in stream(self._items, self._preprocessing, **options):
            seen = digest(image.pixels)
            self.digests.append(seen)
            crops = self._whole and self._preprocessing.crop is not None
            self.input_digests.append(digest(image.pixels[self._preprocessing.window]) if crops else seen)
            self.photos.add(image)
            if (earlier := self._seen.setdefault(seen, len(self.names))) < len(self.names):
                self.copies.append((earlier, len(self.names)))
            if (memory := self.reserve(image.pixels.size)) is not None:
                kept = memory.reshape(image.pixels.shape)
                kept[:] = image.pixels
                self._again[len(self.names)] = replace(image, pixels=kept)
            else:
                self._free = self._free[:0]
                if image.source is not None:
                    self._again[len(self.names)] = image.source
                elif isinstance(self._items, Sequence):
                    self._again[len(self.names)] = self._items[image.number - 1]
            self.names.append(image.name)
            yield image

    @property
    def again(self) -> list[int]:
        """Indices in the first pass of the images that the second can give, ascending."""
        return list(self._again)

    def second(self, indices: Iterable[int]) -> Iterator[Loaded]:
        """Some of the images that are there `again`, in this order; ImageError if a file has become unreadable."""
        ahead, wanted = tee(self._again[index] for index in indices)
        to_read = (entry for entry in ahead if not isinstance(entry, Loaded))
        read = stream(to_read, self._preprocessing, workers=self._workers, whole=self._whole)
        for entry in wanted:
            yield entry if isinstance(entry, Loaded) else next(read)

    def source(self, index: int) -> ImageSource | None:
        """What an image of the first pass came from, if that is known."""
        entry = self._again.get(index)
        return entry.source if isinstance(entry, Loaded) else entry

    def reserve(self, n_bytes: int) -> NDArray[np.uint8] | None:
        """Memory out of the budget, for what else is to be kept for the second pass; None if there is not enough."""
        taken = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if taken > len(self._free):
            return None
        reserved, self._free = self._free[:n_bytes], self._free[taken:]
        return reserved


class Photos:
    """Sizes and depths of the good images' photos, and what there is to say of them."""

    def __init__(self) -> None:
        self._by_size: dict[Size, list[str]] = {}
        self._by_bits: dict[int, list[str]] = {}
        self._by_remark: dict[str, list[str]] = {}
        self._deep: list[str] = []  # of 16 bits, with the highest sample of all
        self._highest = 0

    def add(self, image: Loaded) -> None:
        """Add a photo."""
        self._by_size.setdefault(image.placement.image_size, []).append(image.name)
        self._by_bits.setdefault(image.bits, []).append(image.name)
        for remark in image.remarks:
            self._by_remark.setdefault(remark, []).append(image.name)
        if image.bits == MAX_BITS and image.highest is not None:
            self._deep.append(image.name)
            self._highest = max(self._highest, image.highest)

    @property
    def bits(self) -> int | None:
        """Bits of a sample; None if photos differ."""
        return next(iter(self._by_bits)) if len(self._by_bits) == 1 else None

    def sizes(self, most: int) -> tuple[Size, ...]:
        """Distinct sizes (height, width), most frequent first."""
        return tuple(sorted(self._by_size, key=lambda size: -len(self._by_size[size]))[:most])

    def remarks(self, preprocessing: Preprocessing) -> dict[str, tuple[str, ...]]:
        """What is unusual, in words, with the names of the photos; as it matters to this preprocessing."""
        found = {remark: tuple(names) for remark, names in self._by_remark.items()}
        usual, *others = sorted(self._by_bits, key=lambda bits: -len(self._by_bits[bits])) or [0]
        for bits in others:
            found[f"its samples have {bits} bits, those of most good images {usual}"] = tuple(self._by_bits[bits])
        used = max(MIN_BITS, self._highest.bit_length())
        if preprocessing.bits is None and self._highest > 0 and used < MAX_BITS:
            remark = f"the 16-bit images use 0..{2**used - 1} of 65535: --bits {used} scales them to the full range"
            found[remark] = tuple(self._deep)
        found |= self._squashed() if preprocessing.aspect == "squash" else {}
        return found | self._enlarged(preprocessing)

    def _enlarged(self, preprocessing: Preprocessing) -> dict[str, tuple[str, ...]]:
        """The remark on photos that are smaller than what is made of them."""
        small = []
        for size, names in self._by_size.items():
            resized = preprocessing.place(size).resized_size
            small += names if resized[0] > size[0] or resized[1] > size[1] else []
        height, width = preprocessing.resize
        enlarged = f"it is smaller than {height} x {width} (height x width), to which it is enlarged"
        remark = f"{enlarged}: a smaller --resize will do"
        return {remark: tuple(small)} if small else {}

    def _squashed(self) -> dict[str, tuple[str, ...]]:
        """The remark on photos of other proportions than most have."""
        usual, *sizes = self.sizes(len(self._by_size)) or [(1, 1)]
        others = [size for size in sizes if not has_proportions(size, usual)]
        if not others:
            return {}
        remark = (
            f"good images of {usual[0]} x {usual[1]} and {others[0][0]} x {others[0][1]} (height x width) are squashed "
            f"into one shape; crop them alike, or use --aspect letterbox"
        )
        return {remark: tuple(name for size in others for name in self._by_size[size])}


def reserve_memory(cache_mb: float) -> NDArray[np.uint8]:
    """Memory of so many megabytes, which the system gives as it fills; ParameterError if there can never be so much."""
    try:
        return np.empty(int(cache_mb * 2**20), np.uint8)
    except MemoryError as error:
        raise ParameterError(f"cache_mb={cache_mb:g} is more memory than there is; give less") from error
