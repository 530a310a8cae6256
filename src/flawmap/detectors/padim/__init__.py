"""PaDiM: one Gaussian per patch position, Mahalanobis distances (Defard et al. 2020, arXiv 2011.08785)."""
