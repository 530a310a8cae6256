"""Shares of a sample, with an interval that says how much they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flawmap.errors import ParameterError

__all__ = ["Rate"]

Z = 1.959963984540054
"""Quantile of the normal distribution for 95 % of confidence."""


@dataclass(frozen=True)
class Rate:
    """A share `value` of `n` cases, with its 95 % interval (Wilson 1927)."""

    value: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, n: int) -> Rate | None:
        """The share of `hits` in `n` cases; None of no cases."""
        if not 0 <= hits <= n:
            raise ParameterError(f"expected 0 to {n} hits, got {hits}")
        if n == 0:
            return None
        share, weight = hits / n, Z * Z / n
        middle = (share + weight / 2) / (1 + weight)
        half = Z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
        return cls(share, n, max(0.0, middle - half), min(1.0, middle + half))

    def __str__(self) -> str:
        return f"{self.value:.3f} of {self.n} (95 % {self.low:.3f} to {self.high:.3f})"
