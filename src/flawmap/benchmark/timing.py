"""Interleaved timing in one run, so that other load on the machine affects all calls alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

BLOCK = 6
"""Consecutive calls; the first, whose caches are cold, is not counted."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call: median and 95th percentile."""

    p50: float
    p95: float


def interleaved(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Latency]:
    """Latency of each call, in alternating blocks."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            for call in range(BLOCK):
                start = time.perf_counter()
                run()
                if call:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: Latency(round(float(np.median(values)), 2), round(float(np.quantile(values, 0.95)), 2))
        for name, values in times.items()
    }
