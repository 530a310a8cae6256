"""Frozen pretrained networks: their catalogue, their weights, and the code that runs them."""

from flawmap.backbones.catalogue import CATALOGUE, DEFAULT_BACKBONE
from flawmap.backbones.compiled import Precision
from flawmap.backbones.network import Backbone, Runtime, feature_levels, load_backbone, pick_device

__all__ = [
    "CATALOGUE",
    "DEFAULT_BACKBONE",
    "Backbone",
    "Precision",
    "Runtime",
    "feature_levels",
    "load_backbone",
    "pick_device",
]
