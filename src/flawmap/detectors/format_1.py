"""Documents of model files of format 1, as flawmap 0.1 wrote them, converted to format 2."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

USUAL_RATE = 0.01
"""False-alarm rate of a file that does not say which one was asked for."""


def upgrade(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document in format 2. Raises KeyError, TypeError or ValueError where it is not one of format 1.

    Format 1 did not store all parameters: the method and the rate of the calibration are those of its decision.
    """
    old = copy.deepcopy({name: value for name, value in document.items() if name != "format_version"})
    detector, decision = str(old.pop("detector")), old.pop("decision")
    backbone = old.pop("backbone", None)
    parameters: dict[str, Any] = {
        "seed": old.pop("seed"),
        **old.pop("preprocessing"),
        "calibrate": None if decision is None else decision["method"],
        "false_alarm_rate": (None if decision is None else decision["false_alarm_rate"]) or USUAL_RATE,
    }
    if backbone is not None:
        backbone = {**backbone, "grids": old.pop("grids"), "n_channels": old.pop("n_channels")}
        if detector == "padim":
            parameters["precision"] = backbone.get("precision", "float32")
        parameters |= {"backbone": backbone["name"], "pretrained": backbone["pretrained"], "layers": backbone["layers"]}
    upgraded = {
        "format_version": 2,
        "detector": detector,
        "parameters": parameters,
        "backbone": backbone,
        "n_images": old.pop("n_images"),
        "decision": decision,
        "versions": old.pop("versions"),
        "factor_dtype": old.pop("factor_dtype", "float32"),
        "learnt": UPGRADES[detector](old, parameters),
    }
    if old:
        raise ValueError(f"unknown fields {', '.join(old)}")
    return upgraded


def _padim(old: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """What was learnt; `old` loses what is used, `parameters` gains what is a parameter."""
    regularization, channels = old.pop("regularization"), old.pop("channels")
    chosen = regularization.pop("chosen")
    reduction = old.pop("reduction", "random")
    parameters |= {
        "n_features": old.pop("n_features"),
        "reduction": reduction,
        "channels": None if reduction == "pca" else channels,
        "regularization": "auto" if chosen == "auto" else (regularization["sharing"], regularization["ridge"]),
    }
    return {"channels": channels, "regularization": regularization}


def _spade(old: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    layers, image_layer, n_neighbors = old.pop("layers"), old.pop("image_layer"), old.pop("n_neighbors")
    parameters |= {
        "layers": layers,
        "image_layer": image_layer,
        "n_neighbors": n_neighbors,
        **{name: old.pop(name) for name in ("variant", "coreset", "n_mapped")},
    }
    return {"layers": layers, "image_layer": image_layer, "n_neighbors": n_neighbors}


def _mahalanobis_ad(old: dict[str, Any], _parameters: dict[str, Any]) -> dict[str, Any]:
    return {"shrinkage": old.pop("shrinkage")}


def _trained(old: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    training = old.pop("training")
    names = ("epochs", "batch_size", "learning_rate", "budget", "patience", "precision")
    parameters |= {"width": old.pop("width"), **{name: training.pop(name) for name in names}}
    return {"training": training, "usual_score": old.pop("usual_score")}


UPGRADES = {
    "padim": _padim,
    "spade": _spade,
    "mahalanobis-ad": _mahalanobis_ad,
    "vae": _trained,
    "patch-svdd": _trained,
    "ganomaly": _trained,
    "itae": _trained,
}
