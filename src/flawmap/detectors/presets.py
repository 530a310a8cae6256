"""The paper's configurations of PaDiM (Defard et al. 2020, section IV), by name."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

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
