"""Two results files side by side: paired differences of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.tables import MEASURES, Table


@dataclass(frozen=True)
class Difference:
    """A figure in two files, over runs of the same data set, class, system and seed.

    Attributes:
        first, second: means.
        mean, std: mean and standard deviation (None of one pair) of second - first.
        lowest, highest: smallest and largest difference.
        n_pairs: runs in both files.
        n_higher: pairs whose second figure is higher.
        unpaired: runs in one file alone.
        other_data: runs in both files, but on different images, masks or types; they are not paired.
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
    other_data: int = 0


def compare_runs(first: Sequence[Run], second: Sequence[Run]) -> list[Difference]:
    """By data set, system and measure, in the order of the first file."""
    differences = []
    for dataset, system in dict.fromkeys((run.dataset, run.system) for run in [*first, *second]):
        for measure in MEASURES:
            one, other = (
                {
                    run.key: run
                    for run in runs
                    if (run.dataset, run.system) == (dataset, system) and run.figures.get(measure) is not None
                }
                for runs in (first, second)
            )
            common = sorted(one.keys() & other.keys())
            keys = [key for key in common if _same_data(one[key], other[key])]
            if not keys:
                continue
            pairs = np.array([(one[key].figures[measure], other[key].figures[measure]) for key in keys], float)
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
                    other_data=len(common) - len(keys),
                )
            )
    return differences


def changed_classes(first: Sequence[Run], second: Sequence[Run]) -> list[str]:
    """Classes with runs in both files, but on different images, masks or types."""
    data = {run.key: run for run in first}
    pairs = [(data[run.key], run) for run in second if run.key in data]
    return sorted({f"{one.category} ({one.dataset})" for one, other in pairs if not _same_data(one, other)})


def _same_data(one: Run, other: Run) -> bool:
    """Whether two runs used the same files; for runs of earlier versions, the same numbers of images."""
    known = one if one.data else other
    return (other if one.data else one).is_of(known.data, known.n_train, known.n_test)


def comparison_table(differences: Sequence[Difference], first: str, second: str) -> Table:
    """Differences as a table; shares in per cent."""
    rows = []
    for one in differences:
        name, unit, decimals = MEASURES[one.measure]
        means = [f"{unit * value:.{decimals + 1}f}" for value in (one.first, one.second)]
        mean, lowest, highest = (f"{unit * value:+.{decimals + 1}f}" for value in (one.mean, one.lowest, one.highest))
        spread = "" if one.std is None else f" ± {unit * one.std:.{decimals + 1}f}"
        changes = (f"{mean}{spread}", f"{lowest} to {highest}", f"{one.n_higher} of {one.n_pairs}")
        rows.append((f"{one.system} ({one.dataset})", name, *means, *changes, str(one.unpaired + one.other_data or "")))
    header = ("system", "figure", first, second, "difference", "from, to", "higher in", "unpaired")
    return Table(f"{second} minus {first}", header, tuple(rows))
