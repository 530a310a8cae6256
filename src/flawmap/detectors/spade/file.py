"""What the file of a SPADE model must hold to be trusted, and its gallery, which stays in the file."""

from __future__ import annotations

import math

import torch

from flawmap.decision import Decision
from flawmap.detectors.decision_file import decision_shapes, restore_decision
from flawmap.detectors.padim.file import MAX_POSITIONS
from flawmap.detectors.spade.gallery import Gallery
from flawmap.detectors.spade.search import Known, Layout
from flawmap.errors import ModelFileError, ParameterError
from flawmap.model_file import ModelFile, SpadeDocument
from flawmap.prediction import Size

__all__ = ["described_layout", "open_known"]


def described_layout(document: SpadeDocument, input_size: Size) -> Layout:
    """The layout that a document describes; ParameterError if it contradicts itself."""
    read = document.backbone.layers
    if not len(document.grids) == len(document.n_channels) == len(read):
        raise ParameterError("layers, grids and channel counts differ in number")
    if document.image_layer not in read or read != (
        document.layers if document.image_layer in document.layers else (*document.layers, document.image_layer)
    ):
        raise ParameterError("the backbone's layers are not those that are compared")
    if any(math.prod(grid) > min(MAX_POSITIONS, math.prod(input_size)) for grid in document.grids):
        raise ParameterError("a grid is finer than the images")
    if document.n_neighbors > document.n_images:
        raise ParameterError("there are more neighbours than images")
    return Layout.of(
        list(zip(document.n_channels, document.grids, strict=True)),
        len(document.layers),
        read.index(document.image_layer),
        variant=document.variant,
        coreset=document.coreset,
    )


def open_known(
    file: ModelFile[SpadeDocument], layout: Layout, device: torch.device, *, cache_mb: float
) -> tuple[Known, Decision | None]:
    """A file's pooled features, on a device, its gallery, and what it decides by."""
    document = file.document
    expected: dict[str, tuple[int, ...]] = {
        "pooled": (document.n_images, document.n_channels[layout.image_layer]),
        "gallery": (document.n_images, layout.n_values),
    }
    expected |= decision_shapes(document.decision)
    tensors = file.read(expected, device, leave={"gallery"})
    if file.dtypes["gallery"] != "F32":
        raise ModelFileError(f"{file.path}: its gallery is of {file.dtypes['gallery']}, expected F32; fit again")
    gallery = Gallery.open(file.path, file.starts["gallery"], document.n_images, layout.n_values, cache_mb=cache_mb)
    return Known(tensors["pooled"], gallery), restore_decision(file, tensors)
