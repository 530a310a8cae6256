"""Tables of results with the paper's numbers beside ours, the difference, and a reason for every blank cell.

A mean over classes needs every class: it is blank where one was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flawmap.benchmark.paper.published import GROUPS, PAPER_TABLES, PaperTable
from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.run import Outcome
from flawmap.benchmark.paper.systems import Settings
from flawmap.datasets import LAYOUTS

MEASURES = {
    "image_auroc": ("image AUROC", 100, 1),
    "pixel_auroc": ("pixel AUROC", 100, 1),
    "pro_score": ("PRO", 100, 1),
    "found_at_5": ("found at 5 %", 100, 1),
    "flagged_at_5": ("flagged at 5 %", 100, 1),
    "seconds": ("s", 1, 3),
    "gigabytes": ("GB", 1, 3),
}
"""Name of a measure in tables, its unit (per cent for shares), and its decimals."""
AT_5 = ("found_at_5", "flagged_at_5")
"""Shares of the anomalous and of the good images above the threshold that promises 5 % false alarms."""
BY_CLASS = ("image_auroc", "pixel_auroc", "pro_score", *AT_5)
"""Measures of each class."""
SHOWN = {"all": "all channels", "sum": "sum of layers"}
"""Names of some systems in tables."""


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of each names it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (None of one) over seeds of a figure's mean over classes."""

    mean: float
    std: float | None
    n_seeds: int


def build_tables(names: Sequence[str], outcome: Outcome, settings: Settings) -> list[Table]:
    """Some of the paper's tables, then all classes one by one; below each, why cells are blank."""
    tables = []
    for paper in (PAPER_TABLES[name] for name in names):
        tables.append(replace(paper_table(paper, outcome.runs, settings), notes=paper_notes(paper, outcome)))
    if growth := growth_table(outcome.runs):
        tables.append(growth)
    for dataset in dict.fromkeys(run.dataset for run in outcome.runs if run.dataset != "speed"):
        own = [run for run in outcome.runs if run.dataset == dataset]
        tables.append(replace(class_table(dataset, own), notes=run_notes(own, BY_CLASS)))
    said = "\n".join(note for table in tables for note in table.notes)
    failures = [f"{name}: {reason}" for name, reason in sorted(outcome.failures.items()) if reason not in said]
    tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, *failures))
    return tables


def summarise(runs: Iterable[Run], system: str, categories: Sequence[str], measure: str) -> Summary | None:
    """Over the seeds that every class has; None if there are none, as when a class is missing."""
    by_seed: dict[int, dict[str, float]] = {}
    for run in runs:
        value = run.figures.get(measure)
        if run.system == system and run.category in categories and value is not None:
            by_seed.setdefault(run.seed, {})[run.category] = value
    means = [float(np.mean(list(values.values()))) for values in by_seed.values() if len(values) == len(categories)]
    if not means:
        return None
    return Summary(float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else None, len(means))


def paper_table(table: PaperTable, runs: Sequence[Run], settings: Settings) -> Table:
    """One of the paper's tables, each row over each group of classes, and in table III over each class."""
    own = [run for run in runs if run.dataset == table.dataset]
    places = [(system, over, names) for system in table.rows for over, names in _groups(table).items()]
    found = [[summarise(own, system, names, measure) for measure in table.measures] for system, _, names in places]
    uneven = _uneven((place[0], figures) for place, figures in zip(places, found, strict=True))
    rows = []
    for (system, over, _), ours in zip(places, found, strict=True):
        label = table.label(system, settings)
        rows.append((SHOWN.get(label, label), over, *_cells(table, label, over, ours, count=system in uneven)))
    header = ["system", "over"]
    for measure in table.measures:
        name = MEASURES[measure][0]
        header += [f"{name}, paper", f"{name}, here", "difference"]
    here = f"here: {settings.backbone}, regularization {settings.regularization}"
    if table.dataset == "speed":
        here = "here: one image, the exported graph, of SPADE predict; the model's file"
    return Table(f"Table {table.name}: {table.title} ({here})", tuple(header), tuple(rows))


