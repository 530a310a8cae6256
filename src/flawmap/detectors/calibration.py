"""From good images to a decision, the same for all detectors: what is held out together, and held-out scores."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from flawmap.decision import MOST, PIXEL_RATES, Decision, map_score
from flawmap.errors import ParameterError
from flawmap.options import AUTO
from flawmap.prediction import Placement

FOLDER = "folder"
"""Images of one folder belong together, as the frames of a clip do."""
HELD_OUT = 4
"""One of so many groups is held out."""
NEAR = 0.6
"""Correlation from which images count as near-duplicates, wherever they stand.

Seen under the strongest regularisation: 0.8 to 1 for photos saved again, 0.55 to 0.8 for shifts by a few pixels, below
0.6 for other parts, also in the same pose.
"""
WINDOW = 32
"""How far apart in the order of capture neighbours may be: as many positions of a part may take turns."""
FALSE_LINKS = 0.05
"""Share of the links between neighbours that may be due to chance."""
CHANCE = 0.99
"""Share of pairs farther apart that are less alike than the images of a series must be, on average."""
LONGEST = 1024
"""Most images of a group, so that the time to find one is bounded."""
N_LAGS = 256
"""Distances beyond the window at which images are compared, to know what chance does."""
MOST_COMPARED = 2**24
"""Pairs of images that are compared at a time."""


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
            "folder" for the folder it lies in; a function of the path; "auto" for what the data set says, and what is
            found later; or None: every image stands alone.
        clips: the group that the data set gives an image, by its name.

    Attributes:
        members: indices of each group's images.
        groups: the group of each image.
    """

    def __init__(
        self, rule: str | Callable[[str], Hashable] | None, clips: Mapping[str, Hashable] | None = None
    ) -> None:
        if not (rule is None or isinstance(rule, str) or callable(rule)):
            raise ParameterError(
                f"groups must be 'auto', a regular expression, 'folder', a function or None; got {rule!r}"
            )
        self._rule, self.clips = rule, clips or {}
        try:
            self._pattern = re.compile(rule) if isinstance(rule, str) and rule not in (AUTO, FOLDER) else None
        except re.error as error:
            raise ParameterError(f"groups: '{rule}' is no regular expression: {error}") from error
        self.members: dict[Hashable, list[int]] = {}
        self.groups: list[Hashable] = []
        self._named: set[int] = set()

    def add(self, name: str, copy_of: int | None = None) -> Hashable:
        """The group of the next image; with "auto" the one of an image that it equals."""
        group, index = self._of(name), len(self.groups)
        try:
            hash(group)
        except TypeError as error:
            raise ParameterError(f"groups: the function gave {group!r}; expected a text or a number") from error
        if group is not None:
            self._named.add(index)
        elif self._rule == AUTO and copy_of is not None:
            group = self.groups[copy_of]
        else:
            group = (None, index)  # stands alone
        self.members.setdefault(group, []).append(index)
        self.groups.append(group)
        return group

    @property
    def is_one(self) -> bool:
        """Whether a rule made one group of all images, so that none can be left out."""
        return len(self._named) > 1 and len(self.members) == 1

    def check(self) -> None:
        """ParameterError if a rule was given and names the group of no image at all."""
        if self._rule not in (None, AUTO) and self.groups and not self._named:
            raise ParameterError(f"groups: {self._rule!r} matches no image's path; every image would stand alone")

    @property
    def ungrouped(self) -> list[int]:
        """Indices of the images to which "auto" is to find a group."""
        return [index for index in range(len(self.groups)) if index not in self._named] if self._rule == AUTO else []

    def join(self, found: Sequence[Sequence[int]]) -> None:
        """Make one group of the groups of some images, for each of these lists of indices."""
        for indices in found:
            first, *others = dict.fromkeys(self.groups[index] for index in indices)
            for other in others:
                self.members[first] += self.members.pop(other)
            self.members[first].sort()
            for index in self.members[first]:
                self.groups[index] = first

    def found(self) -> list[list[int]]:
        """Groups of several images that neither a rule nor the data set names."""
        several = [group for group in self.members.values() if len(group) > 1] if self._rule == AUTO else []
        return [group for group in several if self._named.isdisjoint(group)]

    def _of(self, name: str) -> Hashable:
        if self._rule is None:
            return None
        if self._rule == AUTO:
            return self.clips.get(name)
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


