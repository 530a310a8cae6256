"""Whether promised false-alarm rates are kept on good images that were never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kstest

from flawmap.evaluation.metrics.rates import Rate

__all__ = ["ASKED", "Reliability", "reliability"]

ASKED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""False-alarm rates at which the promise is checked."""


@dataclass(frozen=True)
class Reliability:
    """Promised and realised false-alarm rates.

    Attributes:
        asked: promised rates.
        realised: share of good images with a p-value of no more than each.
        uniformity: p-value of the hypothesis that the p-values of good images are uniform (Kolmogorov and Smirnov);
            below 0.05 the promise is doubtful, as where good images came from another shift or camera.
    """

    asked: tuple[float, ...]
    realised: tuple[Rate, ...]
    uniformity: float


def reliability(p_values: ArrayLike) -> Reliability | None:
    """How the p-values (N,) of good images that were not learnt are spread; None of none."""
    values = np.asarray(p_values, np.float64)
    realised = [Rate.of(int(np.count_nonzero(values <= rate + 1e-12)), len(values)) for rate in ASKED]
    kept = tuple(rate for rate in realised if rate is not None)
    return Reliability(ASKED, kept, float(kstest(values, "uniform").pvalue)) if kept else None
