"""The papers' configurations of the detectors, by name; of PaDiM those of Defard et al. 2020, section IV."""

from __future__ import annotations

from typing import Any

__all__ = ["MAHALANOBIS_AD_PRESETS", "PRESETS", "SPADE_PRESETS"]

_PAPER_IMAGES: dict[str, Any] = {"resize": 256, "crop": 224, "regularization": 0.01}

PRESETS: dict[str, dict[str, Any]] = {
    "padim-r18-rd100": {"backbone": "resnet18", "n_features": 100, **_PAPER_IMAGES},
    "padim-wr50-rd550": {"backbone": "wide_resnet50_2", "n_features": 550, **_PAPER_IMAGES},
    # The paper takes the outputs of its stages 2, 4 and 5 and does not state a reduction: all 344 channels are kept.
    "padim-effnet-b5": {
        "backbone": "efficientnet_b5",
        "layers": ("blocks.1", "blocks.3", "blocks.4"),
        "n_features": None,
        **_PAPER_IMAGES,
    },
}
"""Arguments of `PaDiM` for each preset; `PaDiM.from_preset(name)` applies them."""

SPADE_PRESETS: dict[str, dict[str, Any]] = {
    "spade-wr50": {
        "backbone": "wide_resnet50_2",
        "layers": ("layer1", "layer2", "layer3"),
        "image_layer": "layer4",
        "n_neighbors": 50,
        "variant": "paper",
        "resize": 256,
        "crop": 224,
    },
}
"""Arguments of `SPADE` for each preset (Cohen & Hoshen 2020, with 50 neighbours as for MVTec AD)."""

MAHALANOBIS_AD_PRESETS: dict[str, dict[str, Any]] = {
    "mahalanobis-ad-effnet-b4": {"backbone": "efficientnet_b4", "resize": 380},
}
"""Arguments of `MahalanobisAD` for each preset (Rippel et al. 2020)."""