def near_duplicates(vectors: NDArray[np.float32], groups: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of near-duplicates in different groups: for each image the earlier one most like it.

    Of unit vectors (N, d), whose products are the correlations of images.
    """
    pairs = []
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group = np.array([numbers[name] for name in groups])
    step = max(1, MOST_COMPARED // max(1, len(vectors)))
    for start in range(0, len(vectors), step):
        stop = min(start + step, len(vectors))
        alike = vectors[start:stop] @ vectors[:stop].T
        later = np.arange(start, stop)[:, None] <= np.arange(stop)
        alike[later | (group[start:stop, None] == group[:stop])] = -np.inf
        earlier = alike.argmax(axis=1)
        best = alike[np.arange(len(alike)), earlier]
        pairs += [(int(earlier[i]), start + int(i)) for i in np.flatnonzero(best > NEAR)]
    return pairs


def find_groups(
    vectors: NDArray[np.float32],
    strict: NDArray[np.float32] | None = None,
    that_matter: Callable[[list[list[int]]], list[list[int]]] = lambda groups: groups,
) -> list[list[int]]:
    """Groups, each of two images or more and ascending, of images with unit vectors (N, d) in the order of capture.

    Near-duplicates are groups, and so are neighbours that are more alike than chance allows (`link_neighbours`), of
    whose groups a function gives those `that_matter`. Near-duplicates are told by the vectors `strict` (N, D), in which
    chance is least, if there are any.
    """
    strict = vectors if strict is None else strict
    near = near_duplicates(strict, range(len(strict)))
    links, chance = link_neighbours(vectors)
    series = that_matter(_hang_together(vectors, [*near, *links], chance)) if links else []
    taken = {index for group in series for index in group}
    alone = [[index for index in group if index not in taken] for group in _hang_together(strict, near, NEAR / 2)]
    return sorted([*series, *(group for group in alone if len(group) > 1)])


def _hang_together(vectors: NDArray[np.float32], links: Sequence[tuple[int, int]], least: float) -> list[list[int]]:
    """Groups of images that hang together by links, each ascending.

    The most alike are joined first, for as long as the mean correlation within a group is at least `least` (average
    linkage). A burst that drifts is so cut where its ends are no longer alike, and no chain of links makes one group of
    everything.
    """
    if not links:
        return []
    from scipy.cluster.hierarchy import fcluster, linkage  # takes a while to import, which a prediction need not wait
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends, count = np.array(links, np.int64), len(vectors)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    ordered = np.argsort(component, kind="stable")
    groups = []
    for members in np.split(ordered, np.flatnonzero(np.diff(component[ordered])) + 1):
        for part in (members[start : start + LONGEST] for start in range(0, len(members), LONGEST)):
            if len(part) == 1:
                continue
            apart = 1 - vectors[part] @ vectors[part].T
            upper = apart[np.triu_indices(len(part), 1)].clip(min=0)
            label = fcluster(linkage(upper, "average"), 1 - least, "distance")
            groups += [part[label == one].tolist() for one in np.unique(label)]
    return [group for group in groups if len(group) > 1]


def link_neighbours(vectors: NDArray[np.float32]) -> tuple[list[tuple[int, int]], float]:
    """Pairs (earlier, later) of neighbours more alike than chance allows, of unit vectors (N, d) in order; and chance.

    At each distance up to `WINDOW`, pairs are linked from the least correlation at which at most `FALSE_LINKS` of the
    links are false. How many are false is known from pairs farther apart (Benjamini and Hochberg 1995). Where the order
    says nothing of likeness, pairs at every distance are alike, and none is linked: parts that look the same by chance
    are no burst, since the next part may look like them too. Chance is the correlation that one in a hundred pairs
    farther apart exceeds.
    """
    count = len(vectors)
    window = min(WINDOW, count // 4)
    lags = np.unique(np.linspace(window + 1, count - 1, N_LAGS).astype(int)) if count > 1 else ()
    if not len(lags):
        return [], 0.0
    far = np.sort(np.concatenate([_correlations(vectors, int(lag)) for lag in lags]))
    links = []
    for lag in range(1, window + 1):
        alike = _correlations(vectors, lag)
        falling = np.sort(alike)[::-1]
        by_chance = (len(far) - np.searchsorted(far, falling) + 1) / (len(far) + 1) * len(falling)
        kept = np.flatnonzero(by_chance + 1 <= FALSE_LINKS * np.arange(1, len(falling) + 1))
        if len(kept):
            links += [(int(i), int(i) + lag) for i in np.flatnonzero(alike >= falling[kept[-1]])]
    return links, float(np.quantile(far, CHANCE))


def _correlations(vectors: NDArray[np.float32], lag: int) -> NDArray[np.float32]:
    """Correlation (N - lag,) of each image with the one so much later."""
    return np.asarray(np.einsum("nd,nd->n", vectors[:-lag], vectors[lag:]), np.float32)
