"""Writes the network as an ONNX graph: model.onnx, and model.onnx.data for what one file cannot hold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawmap.backbones import uninterrupted
from flawmap.errors import MissingDependencyError
from flawmap.prediction import Size
from flawmap.runtime.graphs import INPUT, OUTPUTS
from flawmap.runtime.metadata import FILES

ONE_FILE_BYTES = 2**30
"""Constants of more bytes go into a file of their own; protobuf ends at 2 GB."""
SMALL = 1024
"""Constants of fewer elements stay float32: they save nothing, and every conversion takes time."""


def write_onnx(
    network: nn.Module,
    folder: Path,
    *,
    image_size: Size,
    outputs: Sequence[str] = OUTPUTS,
    half: bool,
    resize_inside: bool,
) -> None:
    """Write the network, for images of `image_size` or of any size, with 16-bit constants if `half`."""
    try:
        import onnx_ir
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to ONNX needs {error.name}, which is not installed: pip install 'flawmap[onnx]'"
        ) from error
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)  # it warns of every node that it does not fold
    n_channels = getattr(network, "n_channels", 3)
    example = torch.zeros(2, *image_size, n_channels, dtype=torch.uint8)  # a batch of one would be taken for a constant
    batch = torch.export.Dim("batch", min=1)
    program = uninterrupted(lambda: torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},)))
    exported: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[INPUT], output_names=list(outputs), external_data=True
    )
    model = exported.model
    if half:
        _halve(model.graph)
    if resize_inside:
        _resize_first(model.graph, image_size)
    one_file, data_file = FILES["onnx"]
    n_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, folder / one_file, external_data=data_file if n_bytes > ONE_FILE_BYTES else None)


def _halve(graph: Any) -> None:  # noqa: ANN401 (onnx_ir.Graph)
    """Store large float32 constants in 16 bits, converted back where the graph begins."""
    import onnx_ir

    for value in list(graph.initializers.values()):
        array = value.const_value.numpy()
        if array.dtype != np.float32 or array.size < SMALL or np.abs(array).max() > np.finfo(np.float16).max:
            continue
        name = f"{value.name}.float16"
        stored = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array.astype(np.float16), name=name))
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT})
        onnx_ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[value.name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def _resize_first(graph: Any, size: Size) -> None:  # noqa: ANN401 (onnx_ir.Graph)
    """Take images of any size: bilinear and antialiased, rounded after each axis, nearly as Pillow does it."""
    import onnx_ir

    nodes: list[Any] = []

    def add(operation: str, inputs: list[Any], **attributes: int | str | list[int]) -> Any:  # noqa: ANN401 (onnx_ir.Value)
        nodes.append(onnx_ir.node(operation, inputs, attributes=attributes))
        return nodes[-1].outputs[0]

    def constant(name: str, array: NDArray[Any]) -> Any:  # noqa: ANN401 (onnx_ir.Value)
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        graph.register_initializer(value)
        return value

    ready = graph.inputs[0]
    sides = ready.shape[0], "image_height", "image_width", 3
    images = onnx_ir.Value(name=INPUT, type=ready.type, shape=onnx_ir.Shape(sides))
    ready.name = "resized_images"
    half = constant("half", np.array(0.5, np.float32))
    planes = add("Transpose", [add("Cast", [images], to=onnx_ir.DataType.FLOAT)], perm=[0, 3, 1, 2])
    for n_kept in (3, 2):  # the width first
        kept = add("Shape", [planes], start=0, end=n_kept)
        target = add("Concat", [kept, constant(f"resized_{n_kept}", np.array(size[n_kept - 2 :], np.int64))], axis=0)
        resized = add("Resize", [planes, None, None, target], antialias=1, mode="linear")  # half_pixel by default
        planes = add("Floor", [add("Add", [resized, half])])
    pixels = add("Cast", [add("Transpose", [planes], perm=[0, 2, 3, 1])], to=onnx_ir.DataType.UINT8)
    onnx_ir.convenience.replace_all_uses_with(ready, pixels)
    graph.inputs[0] = images
    graph.insert_before(graph[0], nodes)
