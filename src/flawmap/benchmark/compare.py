"""Two results files side by side: differences of runs that differ in nothing but what the files differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawmap.benchmark.results import Run
from flawmap.benchmark.tables import MEASURES, Table

__all__ = ["Difference", "compare_runs", "comparison_table"]


@dataclass(frozen=True)
class Difference:
    """A figure in two files, over runs of the same data set, class, system and seed.

    Attributes:
        first, second: means. mean: of second - first. std: standard deviation of that, None of one pair.
        lowest, highest: smallest and largest difference.
        n_pairs: runs that both files have. n_higher: those in which the second is higher.
        unpaired: runs that only one file has.
    """

    dataset: str
    system: str
    measure: str
    first: float
    second: float
    mean: float
    std: float | None
    lowest: float
    highest: float
    n_pairs: int
    n_higher: int
    unpaired: int


def compare_runs(first: Sequence[Run], second: Sequence[Run]) -> list[Difference]:
    """By data set, system and measure, in the order of the first file."""
    differences = []
    for dataset, system in dict.fromkeys((run.dataset, run.system) for run in [*first, *second]):
        for measure in MEASURES:
            one, other = (_values(runs, dataset, system, measure) for runs in (first, second))
            if not (paired := one.keys() & other.keys()):
                continue
            keys = sorted(paired)
            pairs = np.array([(one[key], other[key]) for key in keys])
            delta = pairs[:, 1] - pairs[:, 0]
            differences.append(
                Difference(
                    dataset,
                    system,
                    measure,
                    first=float(pairs[:, 0].mean()),
                    second=float(pairs[:, 1].mean()),
                    mean=float(delta.mean()),
                    std=float(delta.std(ddof=1)) if len(delta) > 1 else None,
                    lowest=float(delta.min()),
                    highest=float(delta.max()),
                    n_pairs=len(delta),
                    n_higher=int((delta > 0).sum()),
                    unpaired=len(one.keys() ^ other.keys()),
                )
            )
    return differences


def comparison_table(differences: Sequence[Difference], first: str, second: str) -> Table:
    """For people; shares in per cent."""
    rows = []
    for one in differences:
        name, unit, decimals = MEASURES[one.measure]
        spread = "" if one.std is None else f" ± {unit * one.std:.{decimals + 1}f}"
        rows.append(
            (
                f"{one.system} ({one.dataset})",
                name,
                *(f"{unit * value:.{decimals + 1}f}" for value in (one.first, one.second)),
                f"{unit * one.mean:+.{decimals + 1}f}{spread}",
                f"{unit * one.lowest:+.{decimals + 1}f} to {unit * one.highest:+.{decimals + 1}f}",
                f"{one.n_higher} of {one.n_pairs}",
                str(one.unpaired) if one.unpaired else "",
            )
        )
    header = ("system", "figure", first, second, "difference", "from, to", "higher in", "unpaired")
    return Table(f"{second} less {first}", header, tuple(rows))


def _values(runs: Sequence[Run], dataset: str, system: str, measure: str) -> dict[tuple[str, int], float]:
    return {
        (run.category, run.seed): value
        for run in runs
        if (run.dataset, run.system) == (dataset, system) and (value := run.figures.get(measure)) is not None
    }