def class_table(dataset: str, runs: Sequence[Run]) -> Table:
    """All systems on all measured classes of a data set, given its runs, and their means over several classes."""
    rows = []
    categories = sorted({run.category for run in runs})
    places = [(category, [category]) for category in categories]
    places += [(f"mean of {len(categories)}", categories)] if len(categories) > 1 else []
    for place, names in places:
        for system in dict.fromkeys(run.system for run in runs):
            found = [summarise(runs, system, names, measure) for measure in BY_CLASS]
            if seeds := max((one.n_seeds for one in found if one), default=0):
                count = bool(_uneven([(system, found)]))
                figures = [_ours(one, measure, count=count) for one, measure in zip(found, BY_CLASS, strict=True)]
                rows.append((place, SHOWN.get(system, system), str(seeds), *figures))
    header = ("class", "system", "seeds", *(MEASURES[measure][0] for measure in BY_CLASS))
    return Table(f"{dataset}, class by class", header, tuple(rows))


def growth_table(runs: Sequence[Run]) -> Table | None:
    """Time and memory against the number of good images; None if they were not measured."""
    measured = [run for run in runs if run.dataset == "speed"]
    growing = {run.system for run in measured if run.category}
    rows = []
    for run in sorted(measured, key=lambda run: (run.system, run.n_train)):
        if run.system in growing:
            values = [run.figures.get(name) for name in ("seconds", "gigabytes")]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append((run.system, str(run.n_train), *cells))
    header = ("system", "good images", "s an image", "GB of the model's file")
    return Table("Time and memory against the number of good images", header, tuple(rows)) if rows else None


def _groups(table: PaperTable) -> dict[str, Sequence[str]]:
    """Groups of classes that the rows are over, by name."""
    if table.dataset == "speed":
        return {"MVTec AD": [""], "STC": ["STC"]} if table.name == "VIII" else {"all": [""]}
    if table.dataset == "stc":  # scene 13 of ShanghaiTech Campus has no test clips
        return {"all": [name for name in LAYOUTS["stc"].classes if name != "13"]}
    classes = {name: (name,) for name in GROUPS["all"]} if table.name == "III" else {}
    return {**classes, **GROUPS}


def _categories(table: PaperTable) -> list[str]:
    """All classes of a table's groups."""
    return list(dict.fromkeys(name for names in _groups(table).values() for name in names))


def _cells(table: PaperTable, label: str, over: str, found: Sequence[Summary | None], *, count: bool) -> Iterator[str]:
    """For each measure the paper's figure, ours and the difference."""
    for measure, ours in zip(table.measures, found, strict=True):
        _, unit, decimals = MEASURES[measure]
        paper = table.figure(label, over, measure)
        yield "" if paper is None else f"{paper:.{2 if unit == 1 else 1}f}"
        yield _ours(ours, measure, count=count)
        yield "" if paper is None or ours is None else f"{unit * ours.mean - paper:+.{decimals}f}"


def _uneven(found: Iterable[tuple[str, Sequence[Summary | None]]]) -> set[str]:
    """Systems with several seeds, if their figures are not all over the same number."""
    counts: dict[str, set[int]] = {}
    for system, figures in found:
        counts.setdefault(system, set()).update(one.n_seeds for one in figures if one)
    seeded = {system: own for system, own in counts.items() if max(own, default=0) > 1}
    return set(seeded) if len(set().union(*seeded.values())) > 1 else set()


def _ours(summary: Summary | None, measure: str, *, count: bool) -> str:
    """Mean and standard deviation; with the number of seeds where that differs from cell to cell."""
    if summary is None:
        return ""
    _, unit, decimals = MEASURES[measure]
    text = f"{unit * summary.mean:.{decimals}f}"
    if summary.std is not None:
        text += f" ± {unit * summary.std:.{decimals}f}"
    return f"{text} (n = {summary.n_seeds})" if count else text


