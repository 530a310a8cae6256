"""Plots of results: ROC and PRO curves of each class, and the figures of all classes as bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flawmap.benchmark.paper.results import Run
from flawmap.benchmark.paper.scores import RATES
from flawmap.benchmark.paper.tables import BY_CLASS, MEASURES, summarise
from flawmap.files import replace_atomically

CURVES = {
    "image_roc": ("ROC, images", "true-positive rate"),
    "pixel_roc": ("ROC, pixels", "true-positive rate"),
    "pro": ("PRO curve", "mean per-region overlap"),
}

LINES = ("-", "--", ":", "-.")
HATCHES = ("", "////", "....", "xxxx")
COLOURS = 10
"""Colours of matplotlib's cycle; systems beyond them differ by line or hatch."""
ROW_INCHES = 15.0
"""Width of a row of bars; more classes go into further rows."""
BAR_INCHES = 0.15
COLUMN_INCHES = 2.6
"""Width of a column of the legend."""


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure atomically."""
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def plot_results(
    runs: Sequence[Run], folder: Path, *, save: Callable[[Figure, Path], None] = save_png
) -> dict[str, Path]:
    """Write PNGs; returns their paths by title. Curves are means over seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}

    def add(title: str, name: str, figure: Figure) -> None:
        save(figure, folder / name)
        written[title] = folder / name

    for dataset in dict.fromkeys(run.dataset for run in runs if run.dataset != "speed"):
        own = [run for run in runs if run.dataset == dataset]
        for category in sorted({run.category for run in own}):
            curves = _plot_curves([run for run in own if run.category == category], f"{category} ({dataset})")
            add(f"{dataset}, {category}: curves", f"{dataset}_{category}_curves.png", curves)
        for measure in (name for name in BY_CLASS if name != "flagged_at_5"):  # which the curves show
            if any(run.figures.get(measure) is not None for run in own):
                bars = _plot_bars(own, measure, dataset)
                add(f"{dataset}: {MEASURES[measure][0]} by class", f"{dataset}_{measure}.png", bars)
    growing = {run.system for run in runs if run.dataset == "speed" and run.category}
    if growing:
        growth = _plot_growth([run for run in runs if run.dataset == "speed" and run.system in growing])
        add("time and memory against the number of good images", "growth.png", growth)
    return written


def _plot_growth(runs: Sequence[Run]) -> Figure:
    systems = sorted({run.system for run in runs})
    figure = _figure(10, 4, systems)
    measures = {"seconds": "seconds an image", "gigabytes": "GB of the model's file"}
    for axes, (measure, what) in zip(figure.subplots(1, 2), measures.items(), strict=True):
        for i, system in enumerate(systems):
            points = sorted((run.n_train, run.figures[measure] or 0.0) for run in runs if run.system == system)
            axes.plot(*zip(*points, strict=True), marker="o", label=system, **_line(i))
        axes.set(xlabel="good images", ylabel=what)
        axes.set_ylim(bottom=0)
    return _with_legend(figure)


def _plot_curves(runs: Sequence[Run], title: str) -> Figure:
    systems = list(dict.fromkeys(run.system for run in runs))
    figure = _figure(15, 5, systems)
    for axes, (name, (heading, what)) in zip(figure.subplots(1, 3), CURVES.items(), strict=True):
        for i, system in enumerate(systems):
            curves = [run.curves[name] for run in runs if run.system == system and name in run.curves]
            if curves:
                axes.plot(RATES[name], np.mean(curves, axis=0), label=system, linewidth=1.2, **_line(i))
            if name == "image_roc" and (point := _at_5([run for run in runs if run.system == system])) is not None:
                axes.scatter(*point, s=24, color=f"C{i % COLOURS}", zorder=3)
        axes.set(title=heading, xlabel="false-positive rate", ylabel=what, ylim=(0, 1.01))
    figure.suptitle(title)
    return _with_legend(figure)


def _plot_bars(runs: Sequence[Run], measure: str, dataset: str) -> Figure:
    """A group of bars for each class, in as many rows as they need."""
    systems = list(dict.fromkeys(run.system for run in runs))
    categories = sorted({run.category for run in runs})
    inches = max(0.8, BAR_INCHES * len(systems) + 0.3)  # of a group
    n_rows = math.ceil(len(categories) / max(1, int(ROW_INCHES / inches)))
    per_row = math.ceil(len(categories) / n_rows)
    wide = max(6, inches * per_row + 1)
    figure = _figure(wide, 3.5 * n_rows + 1, systems)
    width = 0.85 / len(systems)  # of a bar
    tops = [100 * value for run in runs if (value := run.figures.get(measure)) is not None]
    rows = figure.subplots(n_rows, 1, sharey=True, squeeze=False)[:, 0]
    for row, axes in enumerate(rows):
        shown = categories[row * per_row : (row + 1) * per_row]
        for i, system in enumerate(systems):
            found = {place: summarise(runs, system, [category], measure) for place, category in enumerate(shown)}
            measured = {place + i * width: one for place, one in found.items() if one}
            axes.bar(
                list(measured), [100 * one.mean for one in measured.values()], width, align="edge", label=system,
                yerr=[100 * (one.std or 0) for one in measured.values()], color=f"C{i % COLOURS}",
                hatch=HATCHES[i // COLOURS % len(HATCHES)], edgecolor="white", linewidth=0.3,
            )  # fmt: skip
        axes.set_xticks([place + 0.425 for place in range(len(shown))], shown, rotation=30, ha="right")
        axes.set(xlim=(-0.15, per_row), ylim=(max(min(tops) - 5, 0), 100), ylabel=f"{MEASURES[measure][0]}, %")
    figure.suptitle(dataset)
    return _with_legend(figure)


def _at_5(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Shares of good and of anomalous images above the threshold for 5 % false alarms; None without them."""
    pairs = [(run.figures.get("flagged_at_5"), run.figures.get("found_at_5")) for run in runs]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not known:
        return None
    x, y = np.mean(known, axis=0)
    return float(x), float(y)


def _line(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th system."""
    return {"color": f"C{i % COLOURS}", "linestyle": LINES[i // COLOURS % len(LINES)]}


def _figure(width: float, height: float, systems: Sequence[str]) -> Figure:
    """An empty figure of this size in inches, with room for the legend below it."""
    legend = 0.2 * math.ceil(len(systems) / _legend_columns(width)) + 0.2
    return Figure(figsize=(width, height + legend), layout="constrained")


def _with_legend(figure: Figure) -> Figure:
    """The figure with one legend for all axes, below them."""
    labelled = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    if labelled:
        n_columns = _legend_columns(figure.get_size_inches()[0])
        figure.legend(list(labelled.values()), list(labelled), loc="outside lower center", ncols=n_columns, fontsize=8)
    return figure


def _legend_columns(width: float) -> int:
    return max(1, int(width / COLUMN_INCHES))
