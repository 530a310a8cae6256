"""Which good images belong together, and which are held out."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from pathlib import PurePath

import numpy as np

from flawmap.errors import ParameterError

__all__ = ["FOLDER", "HELD_OUT", "Grouping", "HoldOut"]

FOLDER = "folder"
"""Images of one folder belong together, as the frames of a clip do."""
HELD_OUT = 4
"""One of so many groups is held out."""


class Grouping:
    """The group of each image, by its name; ParameterError for a rule that is none.

    Args:
        rule: a regular expression, whose first group (or else whole match) in the path names the image's group;
            "folder" for the folder it lies in; a function of the path; or None: every image stands alone.
    """

    def __init__(self, rule: str | Callable[[str], Hashable] | None) -> None:
        if not (rule is None or isinstance(rule, str) or callable(rule)):
            raise ParameterError(f"groups must be a regular expression, 'folder', a function or None; got {rule!r}")
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