def absent_classes(table: PaperTable, outcome: Outcome) -> tuple[list[str], list[str]]:
    """Classes of a table without a run: those that are not on disk, and those not asked for."""
    if table.dataset == "speed":
        return [], []
    measured = {run.category for run in outcome.runs if run.dataset == table.dataset}
    absent = [name for name in _categories(table) if name not in measured]
    asked = outcome.on_disk if outcome.asked is None else outcome.asked
    return (
        [name for name in absent if name not in outcome.on_disk],
        [name for name in absent if name in outcome.on_disk and name not in asked],
    )


def paper_notes(table: PaperTable, outcome: Outcome) -> tuple[str, ...]:
    """A reason for every blank cell of one of the paper's tables, then the images that its figures leave out."""
    missing, unasked = absent_classes(table, outcome)
    notes = []
    for what, names in (("Not on disk", missing), ("Not asked for", unasked)):
        if names:
            notes.append(f"{what}, so that every mean over them is blank: {', '.join(names)}.")
    own = [run for run in outcome.runs if run.dataset == table.dataset]
    there = [name for name in _categories(table) if name not in (*missing, *unasked)]
    if table.name == "VIII":
        notes.append("STC: blank here, because all systems are measured with as many good images as MVTec AD has.")
        there.remove("STC")
    for system in table.rows:
        found = {run.category for run in own if run.system == system}
        lacking: dict[str, list[str]] = {}
        for category in (name for name in there if name not in found):
            reason = outcome.reason(table.dataset, system, category) or "not run"
            lacking.setdefault(reason, []).append(category)
        for reason, names in lacking.items():
            where = "" if len(names) == len(there) else f" ({', '.join(names)})"
            notes.append(f"{system}{where}: {reason}.".replace("..", "."))
    shown = [run for run in own if run.system in table.rows and run.category in there]
    return (*notes, *run_notes(shown, table.measures))


def run_notes(runs: Sequence[Run], measures: Sequence[str]) -> tuple[str, ...]:
    """Why runs have no value of a figure, then the images that count in no figure, or not in all."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        for measure in measures:
            if run.figures.get(measure) is None:
                reasons.setdefault((run.system, _why(run, measure)), {})[run.category] = None
    notes = []
    for (system, why), categories in reasons.items():
        where = "" if why == "does not localise" else f" ({', '.join(categories)})"
        notes.append(f"{system}{where}: {why}.")
    left_out = {
        "Images that cannot be read, and are left out": [(run.category, run.n_skipped) for run in runs],
        "Anomalous images whose mask is missing or empty, and that pixel figures leave out": [
            (run.category, run.n_without_mask) for run in runs
        ],
    }
    for what, counts in left_out.items():
        most = dict(sorted(count for count in counts if count[1]))  # of each class the highest count
        if most:
            notes.append(f"{what}: {', '.join(f'{n} of {name}' for name, n in most.items())}.")
    return tuple(notes)


def _why(run: Run, measure: str) -> str:
    if measure in AT_5:
        return _why_not_at_5(run, measure)
    if measure == "image_auroc":
        return "no image AUROC, the test images are all good or all anomalous"
    if run.n_without_mask:
        return "no pixel figures, no anomalous image has a mask"
    if run.figures.get("image_auroc") is None:
        return f"no {MEASURES[measure][0]}, the test images are all good or none has a mask"
    return "does not localise"


def _why_not_at_5(run: Run, measure: str) -> str:
    if measure not in run.figures:
        return "nothing at 5 % false alarms, an earlier version made the run"
    if all(run.figures[name] is None for name in AT_5):
        return "nothing at 5 % false alarms, no held-out scores or fewer than 19"
    return f"no share {MEASURES[measure][0]}, the test images are all good or all anomalous"
