"""Frozen pretrained networks: their catalogue, their weights, and the code that runs them."""

from flawmap.backbones.catalogue import CATALOGUE, DEFAULT_BACKBONE
from flawmap.backbones.compiled import NETWORKS, CompiledNetwork, NormalisedNetwork, trace
from flawmap.backbones.network import (
    COMPILE_AFTER,
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
    "COMPILE_AFTER",
    "DEFAULT_BACKBONE",
    "NETWORKS",
    "Backbone",
    "CompiledNetwork",
    "NormalisedNetwork",
    "Precision",
    "PrecisionChoice",
    "Runtime",
    "feature_levels",
    "load_backbone",
    "pick_device",
    "trace",
]
