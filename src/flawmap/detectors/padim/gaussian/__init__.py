"""Gaussians of patch embeddings: moments, their factorisation, distances, leave-one-out. Pure functions on tensors."""

from flawmap.detectors.padim.gaussian.factor import (
    Factor,
    covariance_at,
    factorise,
    inner_products,
    mean_at,
    squared_distances,
    typical_distance,
)
from flawmap.detectors.padim.gaussian.leave_one_out import (
    Probe,
    Sketcher,
    choose_regularization,
    leave_group_out,
    leave_one_out,
    log_likelihoods,
    near_duplicates,
)
from flawmap.detectors.padim.gaussian.moments import (
    PAPER,
    Moments,
    Regularization,
    merge,
    principal_components,
    shared_scatter,
    subtract,
    update,
)

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
