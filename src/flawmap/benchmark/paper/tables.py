"""Tables of results with the paper's numbers beside ours and the difference, in Markdown, LaTeX and HTML.

A mean over classes is given only if every one of them was measured: never over those that happen to be there.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

import numpy as np

from flawmap.benchmark.paper.published import OBJECTS, TEXTURES, PaperTable, paper_figure
from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.systems import Settings
from flawmap.datasets import LAYOUTS

__all__ = [
    "Summary",
    "Table",
    "categories_of",
    "class_table",
    "growth_table",
    "paper_table",
    "summarise",
    "to_html",
    "to_latex",
    "to_markdown",
]

MEASURES = {
    "image_auroc": ("image AUROC", 100, 1),
    "pixel_auroc": ("pixel AUROC", 100, 1),
    "pro_score": ("PRO", 100, 1),
    "seconds": ("s", 1, 3),
    "gigabytes": ("GB", 1, 3),
}
"""What a measure is called, in which unit it is shown (shares in per cent), and with how many decimals."""

SHOWN = {"all": "all channels", "sum": "sum of layers"}
"""What some systems are called in tables."""

LATEX = {
    **{letter: f"\\{letter}" for letter in "&%#_${}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    **{letter: f"${letter}$" for letter in "<>|"},
}
PAGE_ROWS = 40
"""Rows that fit on a page of LaTeX; a longer table goes on in another."""


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of each names it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A figure over seeds: each seed's mean over the classes, their mean, their standard deviation (None of one)."""

    mean: float
    std: float | None
    n_seeds: int


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
        rows.append((SHOWN.get(label, label), over, *_cells(table, system, label, over, ours, count=system in uneven)))
    header = ["system", "over"]
    for measure in table.measures:
        name = MEASURES[measure][0]
        header += [f"{name}, paper", f"{name}, here", "difference"]
    return Table(f"Table {table.name}: {table.title}{_setting(table, settings)}", tuple(header), tuple(rows))


def class_table(dataset: str, runs: Sequence[Run], measures: Sequence[str]) -> Table | None:
    """All systems on all classes that were measured; None if none was."""
    own = [run for run in runs if run.dataset == dataset]
    systems, categories = (list(dict.fromkeys(getattr(run, name) for run in own)) for name in ("system", "category"))
    if not own:
        return None
    rows = []
    for category in sorted(categories):
        for system in systems:
            found = [summarise(own, system, [category], measure) for measure in measures]
            seeds = max((one.n_seeds for one in found if one), default=0)
            if seeds:
                count = bool(_uneven([(system, found)]))
                figures = [_ours(one, measure, count=count) for one, measure in zip(found, measures, strict=True)]
                rows.append((category, SHOWN.get(system, system), str(seeds), *figures))
    header = ("class", "system", "seeds", *(MEASURES[measure][0] for measure in measures))
    return Table(f"{dataset}, class by class", header, tuple(rows))


def growth_table(runs: Sequence[Run]) -> Table | None:
    """Time and memory against the number of good images; None if they were not measured."""
    measured = [run for run in runs if run.dataset == "speed"]
    growing = {run.system for run in measured if run.category}
    rows = [
        (run.system, str(run.n_train), *(_number(run.figures.get(name)) for name in ("seconds", "gigabytes")))
        for run in sorted(measured, key=lambda run: (run.system, run.n_train))
        if run.system in growing
    ]
    header = ("system", "good images", "s an image", "GB of the model's file")
    return Table("Time and memory against the number of good images", header, tuple(rows)) if rows else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def categories_of(table: PaperTable) -> list[str]:
    """All classes that a table's rows are over."""
    return list(dict.fromkeys(name for names in _groups(table).values() for name in names))


def _groups(table: PaperTable) -> dict[str, Sequence[str]]:
    """Names of what the rows are over, with the classes that each takes."""
    if table.dataset == "speed":
        return {"MVTec AD": [""], "STC": ["STC"]} if table.name == "VIII" else {"all": [""]}
    if table.dataset == "stc":
        return {"all": [name for name in LAYOUTS["stc"].classes if _has_tests(name)]}
    groups: dict[str, Sequence[str]] = {"textures": TEXTURES, "objects": OBJECTS, "all": TEXTURES + OBJECTS}
    return {name: [name] for name in TEXTURES + OBJECTS} | groups if table.name == "III" else groups


def _has_tests(scene: str) -> bool:
    """Scene 13 of ShanghaiTech Campus has no test clips."""
    return scene != "13"


def _cells(
    table: PaperTable, system: str, label: str, over: str, found: Sequence[Summary | None], *, count: bool
) -> list[str]:
    cells = []
    for measure, ours in zip(table.measures, found, strict=True):
        _, unit, decimals = MEASURES[measure]
        paper = None if system in table.only_ours else paper_figure(table, label, over, measure)
        cells += ["" if paper is None else f"{paper:.{2 if unit == 1 else 1}f}", _ours(ours, measure, count=count)]
        both = paper is not None and ours is not None
        cells.append(f"{unit * ours.mean - paper:+.{decimals}f}" if both and ours and paper is not None else "")
    return cells


def _uneven(found: Iterable[tuple[str, Sequence[Summary | None]]]) -> set[str]:
    """Systems with several seeds, if their figures are not all over as many."""
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


def _setting(table: PaperTable, settings: Settings) -> str:
    if table.dataset == "speed":
        return " (here: one image, the exported graph, of SPADE predict; the model's file)"
    return f" (here: {settings.backbone}, regularization {settings.regularization})"


def to_markdown(tables: Iterable[Table]) -> str:
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


def to_latex(tables: Iterable[Table]) -> str:
    """All tables as `table` environments, to be included in a document; needs no packages. Long ones are split."""
    parts = []
    for table in (page for whole in tables for page in _pages(whole)):
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
        columns = "ll" + "r" * (len(table.header) - 2)
        lines = [
            r"\begin{table}",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            " & ".join(map(_latex, table.header)) + r" \\",
            r"\hline",
            *rows,
            r"\hline",
            r"\end{tabular}",
            *(rf"\par {_latex(note)}" for note in table.notes),
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


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def to_html(tables: Iterable[Table], pictures: Mapping[str, str]) -> str:
    """All tables and pictures (path by title) as one page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Results</title><style>",
        "body{font:14px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse;margin:.5em 0}",
        "th,td{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:right}",
        "th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}img{max-width:100%}</style></head><body><h1>Results</h1>",
    ]
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2><table><tr>")
        parts += [f"<th>{html.escape(cell)}</th>" for cell in table.header]
        for row in table.rows:
            parts.append("</tr><tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row))
        parts.append("</tr></table>")
        parts += [f"<p>{html.escape(note)}</p>" for note in table.notes]
    for title, path in pictures.items():
        parts.append(f"<h2>{html.escape(title)}</h2><img src='{quote(os.fsencode(path))}' alt=''>")
    return "\n".join([*parts, "</body></html>"]) + "\n"
