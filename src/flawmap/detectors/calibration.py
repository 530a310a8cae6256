"""Groups of good images, and from their held-out scores to a decision: the same for all detectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import MOST, PIXEL_RATES, Decision, map_score
from flawmap.errors import ParameterError
from flawmap.prediction import Placement

FOLDER = "folder"
"""Images of one folder belong together, as the frames of a clip do."""
HELD_OUT = 4
"""One of so many groups is held out."""


class PixelHistogram:
    """Counts of anomaly-map values in bins of equal ratio, from which any quantile follows within 0.3 %.

    Attributes:
        counts: (BINS,) values in each bin; the first also holds all smaller ones, the last all larger ones.
    """

    BINS = 24576
    LOWEST, HIGHEST = 1e-8, 1e18

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape."""
        scale = (self.BINS - 1) / math.log(self.HIGHEST / self.LOWEST)
        place = np.log(np.maximum(values.ravel(), self.LOWEST) / self.LOWEST) * scale
        self.counts += np.bincount(np.minimum(place, self.BINS - 1).astype(np.int64), minlength=self.BINS)

    def exceeded_by(self, rates: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values that these shares of all values exceed, each rounded up to the edge of a bin."""
        ends = np.cumsum(self.counts)
        place = np.searchsorted(ends, (1 - rates) * ends[-1])
        step = math.log(self.HIGHEST / self.LOWEST) / (self.BINS - 1)
        return np.asarray(self.LOWEST * np.exp(step * np.minimum(place + 1, self.BINS - 1)), np.float32)


@dataclass
class HeldOutScores:
    """Scores of good images by models that have not seen them, in any order.

    Attributes:
        indices: of each image in the training order.
        scores: image scores.
        groups: the group of each image; empty if every image stands alone.
        pixels: how often the values of their anomaly maps occur.
        duplicates: pairs of indices of near-duplicates in different groups, the earlier first.
        top_share: part of a map whose mean is its score; 0 for its highest value.

    Example:
        >>> held_out = HeldOutScores()
        >>> held_out.add(index=0, score=1.5)
        >>> held_out.in_order()[1].scores.tolist()
        [1.5]
    """

    indices: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    top_share: float = 0.0

    def add(self, index: int, score: float, *, group: int | None = None) -> None:
        """Add a good image by its score."""
        self.indices.append(index)
        self.scores.append(score)
        if group is not None:
            self.groups.append(group)

    def add_map(
        self,
        index: int,
        anomaly_map: NDArray[np.float32],
        placement: Placement,
        *,
        group: int | None = None,
        weighed: NDArray[np.float32] | None = None,
    ) -> None:
        """Add a good image by its map (H, W), of which only the pixels that are inspected count.

        Its score is that of `weighed` (H, W), if it is given.
        """
        score = self.count(anomaly_map, placement)
        self.add(index, score if weighed is None else map_score(weighed, self.top_share), group=group)

    def count(self, anomaly_map: NDArray[np.float32], placement: Placement) -> float:
        """Count those values of a good image's map (H, W) that are inspected; gives its score."""
        self.pixels.add(placement.inspected(anomaly_map))
        if placement.roi is not None:
            anomaly_map = anomaly_map * placement.roi
        top, left, bottom, right = placement.content
        return map_score(anomaly_map[top:bottom, left:right], self.top_share)

    def in_order(self) -> tuple[list[int], Decision]:
        """Indices, ascending, and the undecided decision by their scores."""
        order = np.argsort(self.indices, kind="stable")
        sizes = self._group_sizes()
        quantiles = self.pixels.exceeded_by(PIXEL_RATES) if self.pixels.counts.any() else np.zeros(0, np.float32)
        scores = np.array(self.scores, np.float32)[order]
        decision = Decision(scores, quantiles, group_sizes=None if sizes is None else sizes[order])
        return [self.indices[i] for i in order], decision

    def _group_sizes(self) -> NDArray[np.float32] | None:
        if not self.groups:
            return None
        sizes = np.bincount(self.groups)[self.groups].astype(np.float32)
        return sizes if sizes.max() > 1 else None


def conclude(
    held_out: HeldOutScores | None, names: Sequence[str], rate: float, *, lost: Sequence[int] = ()
) -> tuple[Decision | None, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The decision at a false-alarm rate, outliers and near-duplicates, by the `names` of the good images.

    `lost` are indices of images whose part was not found: such are flagged, and count as higher than any score.
    """
    if held_out is None or not held_out.scores:
        return None, (), ()
    for index in lost:
        held_out.add(index, MOST, group=max(held_out.groups) + 1 if held_out.groups else None)
    indices, decision = held_out.in_order()
    outliers = tuple(names[indices[i]] for i in decision.outliers())
    duplicates = tuple((names[earlier], names[later]) for earlier, later in held_out.duplicates)
    return decision.at_rate(rate), outliers, duplicates


def all_scores(scores: Sequence[float] | NDArray[np.floating]) -> HeldOutScores:
    """Scores of all good images, in the training order."""
    return HeldOutScores(list(range(len(scores))), [float(score) for score in scores])


class Grouping:
    """The group of each image, by its name; ParameterError for a rule that is none.

    Args:
        rule: a regular expression, whose first group (or else whole match) in the path names the image's group;
            "folder" for the folder it lies in; a function of the path; or None: every image stands alone.
    """

    def __init__(self, rule: str | Callable[[str], Hashable] | None) -> None:
        self._rule = rule
        try:
            self._pattern = re.compile(rule) if isinstance(rule, str) and rule != FOLDER else None
        except re.error as error:
            raise ParameterError(f"groups: '{rule}' is no regular expression: {error}") from error
        self.members: dict[Hashable, list[int]] = {}
        self.n_images = 0
        self.n_named = 0

    def add(self, name: str) -> Hashable:
        """The group of the next image."""
        group = self._of(name)
        try:
            hash(group)
        except TypeError as error:
            raise ParameterError(f"groups: the function gave {group!r}; expected a text or a number") from error
        if group is None:
            group = (None, self.n_images)  # stands alone
        else:
            self.n_named += 1
        self.members.setdefault(group, []).append(self.n_images)
        self.n_images += 1
        return group

    def check(self) -> None:
        """ParameterError if a rule was given and names the group of no image at all."""
        if self._rule is not None and self.n_images and not self.n_named:
            raise ParameterError(f"groups: {self._rule!r} matches no image's path; every image would stand alone")

    def _of(self, name: str) -> Hashable:
        if self._rule is None:
            return None
        if self._pattern is not None:
            match = self._pattern.search(name)
            return None if match is None else match[1 if match.re.groups else 0]
        if callable(self._rule):
            return self._rule(name)
        return str(PurePath(name).parent)


class HoldOut:
    """Whether a group is held out: one of every four, at random, so that the share is kept for any number.

    Of the first four it is the third: fewer than two groups teach nothing, and three are to give a threshold.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._held: dict[Hashable, bool] = {}
        self._chosen = 0

    def __call__(self, group: Hashable) -> bool:
        """Whether a group is held out; the same answer each time."""
        if group not in self._held:
            turn = len(self._held) % HELD_OUT
            if turn == 0:
                self._chosen = int(self._rng.integers(HELD_OUT)) if self._held else 2
            self._held[group] = turn == self._chosen
        return self._held[group]
