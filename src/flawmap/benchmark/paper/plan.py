"""What a benchmark of the paper's tables runs: which systems, on which classes, with which seeds."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flawmap.benchmark.paper.class_images import RD
from flawmap.benchmark.paper.published import PAPER_TABLES, PaperTable
from flawmap.benchmark.paper.results import RunKey
from flawmap.benchmark.paper.systems import TRAINED, Settings, System, systems
from flawmap.datasets import LAYOUTS
from flawmap.detectors.padim.gaussian.moments import Regularization
from flawmap.errors import ParameterError

MOST_SEEDS = 1000
UNTRAINED = "left out: on a CPU its training takes hours; --budget MINUTES limits it for each class"
SPADE_NEIGHBORS = {"stc": 1}
"""K of SPADE by data set, where its paper has another than 50."""
INPUTS: Mapping[str, Mapping[str, Any]] = {
    "mvtec_ad": {"resize": 256, "crop": 224},
    RD: {"resize": 224, "crop": None},  # its images are of that size already
    "stc": {"resize": 256, "crop": None},
}
"""Size of the detectors' input by data set (PaDiM section IV)."""
GROWTH = (60, 120, 480)
"""Numbers of good images at which time and memory are measured, beside that of a class of MVTec AD."""


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        root: the data set's folder, or one class of it.
        dataset: mvtec_ad or stc.
        tables: numbers of the paper's tables.
        output: folder of the results.
        settings: settings of all runs.
        draws: number of seeds of random draws.
        rd_seeds: number of seeds of the rotations of Rd-MVTec AD.
        classes: names of the classes to run; None for all.
        systems: rows of the tables to run; None for all.
        limit_gb: disk for shared features.
        inputs: `resize` and `crop` by data set.
        known: systems by name; None for all that flawmap knows.
        n_images: good images for time and memory; by default the mean of MVTec AD's classes.
        growth: further numbers of them.
    """

    root: Path
    dataset: str
    tables: Sequence[str]
    output: Path
    settings: Settings = field(default_factory=Settings)
    draws: int = 10
    rd_seeds: int = 5
    classes: Sequence[str] | None = None
    systems: Sequence[str] | None = None
    limit_gb: float = 4.0
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: INPUTS)
    known: Mapping[str, System] | None = None
    n_images: int = 242
    growth: Sequence[int] = GROWTH

    @cached_property
    def known_systems(self) -> Mapping[str, System]:
        """Systems that can be run on this data set, by name."""
        if self.known is not None:
            return self.known
        return systems(self.settings, n_neighbors=SPADE_NEIGHBORS.get(self.dataset))

    def check(self) -> None:
        """ParameterError for values that are not allowed."""
        for name in self.tables:
            if name not in PAPER_TABLES:
                raise ParameterError(f"unknown table '{name}'; there are {', '.join(PAPER_TABLES)}")
            if PAPER_TABLES[name].dataset not in self._datasets:
                raise ParameterError(f"table {name} is of {PAPER_TABLES[name].dataset}, not of {self.dataset}")
        if not (1 <= self.draws <= MOST_SEEDS and 1 <= self.rd_seeds <= MOST_SEEDS):
            raise ParameterError(f"expected 1 to {MOST_SEEDS} draws and seeds, got {self.draws} and {self.rd_seeds}")
        self._check_settings()
        rows = dict.fromkeys(row for name in self.tables for row in PAPER_TABLES[name].rows)
        for system in self.systems or ():
            if system not in rows:
                raise ParameterError(f"these tables have no row '{system}'; there are {', '.join(rows)}")
        if not self.tables:
            raise ParameterError(f"name at least one table of {', '.join(PAPER_TABLES)}")

    def _check_settings(self) -> None:
        Regularization.of(self.settings.regularization)
        if self.settings.regularization == "auto":
            raise ParameterError("the systems share features, onto which no defect can be pasted; give 'likelihood'")
        if self.settings.weights is not None and not self.settings.pretrained:
            raise ParameterError("--weights and --random-weights exclude each other; give one or the other")
        if not (math.isfinite(self.limit_gb) and self.limit_gb >= 0):
            raise ParameterError(f"the disk for features must be a finite number of GB from 0, got {self.limit_gb}")
        budget = self.settings.budget
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            raise ParameterError(f"the budget must be a finite number of minutes above 0, got {budget}")

    @property
    def _datasets(self) -> tuple[str, ...]:
        if self.dataset not in ("mvtec_ad", "stc"):
            raise ParameterError(f"the paper's data sets are mvtec_ad and stc, got '{self.dataset}'")
        return ("mvtec_ad", RD, "speed") if self.dataset == "mvtec_ad" else ("stc", "speed")


@dataclass(frozen=True)
class Group:
    """Runs on one class that share their images: each a system and its seed."""

    dataset: str
    path: Path
    image_seed: int
    todo: Sequence[tuple[System, int]]


def class_paths(plan: Plan) -> list[Path]:
    """Folders of the classes to run. ParameterError if there are none."""
    layout = LAYOUTS[plan.dataset]
    if not plan.root.exists() and not layout.holds(plan.root):  # scenes of videos have no folders
        raise ParameterError(f"{plan.root}: no such folder; give that of {layout.title}, or a class of it")
    paths = layout.find_classes(plan.root) or ([plan.root] if layout.holds(plan.root) else [])
    if plan.classes is not None:
        paths = [path for path in paths if path.name in plan.classes]
    if not paths:
        raise ParameterError(f"{plan.root}: holds no class of {layout.title}; `flawmap datasets check` says more")
    return paths


def classes_on_disk(plan: Plan) -> tuple[str, ...]:
    """Names of all classes on disk, asked for or not; for a single class also its neighbours."""
    layout = LAYOUTS[plan.dataset]
    paths = layout.find_classes(plan.root) or [plan.root, *layout.find_classes(plan.root.parent)]
    return tuple(dict.fromkeys(path.name for path in paths))


def asked_classes(plan: Plan) -> tuple[str, ...] | None:
    """Names of the classes that were asked for; None for all."""
    if plan.classes is not None:
        return tuple(plan.classes)
    return None if LAYOUTS[plan.dataset].find_classes(plan.root) else (plan.root.name,)


def left_out(plan: Plan) -> dict[str, str]:
    """Rows of the tables that are not run, and why."""
    known = plan.known_systems
    reasons = {}
    for name in dict.fromkeys(row for table in _tables_of_data(plan) for row in table.rows):
        if plan.systems is not None and name not in plan.systems:
            reasons[name] = "not asked for"
        elif name not in known:
            reasons[name] = "the paper's figure alone; flawmap runs no such system with this backbone"
        elif name in TRAINED and not plan.settings.can_train:
            reasons[name] = UNTRAINED
    return reasons


def groups(plan: Plan, paths: Sequence[Path], done: Container[RunKey]) -> Iterator[Group]:
    """All runs that are not done, class by class."""
    absent, known = left_out(plan), plan.known_systems
    for dataset in (plan.dataset, RD):
        tables = [table for table in _tables_of_data(plan) if table.dataset == dataset]
        wanted = [
            known[row] for row in dict.fromkeys(row for table in tables for row in table.rows if row not in absent)
        ]
        if dataset == RD:  # images that are rotated anew for each seed
            sharing = [[(system, seed) for system in wanted] for seed in range(plan.rd_seeds)]
        else:
            sharing = [[(system, seed) for system in wanted for seed in range(plan.draws if system.is_random else 1)]]
        for path in paths:
            for image_seed, runs in enumerate(sharing):
                todo = [one for one in runs if (dataset, path.name, one[0].name, one[1]) not in done]
                if todo:
                    yield Group(dataset, path, image_seed, todo)


def _tables_of_data(plan: Plan) -> list[PaperTable]:
    return [PAPER_TABLES[name] for name in plan.tables if PAPER_TABLES[name].dataset != "speed"]
