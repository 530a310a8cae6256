"""Writes fitted models as graphs that run without torch."""

from flawmap.export.folder import Dtype, Format, export_model

__all__ = ["Dtype", "Format", "export_model"]
