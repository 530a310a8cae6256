"""Writes the network as an OpenVINO graph: model.xml and model.bin."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from flawmap.backbones import convert, uninterrupted
from flawmap.openvino_module import import_openvino
from flawmap.prediction import Size
from flawmap.runtime.graphs import INPUT, OUTPUTS
from flawmap.runtime.metadata import FILES


def write_openvino(
    network: nn.Module,
    folder: Path,
    *,
    image_size: Size,
    outputs: Sequence[str] = OUTPUTS,
    half: bool,
    resize_inside: bool,
) -> None:
    """Write the network, for images of `image_size` or of any size, with 16-bit constants if `half`."""
    openvino = import_openvino()
    model = uninterrupted(lambda: convert(network, image_size))
    model.input(0).get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, outputs, strict=True):
        output.get_tensor().set_names({name})
    if resize_inside:
        model = _resize_first(openvino, model, image_size)
    path = folder / FILES["openvino"][0]
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:  # how its streams tell of a full disk
        raise OSError(errno.EIO, f"OpenVINO cannot write the graph: {str(error).strip().splitlines()[-1]}") from error


def _resize_first(openvino: Any, model: Any, size: Size) -> Any:  # noqa: ANN401 (a module, openvino.Model)
    """The graph for images of any size: bilinear and antialiased, rounded after each axis, as Pillow does it."""
    from openvino import opset13 as ops

    images = ops.parameter([-1, -1, -1, 3], np.uint8, name=INPUT)
    images.output(0).get_tensor().set_names({INPUT})
    planes = ops.transpose(ops.convert(images, "f32"), np.array([0, 3, 1, 2]))
    height = ops.gather(ops.shape_of(images), np.array([1]), np.array(0))
    targets = [ops.concat([height, ops.constant(np.array(size[1:]))], 0), ops.constant(np.array(size))]
    for target in targets:  # the width first; 8-bit interpolation of OpenVINO would round halves to even, Pillow up
        resized = ops.interpolate(planes, target, "bilinear_pillow", "sizes", axes=np.array([2, 3]))
        planes = ops.floor(ops.add(resized, np.float32(0.5)))
    ready = ops.convert(ops.transpose(planes, np.array([0, 2, 3, 1])), "u8")
    for consumer in model.input(0).get_target_inputs():
        consumer.replace_source_output(ready.output(0))
    return openvino.Model(model.get_results(), [images], "flawmap")
