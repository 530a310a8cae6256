"""The files a benchmark leaves beside its runs: tables in three formats, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flawmap.atomic import remove_leftovers, replace_atomically
from flawmap.benchmark.paper import Outcome
from flawmap.benchmark.paper_tables import PAPER_TABLES
from flawmap.benchmark.systems import Settings
from flawmap.benchmark.tables import Table, class_table, growth_table, paper_table, to_html, to_latex, to_markdown

__all__ = ["build_tables", "write_report"]


def build_tables(names: Sequence[str], outcome: Outcome, settings: Settings) -> list[Table]:
    """The paper's tables that were asked for, with what is missing said below, then all classes one by one."""
    missing: tuple[str, ...] = ()
    if outcome.missing:
        names_of = ", ".join(outcome.missing)
        missing = (f"Not on disk, so that every mean they enter into is left blank: {names_of}.",)
    tables = []
    for name in names:
        table = paper_table(PAPER_TABLES[name], outcome.runs, settings)
        tables.append(table if PAPER_TABLES[name].dataset == "speed" else replace(table, notes=missing))
    growth = growth_table(outcome.runs)
    tables += [growth] if growth else []
    for kind in dict.fromkeys(run.dataset for run in outcome.runs if run.dataset != "speed"):
        by_class = class_table(kind, outcome.runs, ("image_auroc", "pixel_auroc", "pro_score"))
        tables += [by_class] if by_class else []
    failures = [f"{name}: {reason}" for name, reason in sorted(outcome.failures.items())]
    tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, *failures))
    return tables


def write_report(folder: Path, tables: Sequence[Table], outcome: Outcome, *, plots: bool = True) -> list[Path]:
    """Write tables.md, tables.tex and tables.html, each whole or not at all, and plots below plots/."""
    pictures = {}
    if plots:
        from flawmap.benchmark.curves import plot_results

        pictures = plot_results(outcome.runs, folder / "plots")
    for path in sorted((folder / "galleries").glob("*.jpg")):
        pictures[f"{path.stem}: heat maps"] = path
    linked = {title: path.relative_to(folder).as_posix() for title, path in pictures.items()}
    contents = {"md": to_markdown(tables), "tex": to_latex(tables), "html": to_html(tables, linked)}
    written = []
    for suffix, content in contents.items():
        with replace_atomically(folder / f"tables.{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8")
        written.append(folder / f"tables.{suffix}")
    for path in (*written, *pictures.values()):  # of a run that was killed as it wrote; the lock keeps others out
        remove_leftovers(path)
    return written
