"""What a benchmark of the paper's tables runs: which systems, on which classes, with which seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flawmap.benchmark.paper.class_images import RD
from flawmap.benchmark.paper.published import PAPER_TABLES, PaperTable
from flawmap.benchmark.paper.results import Results
from flawmap.benchmark.paper.systems import TRAINED, Settings, System, systems
from flawmap.datasets import LAYOUTS
from flawmap.detectors.padim.gaussian import Regularization
from flawmap.errors import ParameterError

__all__ = ["Group", "Plan", "asked_classes", "class_paths", "classes_on_disk", "groups", "left_out"]

MOST_SEEDS = 1000
UNTRAINED = "left out: on a CPU its paper's training takes hours; --budget MINUTES trains it for so long on each class"
SPADE_NEIGHBORS = {"stc": 1}
"""K of SPADE by data set, where its paper has another than 50."""


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        root: the data set's folder, or one class of it.
        dataset: mvtec_ad or stc.
        tables: numbers of the paper's tables.
        output: folder of the results.
        settings: what all runs have in common.
        draws: seeds of random draws; rd_seeds: of the rotations of Rd-MVTec AD.
        classes: names of those wanted; None for all.
        systems: rows of the tables that are wanted; None for all.
        limit_gb: disk for shared features.
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

    def check(self) -> None:
        """ParameterError for what cannot be meant."""
        for name in self.tables:
            if name not in PAPER_TABLES:
                raise ParameterError(f"unknown table '{name}'; there are {', '.join(PAPER_TABLES)}")
            if PAPER_TABLES[name].dataset not in self._datasets:
                raise ParameterError(f"table {name} is of {PAPER_TABLES[name].dataset}, not of {self.dataset}")
        if not (1 <= self.draws <= MOST_SEEDS and 1 <= self.rd_seeds <= MOST_SEEDS):
            raise ParameterError(
                f"at least one draw and one seed are needed, and at most {MOST_SEEDS}, got {self.draws} and "
                f"{self.rd_seeds}"
            )
        self._check_settings()
        rows = dict.fromkeys(row for name in self.tables for row in PAPER_TABLES[name].rows)
        for system in self.systems or ():
            if system not in rows:
                raise ParameterError(f"these tables have no row '{system}'; there are {', '.join(rows)}")
        if not self.tables:
            raise ParameterError(f"name at least one table of {', '.join(PAPER_TABLES)}")

    def _check_settings(self) -> None:
        Regularization.of(self.settings.regularization)
        if self.settings.weights is not None and not self.settings.pretrained:
            raise ParameterError("weights were named, and random ones asked for; give one or the other")
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
    """Runs on one class that share their images."""

    dataset: str
    path: Path
    image_seed: int
    todo: tuple[tuple[System, int], ...]

    def left(self, results: Results) -> Group:
        """The same with those runs only that there are no results of."""
        todo = tuple(
            (system, seed)
            for system, seed in self.todo
            if (self.dataset, self.path.name, system.name, seed) not in results.runs
        )
        return replace(self, todo=todo)


def class_paths(plan: Plan) -> list[Path]:
    """Folders of the classes that are wanted and there. ParameterError if there are none."""
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
    """Names of all classes that are there, wanted or not; beside a class that was named, its neighbours."""
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
    known = systems(plan.settings)
    reasons = {}
    for name in dict.fromkeys(row for table in _tables_of_data(plan) for row in table.rows):
        if plan.systems is not None and name not in plan.systems:
            reasons[name] = "not asked for"
        elif name not in known:
            reasons[name] = "the paper's figure alone; flawmap runs no such system with this backbone"
        elif name in TRAINED and not plan.settings.can_train:
            reasons[name] = UNTRAINED
    return reasons


def groups(plan: Plan, paths: Sequence[Path]) -> Iterator[Group]:
    """All runs, class by class."""
    absent = left_out(plan)
    known = systems(plan.settings, n_neighbors=SPADE_NEIGHBORS.get(plan.dataset))
    for dataset in (plan.dataset, RD):
        tables = [table for table in _tables_of_data(plan) if table.dataset == dataset]
        names = dict.fromkeys(name for table in tables for name in table.rows if name not in absent)
        if not names:
            continue
        for path in paths:
            if dataset == RD:
                for seed in range(plan.rd_seeds):
                    yield Group(RD, path, seed, tuple((known[name], seed) for name in names))
            else:
                runs = ((known[name], seed) for name in names for seed in range(plan.draws))
                yield Group(dataset, path, 0, tuple((s, seed) for s, seed in runs if s.is_random or seed == 0))


def _tables_of_data(plan: Plan) -> list[PaperTable]:
    return [PAPER_TABLES[name] for name in plan.tables if PAPER_TABLES[name].dataset != "speed"]
