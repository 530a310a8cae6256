"""Writes fitted models as graphs that run without torch."""

from flawmap.export.folder import export_model

__all__ = ["export_model"]
