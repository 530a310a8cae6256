"""Plots of figures: whether promises are kept."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flawmap.evaluation.metrics import Reliability

__all__ = ["plot_reliability"]


def plot_reliability(kept: Reliability, path: Path) -> None:
    """Write a PNG of realised against promised false-alarm rates, with 95 % intervals."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as promised")
    low = [rate.low for rate in kept.realised]
    high = [rate.high for rate in kept.realised]
    axes.fill_between(kept.asked, low, high, alpha=0.2, label="95 % interval")
    axes.plot(kept.asked, [rate.value for rate in kept.realised], marker="o", markersize=4, label="realised")
    axes.set_xlabel("promised false-alarm rate")
    axes.set_ylabel("share of unseen good parts flagged")
    axes.set_title(f"{kept.realised[0].n} good parts; uniformity p = {kept.uniformity:.2g}")
    axes.legend(loc="upper left")
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=120)
