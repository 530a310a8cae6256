"""What the runtime asks of a graph, whichever library runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import ModelFileError, ParameterError
from flawmap.openvino_module import has_bfloat16
from flawmap.runtime.metadata import FILES, Metadata

__all__ = [
    "INPUT",
    "JUDGEMENTS",
    "OUTPUTS",
    "Graph",
    "Precision",
    "PrecisionChoice",
    "check_threads",
    "no_graph",
    "open_graph",
    "outputs_of",
]

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]

INPUT = "images"
OUTPUTS = ("anomaly_map", "pred_score")
"""Of a graph; the last one alone where there are no maps."""
JUDGEMENTS = ("p_value", "pred_label")
"""Further outputs of a calibrated model's graph, by the threshold it was exported with."""


class Graph(Protocol):
    """A compiled graph; may be called from several threads."""

    device: str

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Anomaly maps (N, h, w), if the graph has any, and image scores (N,) of images (N, H, W, 3)."""
        ...


def outputs_of(metadata: Metadata) -> tuple[str, ...]:
    """The outputs that the graph must have."""
    return OUTPUTS if metadata.map_scale is not None else OUTPUTS[-1:]


def open_graph(folder: Path, metadata: Metadata, device: str, threads: int | None, precision: PrecisionChoice) -> Graph:
    """The graph of an export folder, compiled. Raises ModelFileError, ParameterError, MissingDependencyError."""
    check_threads(threads)
    if precision not in get_args(PrecisionChoice):
        raise ParameterError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    path = folder / FILES[metadata.graph.format][0]
    if metadata.graph.format == "onnx":
        if precision == "bfloat16":
            raise ParameterError("ONNX Runtime computes in float32; export with format 'openvino' for bfloat16")
        from flawmap.runtime.onnx import OnnxGraph

        return OnnxGraph(path, metadata, device, threads)
    from flawmap.runtime.openvino import OpenVinoGraph

    if precision == "auto":
        precision = "bfloat16" if _fitted_in_bfloat16(metadata) and has_bfloat16() else "float32"
    return OpenVinoGraph(path, metadata, device, threads, precision)


def _fitted_in_bfloat16(metadata: Metadata) -> bool:
    backbone = metadata.model.get("backbone")
    return isinstance(backbone, dict) and backbone.get("precision") == "bfloat16"


def check_threads(threads: int | None) -> None:
    """Raise ParameterError for no number of threads."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ParameterError(f"threads must be a number from 1, or None for all processors; got {threads!r}")


def no_graph(path: Path, reason: object) -> ModelFileError:
    """The error for a file that is no graph flawmap exported."""
    lines: list[Any] = str(reason).strip().splitlines() or [type(reason).__name__]
    return ModelFileError(f"{path}: is no graph of `flawmap export` ({lines[-1][:200]}); export again")
