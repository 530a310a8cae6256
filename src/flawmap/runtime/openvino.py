"""Graphs run by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ParameterError
from flawmap.openvino_module import import_openvino
from flawmap.runtime.graph import INPUT, Precision, no_graph, outputs_of
from flawmap.runtime.metadata import Metadata

__all__ = ["OpenVinoGraph"]

HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoGraph:
    """A compiled OpenVINO graph. It computes in the precision asked for: OpenVINO alone would choose 16 bits on some.

    Attributes:
        device: the OpenVINO device that runs it.
    """

    def __init__(self, path: Path, metadata: Metadata, device: str, threads: int | None, precision: Precision) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        self.device = _pick_device(core, device)
        options: dict[str, object] = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None and self.device == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            height, width = (-1, -1) if metadata.graph.resize_inside else metadata.image_size
            wanted = [-1, height, width, 3]
            if model.input(INPUT).partial_shape != openvino.PartialShape(wanted):
                raise ValueError(f"it takes images {model.input(INPUT).partial_shape}, its metadata says {wanted}")
            self._outputs = outputs_of(metadata)
            for name in self._outputs:
                model.output(name)
            compiled = core.compile_model(model, self.device, options)
        except (RuntimeError, ValueError) as error:
            raise no_graph(path, error) from error
        self._request = compiled.create_infer_request()
        self._lock = Lock()

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Anomaly maps (N, h, w), if the graph has any, and image scores (N,) of images (N, H, W, 3)."""
        with self._lock:
            results = self._request.infer({INPUT: images})  # copies: the next call reuses its memory
        *maps, scores = (results[name] for name in self._outputs)
        return (maps[0] if maps else None), scores


def _pick_device(core: Any, device: str) -> str:  # noqa: ANN401 (openvino.Core)
    """An OpenVINO device by name, in any case; "auto" is the CPU, whose numbers are those of `PaDiM.predict`."""
    wanted = "CPU" if device == "auto" else str(device).upper()
    available: list[str] = core.available_devices
    if not any(name.split(".")[0] == wanted.split(".")[0] for name in available):
        raise ParameterError(f"device {device!r} is not to be had; OpenVINO finds {', '.join(available)} here")
    return wanted
