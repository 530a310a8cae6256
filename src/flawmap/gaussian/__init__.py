"""Gaussians of patch embeddings: moments, their factorisation, and distances. Pure functions on tensors."""

from flawmap.gaussian.distance import inner_products, squared_distances, typical_distance
from flawmap.gaussian.factor import Factor, covariance_at, factorise, mean_at
from flawmap.gaussian.leave_one_out import MIN_IMAGES, leave_group_out, leave_one_out
from flawmap.gaussian.likelihood import Probe, choose_regularization, log_likelihoods
from flawmap.gaussian.moments import Moments, merge, subtract, update
from flawmap.gaussian.pca import principal_components
from flawmap.gaussian.pooled import PooledGaussian, learn_pooled
from flawmap.gaussian.regularization import PAPER, Regularization, shared_scatter
from flawmap.gaussian.similarity import Sketcher, near_duplicates

__all__ = [
    "MIN_IMAGES",
    "PAPER",
    "Factor",
    "Moments",
    "PooledGaussian",
    "Probe",
    "Regularization",
    "Sketcher",
    "choose_regularization",
    "covariance_at",
    "factorise",
    "inner_products",
    "learn_pooled",
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
