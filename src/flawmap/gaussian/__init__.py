"""Gaussians of patch embeddings: moments, their factorisation, and distances. Pure functions on tensors."""

from flawmap.gaussian.distance import squared_distances, typical_distance
from flawmap.gaussian.factor import Factor, covariance_at, factorise, mean_at
from flawmap.gaussian.leave_one_out import MIN_IMAGES, leave_one_out
from flawmap.gaussian.moments import Moments, merge, update
from flawmap.gaussian.pooled import PooledGaussian, learn_pooled

__all__ = [
    "MIN_IMAGES",
    "Factor",
    "Moments",
    "PooledGaussian",
    "covariance_at",
    "factorise",
    "learn_pooled",
    "leave_one_out",
    "mean_at",
    "merge",
    "squared_distances",
    "typical_distance",
    "update",
]
