"""Random splits for data sets whose authors publish none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["hold_out"]


def hold_out(good: Sequence[Path], train_share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Good images to learn from, a random `train_share` of them by `seed`, and those held out; each sorted."""
    order = np.random.default_rng(seed).permutation(len(good))
    n_train = round(train_share * len(good))
    return sorted(good[i] for i in order[:n_train]), sorted(good[i] for i in order[n_train:])
