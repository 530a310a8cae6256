"""Options of `flawmap fit`: common ones, then a panel for each topic; and those that further detectors bring along."""

from __future__ import annotations

import difflib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from typer.core import TyperCommand

from flawmap.options import FactorDtype, PrecisionChoice, Runtime

if TYPE_CHECKING:
    from flawmap.detectors import Detector

__all__ = ["FURTHER", "FitCommand", "further_parameters"]

FURTHER = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings by which the command also gets options that it does not declare."""
BACKBONE, PADIM, SPADE, TRAINING, FILE = (
    "Backbone",
    "PaDiM",
    "SPADE",
    "Training (vae, patch-svdd, ganomaly, itae)",
    "Memory and model file",
)

Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Settings of a paper: padim-r18-rd100, padim-wr50-rd550, padim-effnet-b5, spade-wr50, "
        "mahalanobis-ad-effnet-b4, vae-paper, patch-svdd-paper, ganomaly-paper, itae-paper. \\[default: none]",
    ),
]
DetectorOption = Annotated[
    str,
    typer.Option(
        "--detector",
        metavar="NAME",
        help="Method: padim, spade, mahalanobis-ad, vae, patch-svdd, ganomaly, itae, or an installed one. "
        "\\[default: padim, or the preset's]",
        show_default=False,
    ),
]
BackboneName = Annotated[
    str | None, typer.Option("--backbone", metavar="NAME", help="Frozen network. \\[default: efficientnet_lite0]")
]
Resize = Annotated[
    str | None, typer.Option("--resize", metavar="N|HxW", help="Size of the whole image. \\[default: 256]")
]
Crop = Annotated[str | None, typer.Option("--crop", metavar="N|HxW", help="Centre crop after that. \\[default: none]")]
AspectOption = Annotated[
    Literal["squash", "letterbox"], typer.Option("--aspect", help="Handling of images of other proportions.")
]
Regularization = Annotated[
    str | None,
    typer.Option(
        "--regularization",
        metavar="RULE",
        help="Covariance regularization: auto, paper, EPS or A,EPS. \\[default: auto]",
    ),
]
NFeatures = Annotated[
    int | None, typer.Option("--n-features", metavar="N", help="Number of channels, drawn at random. \\[default: all]")
]
FalseAlarmRate = Annotated[
    float, typer.Option("--false-alarm-rate", metavar="Q", help="Share of good parts that may be flagged.")
]
Calibrate = Annotated[
    Literal["leave-one-out", "holdout", "none"] | None,
    typer.Option(
        "--calibrate", help="Source of held-out scores. \\[default: leave-one-out; holdout where a network is trained]"
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="REGEX|folder",
        help="Groups of near-duplicates: images whose path matches alike. \\[default: none]",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Random seed.")]

Layers = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C", help="Layers, one to five; of mahalanobis-ad any. \\[default: usual]", rich_help_panel=BACKBONE
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Weights file (.safetensors, .pth), or hf-hub:REPO to fetch it. \\[default: found on this machine]",
        rich_help_panel=BACKBONE,
    ),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Random weights instead.", rich_help_panel=BACKBONE)
]
RuntimeChoice = Annotated[Runtime, typer.Option("--runtime", help="Library that runs it.", rich_help_panel=BACKBONE)]
Precision = Annotated[
    PrecisionChoice | None,
    typer.Option(
        help="Numbers it computes in, also of a training; auto: 16 bits if the CPU has them. \\[default: float32]",
        rich_help_panel=BACKBONE,
    ),
]

Reduction = Annotated[
    Literal["random", "pca"] | None,
    typer.Option(help="Reduction to --n-features. \\[default: random]", rich_help_panel=PADIM),
]
RefitBelow = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Number of good images below which each is left out by a refit. \\[default: 50]",
        rich_help_panel=PADIM,
    ),
]

Variant = Annotated[
    Literal["paper", "port"] | None,
    typer.Option(help="The paper's equations, or its public port. \\[default: paper]", rich_help_panel=SPADE),
]
NNeighbors = Annotated[
    int | None,
    typer.Option(metavar="K", help="Number of nearest images. \\[default: 50; port: 5]", rich_help_panel=SPADE),
]
ImageLayer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Layer that finds them. \\[default: last level]", rich_help_panel=SPADE),
]
Coreset = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Share of patches to keep. \\[default: all]", rich_help_panel=SPADE),
]
NMapped = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Number of good images that set the pixel threshold. \\[default: 50]", rich_help_panel=SPADE
    ),
]

Budget = Annotated[
    float | None, typer.Option(metavar="MINUTES", help="Time limit. \\[default: none]", rich_help_panel=TRAINING)
]
Epochs = Annotated[int | None, typer.Option(help="Epochs. \\[default: the paper's]", rich_help_panel=TRAINING)]
Steps = Annotated[
    int | None,
    typer.Option(help="Step limit, to repeat a budget's result. \\[default: none]", rich_help_panel=TRAINING),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Images a step. \\[default: the paper's]", rich_help_panel=TRAINING)
]
LearningRate = Annotated[
    float | None, typer.Option(help="Learning rate. \\[default: the paper's]", rich_help_panel=TRAINING)
]
Patience = Annotated[
    int | None,
    typer.Option(help="Epochs without a lower loss that end it. \\[default: none]", rich_help_panel=TRAINING),
]
Width = Annotated[int | None, typer.Option(help="Network size. \\[default: the paper's]", rich_help_panel=TRAINING)]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File that keeps an unfinished training. \\[default: MODEL.checkpoint]",
        rich_help_panel=TRAINING,
    ),
]

Dtype = Annotated[
    FactorDtype | None,
    typer.Option(
        help="Numbers in which the file stores factors; 16 bits halve it. \\[default: float32]", rich_help_panel=FILE
    ),
]
CacheMb = Annotated[
    float | None,
    typer.Option(
        metavar="MB",
        help="Memory for images; of spade for its gallery. \\[default: 448; spade, trainings: 1024]",
        rich_help_panel=FILE,
    ),
]


class FitCommand(TyperCommand):
    """`flawmap fit`, whose help also has the options of registered detectors that are not built in."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's own types)
        """The declared options, then a panel for each further detector."""
        super().format_help(ctx, formatter)
        for kind, fields in _further_fields({option for one in self.params for option in one.opts}).items():
            rows = Table.grid(padding=(0, 2))
            for name, field in fields.items():
                rows.add_row(_flag(name), escape(f"{field.description or name} [default: {field.default}]"))
            Console().print(Panel(rows, title=f"Detector {kind}", title_align="left", border_style="dim"))


def further_parameters(ctx: typer.Context, kind: type[Detector]) -> dict[str, str]:
    """Parameters of the chosen detector among the arguments that no declared option took; a usage error for others."""
    found: dict[str, str] = {}
    arguments = iter(ctx.args)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in kind.parameters_type.model_fields:
            near = difflib.get_close_matches(flag, [option for one in ctx.command.params for option in one.opts], 1)
            ctx.fail(f"No such option: {flag}" + (f" Did you mean {near[0]}?" if near else ""))
        found[name] = value if equals else next(arguments, "")
    return found


def _further_fields(taken: set[str]) -> dict[str, dict[str, Any]]:
    """Parameters of detectors that are not built in, by detector and name, but for those that are options already."""
    if not entry_points(group="flawmap.detectors") and "flawmap.detectors" not in sys.modules:
        return {}  # importing the detectors needs seconds
    from flawmap.detectors import BUILT_IN, all_detectors

    return {
        kind.name: {
            name: field for name, field in kind.parameters_type.model_fields.items() if _flag(name) not in taken
        }
        for kind in all_detectors()
        if kind.name not in BUILT_IN
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
