"""The tables of the PaDiM paper (Defard et al. 2020, arXiv 2011.08785): what they hold, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flawmap.benchmark.paper.class_images import RD
from flawmap.benchmark.paper.systems import OWN, Settings, own_name

__all__ = ["OBJECTS", "PAPER_TABLES", "TEXTURES", "PaperTable", "paper_figure"]

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
)

ONLY_MEASURED = ("MahalanobisAD", "Patch SVDD", "GANomaly", "ITAE")
MEASURED = ("SPADE", "VAE", "PaDiM-R18-Rd100", "PaDiM-WR50-Rd550", *ONLY_MEASURED)
LOCALISATION = ("pixel_auroc", "pro_score")


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        name: its number. title: what it shows.
        dataset: that of the runs, or "speed".
        rows: systems, in order; the main PaDiM by its ablation, such as "Rd100".
        measures: columns.
        only_ours: of the rows, those that the paper's table has not.
    """

    name: str
    title: str
    dataset: str
    rows: Sequence[str]
    measures: Sequence[str]
    only_ours: Sequence[str] = ()

    def label(self, system: str, settings: Settings) -> str:
        """What a row is called here and in the paper's numbers."""
        return own_name(settings, system) if system in OWN and self.name not in ("I", "II") else system


PAPER_TABLES = {
    table.name: table
    for table in (
        PaperTable("I", "layers", "mvtec_ad", ("layer1", "layer2", "layer3", "sum", "all"), LOCALISATION),
        PaperTable(
            "II", "random channels and principal components", "mvtec_ad",
            ("Rd100", "PCA100", "Rd200", "PCA200", "all"), LOCALISATION,
        ),
        PaperTable(
            "III", "localisation on MVTec AD", "mvtec_ad",
            ("VAE", "Patch SVDD", "SPADE", "Rd100", "PaDiM-WR50-Rd550", "SPADE here"), LOCALISATION, ("SPADE here",),
        ),
        PaperTable(
            "IV", "localisation on ShanghaiTech Campus", "stc", ("CAVGA-RU", "SPADE", "Rd100", "SPADE here"),
            ("pixel_auroc",), ("SPADE here",),
        ),
        PaperTable(
            "V", "detection on MVTec AD", "mvtec_ad",
            ("GANomaly", "ITAE", "Patch SVDD", "SPADE", "MahalanobisAD", "PaDiM-WR50-Rd550", "PaDiM-EfficientNet-B5",
             "Rd100", "all", "SPADE here", "MahalanobisAD here"), ("image_auroc",),
            ("Rd100", "all", "SPADE here", "MahalanobisAD here"),
        ),
        PaperTable(
            "VI", "localisation on Rd-MVTec AD", RD,
            ("VAE", "SPADE", "PaDiM-WR50-Rd550", "Rd100", "all", "SPADE here"), LOCALISATION,
            ("Rd100", "all", "SPADE here"),
        ),
        PaperTable("VII", "seconds an image", "speed", MEASURED, ("seconds",), ONLY_MEASURED),
        PaperTable("VIII", "memory in GB", "speed", MEASURED, ("gigabytes",), ONLY_MEASURED),
    )
}  # fmt: skip


def paper_figure(table: PaperTable, row: str, over: str, measure: str) -> float | None:
    """The paper's number for a row over a class or group; in per cent where it is a share. None if it has none."""
    figures = _figures()[table.name]
    if table.name == "III":
        return _of_classes(figures, row, over, table.measures.index(measure))
    values = figures.get(row, {}).get(over)
    return None if values is None else values[table.measures.index(measure)]


def _of_classes(figures: dict[str, dict[str, list[float | None]]], row: str, over: str, place: int) -> float | None:
    """Of table III, whose means over groups follow from its classes."""
    groups = {"textures": TEXTURES, "objects": OBJECTS, "all": TEXTURES + OBJECTS}
    values = [figures.get(name, {}).get(row, [None, None])[place] for name in groups.get(over, (over,))]
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 2) if len(known) == len(values) else None


@cache
def _figures() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files(__package__).joinpath("published.json").read_text("utf-8"))
    return content
