"""Frozen pretrained networks: their catalogue, their weights, and the code that runs them."""

from flawmap.backbones.catalogue import CATALOGUE, DEFAULT_BACKBONE
from flawmap.backbones.network import Backbone, load_backbone, pick_device

__all__ = ["CATALOGUE", "DEFAULT_BACKBONE", "Backbone", "load_backbone", "pick_device"]
