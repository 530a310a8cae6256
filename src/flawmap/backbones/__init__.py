"""Frozen pretrained networks: their catalogue, their weights, and the code that runs them."""

from flawmap.backbones.catalogue import CATALOGUE, DEFAULT_BACKBONE
from flawmap.backbones.network import (
    Backbone,
    Precision,
    PrecisionChoice,
    Runtime,
    feature_levels,
    load_backbone,
    pick_device,
)

__all__ = [
    "CATALOGUE",
    "DEFAULT_BACKBONE",
    "Backbone",
    "Precision",
    "PrecisionChoice",
    "Runtime",
    "feature_levels",
    "load_backbone",
    "pick_device",
]
