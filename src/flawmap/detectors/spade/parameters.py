"""What SPADE's parameters come to: its backbone, its layers, its K; and which cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flawmap.backbones import Backbone, feature_levels, load_backbone
from flawmap.backbones.catalogue import describe
from flawmap.detectors.detector import check_calibration, check_number, check_seed
from flawmap.detectors.spade.search import Variant
from flawmap.errors import ParameterError, TrainingSetError
from flawmap.images import check_cache

if TYPE_CHECKING:
    from flawmap.detectors.spade.detector import SPADE

__all__ = ["check_parameters", "count_neighbors", "load_layers"]

MAX_LAYERS = 5
USUAL_NEIGHBORS: dict[Variant, int] = {"paper": 50, "port": 5}


def load_layers(model: SPADE) -> tuple[Backbone, tuple[str, ...], str]:
    """The backbone, the layers whose patches are compared, and the one that is pooled."""
    if isinstance(model.layers, str):
        raise ParameterError(f"layers must be a list of names, got the text {model.layers!r}")
    levels = feature_levels(model.backbone) if model.layers is None or model.image_layer is None else ()
    usual = describe(model.backbone).layers or levels[1:4]
    layers = tuple(model.layers) if model.layers is not None else usual
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise ParameterError(f"layers must be one to {MAX_LAYERS} distinct names, got {list(layers)}")
    image_layer = model.image_layer
    if image_layer is None:
        image_layer = next(level for level in reversed(levels) if level not in ("bn1", "bn2"))
    backbone = load_backbone(
        model.backbone,
        layers=layers if image_layer in layers else (*layers, image_layer),
        pretrained=model.pretrained,
        weights=model.weights,
        seed=model.seed,
        device=model.device,
        runtime=model.runtime,
        most_layers=MAX_LAYERS + 1,
    )
    return backbone, layers, image_layer


def count_neighbors(model: SPADE, n_images: int) -> int:
    """K; raises for too few good images."""
    if n_images < 2:
        raise TrainingSetError(
            f"SPADE compares with similar images and needs at least 2 good images, got {n_images} usable; "
            f"a few dozen are a good start"
        )
    if model.n_neighbors is None:
        return min(USUAL_NEIGHBORS[model.variant], n_images)
    if model.n_neighbors > n_images:
        raise ParameterError(
            f"n_neighbors={model.n_neighbors} is more than the {n_images} good images; lower it, or leave it out"
        )
    return model.n_neighbors


def check_parameters(model: SPADE) -> None:
    """ParameterError for values that cannot be meant."""
    check_calibration(model.calibrate, ("leave-one-out", None), model.false_alarm_rate)
    if model.variant not in USUAL_NEIGHBORS:
        raise ParameterError(f"variant must be 'paper' or 'port', got {model.variant!r}")
    check_seed(model.seed)
    check_number("n_neighbors", 1 if model.n_neighbors is None else model.n_neighbors)
    check_number("n_mapped", model.n_mapped)
    if model.coreset is not None and not 0 < model.coreset <= 1:
        raise ParameterError(f"coreset must lie between 0 and 1, got {model.coreset}")
    check_cache(model.cache_mb)
