"""SPADE: patches compared with those of the most similar good images (Cohen & Hoshen 2020, arXiv 2005.02357)."""

from flawmap.detectors.spade.detector import SPADE

__all__ = ["SPADE"]
