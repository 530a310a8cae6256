"""The papers' configurations of the detectors, by name; of PaDiM those of Defard et al. 2020, section IV."""

from __future__ import annotations

from typing import Any

from flawmap.errors import ParameterError

__all__ = ["PRESETS", "preset_arguments"]

_PAPER_IMAGES: dict[str, Any] = {"resize": 256, "crop": 224, "regularization": 0.01}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "padim": {
        "padim-r18-rd100": {"backbone": "resnet18", "n_features": 100, **_PAPER_IMAGES},
        "padim-wr50-rd550": {"backbone": "wide_resnet50_2", "n_features": 550, **_PAPER_IMAGES},
        # The paper takes the outputs of its stages 2, 4 and 5 and states no reduction: all 344 channels are kept.
        "padim-effnet-b5": {
            "backbone": "efficientnet_b5",
            "layers": ("blocks.1", "blocks.3", "blocks.4"),
            "n_features": None,
            **_PAPER_IMAGES,
        },
    },
    "spade": {
        # Cohen & Hoshen 2020, with 50 neighbours as for MVTec AD.
        "spade-wr50": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer1", "layer2", "layer3"),
            "image_layer": "layer4",
            "n_neighbors": 50,
            "variant": "paper",
            "resize": 256,
            "crop": 224,
        },
    },
    # Rippel et al. 2020.
    "mahalanobis-ad": {"mahalanobis-ad-effnet-b4": {"backbone": "efficientnet_b4", "resize": 380}},
    # What is trained is trained as in its paper unless told otherwise; see the `paper` of each.
    "vae": {"vae-paper": {}},
    "patch-svdd": {"patch-svdd-paper": {}},
    "ganomaly": {"ganomaly-paper": {}},
    "itae": {"itae-paper": {}},
}
"""By detector and name, the arguments that `from_preset(name)` applies."""


def preset_arguments(detector: str, preset: str) -> dict[str, Any]:
    """The arguments of a detector's preset. ParameterError for an unknown one."""
    known = PRESETS[detector]
    if preset not in known:
        raise ParameterError(f"unknown preset '{preset}'; there are {', '.join(known)}")
    return known[preset]
