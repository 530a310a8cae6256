"""Gaussians of patch embeddings: moments, their factorisation, and distances. Pure functions on tensors."""

from flawmap.detectors.padim.gaussian.distance import inner_products, squared_distances, typical_distance
from flawmap.detectors.padim.gaussian.factor import Factor, covariance_at, factorise, mean_at
from flawmap.detectors.padim.gaussian.leave_one_out import leave_group_out, leave_one_out
from flawmap.detectors.padim.gaussian.likelihood import Probe, choose_regularization, log_likelihoods
from flawmap.detectors.padim.gaussian.moments import Moments, merge, subtract, update
from flawmap.detectors.padim.gaussian.pca import principal_components
from flawmap.detectors.padim.gaussian.regularization import PAPER, Regularization, shared_scatter
from flawmap.detectors.padim.gaussian.similarity import Sketcher, near_duplicates

__all__ = [
    "PAPER",
    "Factor",
    "Moments",
    "Probe",
    "Regularization",
    "Sketcher",
    "choose_regularization",
    "covariance_at",
    "factorise",
    "inner_products",
    "leave_group_out",
    "leave_one_out",
    "log_likelihoods",
    "mean_at",
    "merge",
    "near_duplicates",
    "principal_components",
    "shared_scatter",
    "squared_distances",
    "subtract",
    "typical_distance",
    "update",
]
