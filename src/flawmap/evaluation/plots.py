"""Pictures of scores over time, clip by clip, and of guaranteed against realised false-alarm rates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from flawmap.datasets import Sample
from flawmap.detectors import Detector
from flawmap.errors import DatasetError, MissingDependencyError, ParameterError
from flawmap.evaluation.evaluate import score_samples
from flawmap.evaluation.metrics import Reliability
from flawmap.files import replace_atomically
from flawmap.options import OnBad
from flawmap.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (9.0, 1.8)
MAX_PANELS = 40
"""Most clips of one picture; a taller one is more than programs show."""


@dataclass
class Timeline:
    """Scores of a clip's frames, in order.

    Attributes:
        frames: index of each scored frame among all frames of the clip, from 0.
        scores: its image score.
        anomalous: whether it is labelled anomalous.
    """

    frames: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    anomalous: list[bool] = field(default_factory=list)


def score_timelines(
    model: Detector,
    samples: Sequence[Sample],
    *,
    stride: int = 1,
    progress: Progress = False,
    on_bad: OnBad | None = None,
) -> dict[str, Timeline]:
    """Score every `stride`-th frame of each clip (`Sample.group`), in one streaming pass; `samples` are all frames.

    Raises DatasetError without clips, ParameterError for a stride below 1.
    """
    if stride < 1:
        raise ParameterError(f"the stride must be at least 1, got {stride}")
    clips: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.group is not None:
            clips.setdefault(sample.group, []).append(sample)
    if not clips:
        raise DatasetError("no test image belongs to a clip; scores over time are for videos")
    indices = {sample.path: index for clip in clips.values() for index, sample in enumerate(clip)}
    chosen = [sample for clip in clips.values() for sample in clip[::stride]]
    timelines = {group: Timeline() for group in clips}
    for sample, prediction in score_samples(model, chosen, "Scoring", progress=progress, on_bad=on_bad):
        timeline = timelines[str(sample.group)]
        timeline.frames.append(indices[sample.path])
        timeline.scores.append(prediction.pred_score)
        timeline.anomalous.append(sample.is_anomalous)
    return timelines


def check_picture(path: str | os.PathLike[str], n_clips: int) -> str:
    """Check a picture of clips before they are scored, and return its format.

    Raises DatasetError for more than 40 clips or an unknown ending, MissingDependencyError without matplotlib.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "pictures of scores over time need matplotlib: pip install 'flawmap[plots]'"
        ) from error
    if n_clips > MAX_PANELS:
        raise DatasetError(f"{n_clips} clips do not fit into one picture; give at most {MAX_PANELS}")
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise DatasetError(f"{path}: expected a name ending in .png, .svg or .pdf")
    return suffix


def save_timelines(
    timelines: dict[str, Timeline], path: str | os.PathLike[str], *, threshold: float | None = None, title: str = ""
) -> None:
    """Draw a panel for each clip, one above the other, on one scale; anomalous frames are shaded.

    The ending of `path` says the format: .png, .svg, .pdf. Raises as `check_picture`.
    """
    suffix = check_picture(path, len(timelines))
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure(figsize=(width, height * len(timelines) + 0.6), layout="constrained")
    panels = figure.subplots(len(timelines), 1, sharey=True, squeeze=False)[:, 0]
    for axes, (name, timeline) in zip(panels, timelines.items(), strict=True):
        _draw(axes, name, timeline, threshold)
    panels[-1].set_xlabel("frame")
    figure.suptitle(title)
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format=suffix)


def _draw(axes: Axes, name: str, timeline: Timeline, threshold: float | None) -> None:
    step = min((after - before for before, after in pairwise(timeline.frames)), default=1)
    axes.plot(timeline.frames, timeline.scores, color="tab:blue", linewidth=1)
    for is_anomalous, run in groupby(zip(timeline.frames, timeline.anomalous, strict=True), key=itemgetter(1)):
        if is_anomalous:
            frames = [frame for frame, _ in run]
            axes.axvspan(frames[0] - step / 2, frames[-1] + step / 2, color="tab:red", alpha=0.2, linewidth=0)
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    axes.set_ylabel(name)
    axes.margins(x=0)


def plot_reliability(kept: Reliability, path: str | os.PathLike[str]) -> None:
    """Write a PNG of realised against guaranteed false-alarm rates, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as guaranteed")
    low = [rate.low for rate in kept.realised]
    high = [rate.high for rate in kept.realised]
    axes.fill_between(kept.asked, low, high, alpha=0.2, label="95 % interval")
    axes.plot(kept.asked, [rate.value for rate in kept.realised], marker="o", markersize=4, label="realised")
    axes.set(xlabel="guaranteed false-alarm rate", ylabel="share of unseen good parts flagged")
    axes.set_title(f"{kept.realised[0].n} good parts; uniformity p = {kept.uniformity:.2g}")
    axes.legend(loc="upper left")
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
