"""What a benchmark of the paper's tables runs: which systems, on which classes, with which seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flawmap.benchmark.class_images import RD, read_class
from flawmap.benchmark.paper_tables import PAPER_TABLES, PaperTable
from flawmap.benchmark.results import Results
from flawmap.benchmark.systems import TRAINED, Settings, System, systems
from flawmap.errors import FlawmapError, ParameterError
from flawmap.images.datasets import LAYOUTS

__all__ = ["Group", "Plan", "class_paths", "groups", "left_out"]


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
        if self.draws < 1 or self.rd_seeds < 1:
            raise ParameterError(f"at least one draw and one seed are needed, got {self.draws} and {self.rd_seeds}")
        rows = dict.fromkeys(row for name in self.tables for row in PAPER_TABLES[name].rows)
        for system in self.systems or ():
            if system not in rows:
                raise ParameterError(f"these tables have no row '{system}'; there are {', '.join(rows)}")
        if not self.tables:
            raise ParameterError(f"name at least one table of {', '.join(PAPER_TABLES)}")

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

    def count(self, stride: int) -> int:
        """Images of the class, 0 if it cannot be read."""
        try:
            images = read_class("mvtec_ad" if self.dataset == RD else self.dataset, self.path, stride=stride)
        except FlawmapError:
            return 0
        return len(images.train) + len(images.test)


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


def left_out(plan: Plan) -> list[str]:
    """Systems of the tables that are not run because they train a network, and nothing says for how long."""
    if plan.settings.can_train:
        return []
    tables = [PAPER_TABLES[name] for name in plan.tables if PAPER_TABLES[name].dataset != "speed"]
    return [name for name in TRAINED if any(name in _wanted(plan, table) for table in tables)]


def groups(plan: Plan, paths: Sequence[Path]) -> Iterator[Group]:
    """All runs, class by class."""
    absent = left_out(plan)
    known = {name: system for name, system in systems(plan.settings).items() if name not in absent}
    for dataset in (plan.dataset, RD):
        tables = [PAPER_TABLES[name] for name in plan.tables if PAPER_TABLES[name].dataset == dataset]
        names = dict.fromkeys(name for table in tables for name in _wanted(plan, table) if name in known)
        if not names:
            continue
        for path in paths:
            if dataset == RD:
                for seed in range(plan.rd_seeds):
                    yield Group(RD, path, seed, tuple((known[name], seed) for name in names))
            else:
                runs = ((known[name], seed) for name in names for seed in range(plan.draws))
                yield Group(dataset, path, 0, tuple((s, seed) for s, seed in runs if s.is_random or seed == 0))


def _wanted(plan: Plan, table: PaperTable) -> list[str]:
    return [row for row in table.rows if plan.systems is None or row in plan.systems]
