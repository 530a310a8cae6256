"""Frozen pretrained networks: their catalogue, their weights, and what runs them."""

from flawmap.backbones.loading import Claim, feature_levels, load_backbone, size_step, usual_layers
from flawmap.backbones.network import AT_ONCE, Backbone
from flawmap.backbones.runtimes import (
    COMPILE_FROM,
    NETWORKS,
    CompiledNetwork,
    FeatureNetwork,
    NormalisedNetwork,
    Policy,
    convert,
    pick_device,
    plain_torch,
    uninterrupted,
)
from flawmap.backbones.weights import CATALOGUE, DEFAULT_BACKBONE

__all__ = [
    "AT_ONCE",
    "CATALOGUE",
    "COMPILE_FROM",
    "DEFAULT_BACKBONE",
    "NETWORKS",
    "Backbone",
    "Claim",
    "CompiledNetwork",
    "FeatureNetwork",
    "NormalisedNetwork",
    "Policy",
    "convert",
    "feature_levels",
    "load_backbone",
    "pick_device",
    "plain_torch",
    "size_step",
    "uninterrupted",
    "usual_layers",
]
