"""The tables of the PaDiM paper (Defard et al. 2020, arXiv 2011.08785): their rows, and the paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from flawmap.benchmark.paper.systems import OWN, Settings, own_name
from flawmap.datasets import LAYOUTS

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = tuple(name for name in LAYOUTS["mvtec_ad"].classes if name not in TEXTURES)
GROUPS = {"textures": TEXTURES, "objects": OBJECTS, "all": TEXTURES + OBJECTS}


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        name: its number.
        title: its subject.
        dataset: data set of the runs, or "speed".
        rows: systems, in order; the main PaDiM by its ablation, such as "Rd100".
        measures: columns.
        figures: the paper's numbers, in per cent for shares: for each row, by class or group, one for each measure.
    """

    name: str
    title: str
    dataset: str
    rows: Sequence[str]
    measures: Sequence[str]
    figures: Mapping[str, Mapping[str, Sequence[float | None]]]

    def label(self, system: str, settings: Settings) -> str:
        """Name of a row in the tables and in `figures`."""
        return own_name(settings, system) if system in OWN and self.name not in ("I", "II") else system

    def figure(self, row: str, over: str, measure: str) -> float | None:
        """The paper's number for a row over a class or group; None without one.

        Table III has classes alone: its groups are the means over their classes.
        """
        own, index = self.figures.get(row, {}), self.measures.index(measure)
        if over in own:
            return own[over][index]
        values = [own[name][index] if name in own else None for name in GROUPS.get(over, ())]
        known = [value for value in values if value is not None]
        return round(sum(known) / len(known), 2) if known and len(known) == len(values) else None


def _read_tables() -> dict[str, PaperTable]:
    content = json.loads(files(__package__).joinpath("published.json").read_text("utf-8"))
    return {name: PaperTable(name, **table) for name, table in content.items() if name != "source"}


PAPER_TABLES = _read_tables()
"""Tables I to VIII, by number."""
