"""Graphs run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import MissingDependencyError, ParameterError
from flawmap.runtime.graph import INPUT, no_graph, outputs_of
from flawmap.runtime.metadata import Metadata

__all__ = ["OnnxGraph"]

ERRORS_ONLY = 3
"""Severity from which ONNX Runtime writes to standard error."""


class OnnxGraph:
    """An ONNX Runtime session.

    Attributes:
        device: "cpu", or another that this build of ONNX Runtime supports, such as "cuda".
    """

    def __init__(self, path: Path, metadata: Metadata, device: str, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                f"this export needs ONNX Runtime, which cannot be imported ({error}): pip install onnxruntime"
            ) from error
        self.device = "cpu" if device == "auto" else str(device).lower()
        providers = {
            name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()
        }
        if self.device not in providers:
            raise ParameterError(f"device {device!r} is not to be had; ONNX Runtime finds {', '.join(providers)} here")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[providers[self.device]])
        except Exception as error:  # its exceptions share no base but this
            raise no_graph(path, error) from error
        self._outputs = outputs_of(metadata)
        self._check(path, metadata)

    def _check(self, path: Path, metadata: Metadata) -> None:
        """Raise ModelFileError if the graph is not the one that the metadata describes."""
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if set(inputs) != {INPUT} or not set(self._outputs) <= outputs:
            raise no_graph(path, f"it takes {', '.join(inputs)} and gives {', '.join(sorted(outputs))}")
        fixed = [side for side in inputs[INPUT].shape if isinstance(side, int)]
        wanted = [3] if metadata.graph.resize_inside else [*metadata.image_size, 3]
        if fixed != wanted:
            raise no_graph(path, f"it takes images {inputs[INPUT].shape}, its metadata says {wanted}")

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Anomaly maps (N, h, w), if the graph has any, and image scores (N,) of images (N, H, W, 3)."""
        *maps, scores = self._session.run(list(self._outputs), {INPUT: images})
        return (maps[0] if maps else None), scores
