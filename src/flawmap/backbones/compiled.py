"""Networks compiled by OpenVINO: on a CPU several times faster than torch, with the same numbers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.openvino_module import has_bfloat16, import_openvino
from flawmap.prediction import Size

__all__ = ["NETWORKS", "CompiledNetwork", "NormalisedNetwork", "Precision", "trace"]

Precision = Literal["float32", "bfloat16"]
NETWORKS = threading.RLock()
"""Held while torch runs a network or traces it: tracing swaps tensors and methods that every thread sees."""
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


class NormalisedNetwork(nn.Module):
    """A network with what comes before it: images (N, H, W, 3) uint8 to its feature maps (N, C, h, w)."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.scale: Tensor
        self.shift: Tensor
        # x / 255 - mean, over std, as one product and one sum
        self.register_buffer("scale", (1 / (255 * std.double())).float())
        self.register_buffer("shift", (-mean.double() / std).float())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of each layer."""
        maps: Sequence[Tensor] = self.network((images.float() * self.scale + self.shift).permute(0, 3, 1, 2))
        return tuple(maps)


class CompiledNetwork:
    """A network compiled for images of one size (height, width), any number at a time; threads wait for each other.

    Args:
        network: from images (N, H, W, 3) uint8 to one or more tensors.
        precision: bfloat16 only where the processor has it.

    Raises whatever torch or OpenVINO raise for a network that cannot be converted.
    """

    def __init__(self, network: nn.Module, size: Size, precision: Precision) -> None:
        openvino = import_openvino()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracers warn of what is constant here, such as the number of channels
            model = openvino.convert_model(trace(network, size))
        model.reshape([-1, *size, 3])
        hint = HINTS[precision if has_bfloat16() else "float32"]
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        self._request: Any = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
        self._n_outputs = len(model.outputs)
        self._lock = threading.Lock()

    def __call__(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """The network's outputs for RGB images (N, H, W, 3)."""
        with self._lock:
            results = self._request.infer({0: np.ascontiguousarray(pixels)})  # copies: the next call reuses its memory
        return [torch.from_numpy(results[i]) for i in range(self._n_outputs)]


def trace(network: nn.Module, size: Size) -> torch.export.ExportedProgram:
    """A network's operations for any number of images (N, H, W, 3) uint8 of one size (height, width)."""
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)  # a batch of one would be taken for a constant
    batch = torch.export.Dim("batch", min=1)
    with NETWORKS:
        return torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},))
