"""PaDiM: one Gaussian per patch position, Mahalanobis distances (Defard et al. 2020, arXiv 2011.08785)."""

from flawmap.detectors.padim.detector import PaDiM

__all__ = ["PaDiM"]
