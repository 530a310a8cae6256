"""Writes predictions: tables, overlays, maps, masks and contact sheets."""

from flawmap.results.pictures import Tile, contact_sheet, overlay
from flawmap.results.writer import ResultsWriter, without_results, without_tables

__all__ = ["ResultsWriter", "Tile", "contact_sheet", "overlay", "without_results", "without_tables"]
