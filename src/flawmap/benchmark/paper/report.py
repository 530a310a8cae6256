"""The files of a benchmark beside its runs: tables in Markdown, LaTeX and HTML, and plots."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.tables import Table
from flawmap.errors import ParameterError
from flawmap.files import remove_leftovers, replace_atomically

LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%#_${}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "±": r"$\pm$",
        **{letter: f"${letter}$" for letter in "<>|"},
    }
)
PAGE_ROWS = 40
"""Rows that fit on a page of LaTeX; a longer table continues in another."""
HTML_HEAD = """<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Results</title><style>
body{font:14px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse;margin:.5em 0}
th,td{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:right}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}img{max-width:100%}</style></head><body><h1>Results</h1>"""


def write_report(folder: Path, tables: Sequence[Table], runs: Sequence[Run], *, plots: bool = True) -> list[Path]:
    """Write tables.md, tables.tex and tables.html, each atomically, and plots below plots/."""
    pictures = {}
    if plots:
        from flawmap.benchmark.paper.curves import plot_results

        pictures = plot_results(runs, folder / "plots")
    for path in sorted((folder / "galleries").glob("*.jpg")):
        pictures[f"{path.stem}: heat maps"] = path
    linked = {title: path.relative_to(folder).as_posix() for title, path in pictures.items()}
    written = [folder / f"tables{suffix}" for suffix in FORMATS]
    for path in written:
        _write(path, tables, linked)
    for path in (*written, *pictures.values()):  # partial files of a killed run; the lock keeps other processes out
        remove_leftovers(path)
    return written


def write_table(path: Path, table: Table) -> None:
    """Write one table in the format of the file name's suffix. ParameterError for none of .md, .tex, .html."""
    check_format(path)
    _write(path, [table], {})


def check_format(path: Path) -> None:
    """ParameterError for a suffix that is no format of tables."""
    if path.suffix not in FORMATS:
        raise ParameterError(f"{path}: tables are written as {', '.join(FORMATS)}; end the name with one of them")


def _write(path: Path, tables: Sequence[Table], pictures: Mapping[str, str]) -> None:
    content = FORMATS[path.suffix](tables, pictures)
    with replace_atomically(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")  # names may be no UTF-8


def to_markdown(tables: Iterable[Table], _: Mapping[str, str] | None = None) -> str:
    """All tables as one document."""
    parts = ["# Results\n"]
    for table in tables:
        lines = [f"## {table.title}\n", _pipes(table.header), _pipes(["---"] * 2 + ["---:"] * (len(table.header) - 2))]
        lines += [_pipes(row) for row in table.rows]
        parts.append("\n".join(lines) + "\n")
        parts += [f"{note}\n" for note in table.notes]
    return "\n".join(parts)


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def to_latex(tables: Iterable[Table], _: Mapping[str, str] | None = None) -> str:
    """All tables as `table` environments, to be included in a document; needs no packages. Long ones are split."""
    parts = []
    for table in (page for whole in tables for page in _pages(whole)):
        cells = [[cell.translate(LATEX) for cell in row] for row in (table.header, *table.rows)]
        header, *rows = [" & ".join(row) + r" \\" for row in cells]
        lines = [
            r"\begin{table}",
            rf"\caption{{{table.title.translate(LATEX)}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(table.header) - 2)}}}",
            *(r"\hline", header, r"\hline", *rows, r"\hline"),
            r"\end{tabular}",
            *(rf"\par {note.translate(LATEX)}" for note in table.notes),
            r"\end{table}",
            *([r"\clearpage"] if len(table.rows) == PAGE_ROWS else []),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _pages(table: Table) -> Iterator[Table]:
    """A table in parts that each fit on a page; the notes stand below the last."""
    starts = range(0, max(1, len(table.rows)), PAGE_ROWS)
    for start in starts:
        yield replace(
            table,
            title=table.title if start == 0 else f"{table.title}, continued",
            rows=table.rows[start : start + PAGE_ROWS],
            notes=table.notes if start == starts[-1] else (),
        )


def to_html(tables: Iterable[Table], pictures: Mapping[str, str] | None = None) -> str:
    """All tables and pictures (path by title) as one page."""
    parts = [HTML_HEAD]
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2><table>{_cells('th', table.header)}")
        parts += [_cells("td", row) for row in table.rows]
        parts += ["</table>", *(f"<p>{html.escape(note)}</p>" for note in table.notes)]
    for title, path in (pictures or {}).items():
        parts.append(f"<h2>{html.escape(title)}</h2><img src='{quote(os.fsencode(path))}' alt=''>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _cells(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


FORMATS = {".md": to_markdown, ".tex": to_latex, ".html": to_html}
