"""Plots of results: ROC and PRO curves of each class, and the figures of all classes as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flawmap.atomic import replace_atomically
from flawmap.benchmark.results import Run
from flawmap.benchmark.scores import RATES
from flawmap.benchmark.tables import MEASURES, summarise

__all__ = ["plot_results"]

CURVES = {
    "image_roc": ("ROC, images", "true-positive rate"),
    "pixel_roc": ("ROC, pixels", "true-positive rate"),
    "pro": ("PRO curve", "mean per-region overlap"),
}


def plot_results(runs: Sequence[Run], folder: Path) -> dict[str, Path]:
    """Write PNGs; gives their paths by title. Curves are means over seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for dataset in dict.fromkeys(run.dataset for run in runs if run.dataset != "speed"):
        own = [run for run in runs if run.dataset == dataset]
        for category in sorted({run.category for run in own}):
            path = folder / f"{dataset}_{category}_curves.png"
            _plot_curves([run for run in own if run.category == category], path, f"{category} ({dataset})")
            written[f"{dataset}, {category}: curves"] = path
        for measure in ("image_auroc", "pixel_auroc", "pro_score"):
            if any(run.figures.get(measure) is not None for run in own):
                path = folder / f"{dataset}_{measure}.png"
                _plot_bars(own, measure, path, dataset)
                written[f"{dataset}: {MEASURES[measure][0]} by class"] = path
    growing = {run.system for run in runs if run.dataset == "speed" and run.category}
    if growing:
        path = folder / "growth.png"
        _plot_growth([run for run in runs if run.dataset == "speed" and run.system in growing], path)
        written["time and memory against the number of good images"] = path
    return written


def _plot_growth(runs: Sequence[Run], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    measures = {"seconds": "seconds an image", "gigabytes": "GB of the model's file"}
    for axes, (measure, what) in zip(figure.subplots(1, 2), measures.items(), strict=True):
        for system in sorted({run.system for run in runs}):
            points = sorted((run.n_train, run.figures[measure] or 0.0) for run in runs if run.system == system)
            axes.plot(*zip(*points, strict=True), marker="o", label=system)
        axes.set_xlabel("good images")
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    _save(figure, path)


def _plot_curves(runs: Sequence[Run], path: Path, title: str) -> None:
    figure = Figure(figsize=(15, 5), layout="constrained")
    for axes, (name, (heading, what)) in zip(figure.subplots(1, 3), CURVES.items(), strict=True):
        for system in dict.fromkeys(run.system for run in runs):
            curves = [run.curves[name] for run in runs if run.system == system and name in run.curves]
            if curves:
                axes.plot(RATES[name], np.mean(curves, axis=0), label=system, linewidth=1.2)
        axes.set_title(heading)
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel(what)
        axes.set_ylim(0, 1.01)
        if axes.has_data():
            axes.legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def _plot_bars(runs: Sequence[Run], measure: str, path: Path, dataset: str) -> None:
    systems = list(dict.fromkeys(run.system for run in runs))
    categories = sorted({run.category for run in runs})
    figure = Figure(figsize=(max(6, 0.22 * len(systems) * len(categories) + 3), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(systems)
    for i, system in enumerate(systems):
        found = [summarise(runs, system, [category], measure) for category in categories]
        places = [place + i * width for place, one in enumerate(found) if one]
        heights = [100 * one.mean for one in found if one]
        spread = [100 * (one.std or 0) for one in found if one]
        axes.bar(places, heights, width, yerr=spread, label=system, align="edge")
    axes.set_xticks([place + 0.425 for place in range(len(categories))], categories, rotation=45, ha="right")
    low, high = axes.dataLim.y0, axes.dataLim.y1
    tops = [100 * value for run in runs if (value := run.figures.get(measure)) is not None]
    axes.set_ylim(max(min(low, high, min(tops) - 5), 0) if min(tops) < 50 else min(tops) - 5, 100)
    axes.set_ylabel(f"{MEASURES[measure][0]}, %")
    axes.set_title(dataset)
    axes.legend(fontsize=8, ncols=2)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
