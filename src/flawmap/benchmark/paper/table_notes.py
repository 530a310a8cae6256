"""What is said below a table: why cells are blank, and what the figures leave out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flawmap.benchmark.paper.published import PaperTable
from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.run import Outcome
from flawmap.benchmark.paper.tables import MEASURES, categories_of

__all__ = ["absent_classes", "class_notes", "paper_notes"]

NOT_RUN = "not run"
ONE_SIZE = "STC: blank here, for all is measured with as many good images as MVTec AD has."


def absent_classes(table: PaperTable, outcome: Outcome) -> tuple[list[str], list[str]]:
    """Classes of a table that there is no run of: those that are not on disk, and those not asked for."""
    if table.dataset == "speed":
        return [], []
    measured = {run.category for run in outcome.runs if run.dataset == table.dataset}
    absent = [name for name in categories_of(table) if name not in measured]
    asked = outcome.on_disk if outcome.asked is None else outcome.asked
    return (
        [name for name in absent if name not in outcome.on_disk],
        [name for name in absent if name in outcome.on_disk and name not in asked],
    )


def paper_notes(table: PaperTable, outcome: Outcome) -> tuple[str, ...]:
    """A reason for every blank cell of one of the paper's tables, then what its figures leave out."""
    missing, unasked = absent_classes(table, outcome)
    notes = []
    for what, names in (("Not on disk", missing), ("Not asked for", unasked)):
        if names:
            notes.append(f"{what}, so that every mean they enter into is left blank: {', '.join(names)}.")
    own = [run for run in outcome.runs if run.dataset == table.dataset]
    there = [name for name in categories_of(table) if name not in (*missing, *unasked)]
    if table.name == "VIII":
        notes.append(ONE_SIZE)
        there.remove("STC")
    for system in table.rows:
        found = {run.category for run in own if run.system == system}
        lacking: dict[str, list[str]] = {}
        for category in there:
            if category not in found:
                reason = outcome.reason(table.dataset, system, category) or NOT_RUN
                lacking.setdefault(reason, []).append(category)
        for reason, names in lacking.items():
            where = "" if len(names) == len(there) else f" ({', '.join(names)})"
            notes.append(f"{system}{where}: {reason}.".replace("..", "."))
    shown = [run for run in own if run.system in table.rows and run.category in there]
    return (*notes, *_undefined(shown, table.measures), *_left_out(shown))


def class_notes(dataset: str, runs: Sequence[Run], measures: Sequence[str]) -> tuple[str, ...]:
    """The same of the table of all classes."""
    own = [run for run in runs if run.dataset == dataset]
    return (*_undefined(own, measures), *_left_out(own))


def _undefined(runs: Iterable[Run], measures: Sequence[str]) -> list[str]:
    """Why runs have no value of a figure."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        for measure in measures:
            if run.figures.get(measure) is None:
                reasons.setdefault((run.system, _why(run, measure)), {})[run.category] = None
    notes = []
    for (system, why), categories in reasons.items():
        where = "" if why == "does not localise" else f" ({', '.join(categories)})"
        notes.append(f"{system}{where}: {why}.")
    return notes


def _why(run: Run, measure: str) -> str:
    if measure == "image_auroc":
        return "no image AUROC, the test images are all good or all anomalous"
    if run.n_without_mask:
        return "no pixel figures, no anomalous image has a mask"
    if run.figures.get("image_auroc") is None:
        return f"no {MEASURES[measure][0]}, the test images are all good or none has a mask"
    return "does not localise"


def _left_out(runs: Iterable[Run]) -> list[str]:
    """Images that count in no figure, or not in all."""
    skipped: dict[str, int] = {}
    unmasked: dict[str, int] = {}
    for run in runs:
        skipped[run.category] = max(run.n_skipped, skipped.get(run.category, 0))
        unmasked[run.category] = max(run.n_without_mask, unmasked.get(run.category, 0))
    notes = []
    for what, counts in (
        ("Images that cannot be read, and are left out", skipped),
        ("Anomalous images whose mask is missing or empty, and that pixel figures leave out", unmasked),
    ):
        if any(counts.values()):
            notes.append(f"{what}: {', '.join(f'{n} of {name}' for name, n in sorted(counts.items()) if n)}.")
    return notes
