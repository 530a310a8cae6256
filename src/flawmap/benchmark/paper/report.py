"""The files a benchmark leaves beside its runs: tables in three formats, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flawmap.benchmark.paper.published import PAPER_TABLES
from flawmap.benchmark.paper.run import Outcome
from flawmap.benchmark.paper.systems import Settings
from flawmap.benchmark.paper.table_notes import class_notes, paper_notes
from flawmap.benchmark.paper.tables import Table, class_table, growth_table, paper_table, to_html, to_latex, to_markdown
from flawmap.errors import ParameterError
from flawmap.files import remove_leftovers, replace_atomically

__all__ = ["build_tables", "check_format", "write_report", "write_table"]

FORMATS = (".md", ".tex", ".html")

MEASURED = ("image_auroc", "pixel_auroc", "pro_score")


def build_tables(names: Sequence[str], outcome: Outcome, settings: Settings) -> list[Table]:
    """The paper's tables that were asked for, then all classes one by one; below each, why cells are blank."""
    tables = []
    for name in names:
        table = paper_table(PAPER_TABLES[name], outcome.runs, settings)
        tables.append(replace(table, notes=paper_notes(PAPER_TABLES[name], outcome)))
    growth = growth_table(outcome.runs)
    tables += [growth] if growth else []
    for kind in dict.fromkeys(run.dataset for run in outcome.runs if run.dataset != "speed"):
        if by_class := class_table(kind, outcome.runs, MEASURED):
            tables.append(replace(by_class, notes=class_notes(kind, outcome.runs, MEASURED)))
    said = "\n".join(note for table in tables for note in table.notes)
    failures = [f"{name}: {reason}" for name, reason in sorted(outcome.failures.items()) if reason not in said]
    tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, *failures))
    return tables


def write_report(folder: Path, tables: Sequence[Table], outcome: Outcome, *, plots: bool = True) -> list[Path]:
    """Write tables.md, tables.tex and tables.html, each whole or not at all, and plots below plots/."""
    pictures = {}
    if plots:
        from flawmap.benchmark.paper.curves import plot_results

        pictures = plot_results(outcome.runs, folder / "plots")
    for path in sorted((folder / "galleries").glob("*.jpg")):
        pictures[f"{path.stem}: heat maps"] = path
    linked = {title: path.relative_to(folder).as_posix() for title, path in pictures.items()}
    contents = {".md": to_markdown(tables), ".tex": to_latex(tables), ".html": to_html(tables, linked)}
    written = [_write(folder / f"tables{suffix}", content) for suffix, content in contents.items()]
    for path in (*written, *pictures.values()):  # of a run that was killed as it wrote; the lock keeps others out
        remove_leftovers(path)
    return written


def write_table(path: Path, table: Table) -> None:
    """Write one table in the format that the file's name ends with. ParameterError for none of .md, .tex, .html."""
    check_format(path)
    if path.suffix == ".html":
        _write(path, to_html([table], {}))
    else:
        _write(path, to_latex([table]) if path.suffix == ".tex" else to_markdown([table]))


def check_format(path: Path) -> None:
    """ParameterError for a name that ends in no format of tables."""
    if path.suffix not in FORMATS:
        raise ParameterError(f"{path}: tables are written as {', '.join(FORMATS)}; end the name with one of them")


def _write(path: Path, content: str) -> Path:
    with replace_atomically(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")  # names may be no UTF-8
    return path
