"""Exported graphs, run by OpenVINO or ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import MissingDependencyError, ModelFileError, ParameterError
from flawmap.openvino_module import has_bfloat16, import_openvino
from flawmap.options import PRECISION_HINTS, Precision, PrecisionChoice
from flawmap.runtime.metadata import FILES, Metadata

INPUT = "images"
OUTPUTS = ("anomaly_map", "pred_score")
"""Of a graph; the last one alone if it makes no maps."""
JUDGEMENTS = ("p_value", "pred_label")
"""Further outputs of a calibrated model's graph, by the threshold it was exported with."""

ERRORS_ONLY = 3
"""Severity from which ONNX Runtime writes to standard error."""

Result = tuple[NDArray[np.float32] | None, NDArray[np.float32]]
"""Anomaly maps (N, h, w), if the graph makes any, and image scores (N,)."""


def open_graph(folder: Path, metadata: Metadata, device: str, threads: int | None, precision: PrecisionChoice) -> Graph:
    """The graph of an export folder, compiled. Raises ModelFileError, ParameterError, MissingDependencyError."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ParameterError(f"threads must be a number from 1, or None for all processors; got {threads!r}")
    if precision not in get_args(PrecisionChoice):
        raise ParameterError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    path = folder / FILES[metadata.graph.format][0]
    if metadata.graph.format == "onnx":
        if precision == "bfloat16":
            raise ParameterError("ONNX Runtime computes in float32; export with format 'openvino' for bfloat16")
        return OnnxGraph(path, metadata, device, threads)
    if precision == "auto":
        backbone = metadata.model.get("backbone")
        fitted_in = backbone.get("precision") if isinstance(backbone, dict) else None
        precision = "bfloat16" if fitted_in == "bfloat16" and has_bfloat16() else "float32"
    return OpenVinoGraph(path, metadata, device, threads, precision)


class OpenVinoGraph:
    """A compiled OpenVINO graph, in the precision asked for: by itself OpenVINO chooses 16 bits on some processors.

    Several threads may call it. `device` is the OpenVINO device that runs it.
    """

    def __init__(self, path: Path, metadata: Metadata, device: str, threads: int | None, precision: Precision) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        self.device = "CPU" if device == "auto" else str(device).upper()
        if self.device.split(".")[0] not in {name.split(".")[0] for name in core.available_devices}:
            raise _no_device(device, core.available_devices)
        hint = PRECISION_HINTS[precision]
        options: dict[str, object] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None and self.device == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            height, width = (-1, -1) if metadata.graph.resize_inside else metadata.image_size
            wanted = [-1, height, width, 3]
            if model.input(INPUT).partial_shape != openvino.PartialShape(wanted):
                raise ValueError(f"its images are {model.input(INPUT).partial_shape}, its metadata says {wanted}")
            self._outputs = _outputs_of(metadata)
            for name in self._outputs:
                model.output(name)
            compiled = core.compile_model(model, self.device, options)
        except (RuntimeError, ValueError) as error:
            raise _not_exported(path, error) from error
        self._request = compiled.create_infer_request()
        self._lock = Lock()

    def run(self, images: NDArray[np.uint8]) -> Result:
        """Anomaly maps (N, h, w), if the graph makes any, and image scores (N,) of images (N, H, W, 3)."""
        with self._lock:
            results = self._request.infer({INPUT: images})  # copies: the next call reuses its memory
        *maps, scores = (results[name] for name in self._outputs)
        return (maps[0] if maps else None), scores


class OnnxGraph:
    """An ONNX Runtime session; several threads may call it.

    `device` is "cpu", or another that this build of ONNX Runtime supports, such as "cuda".
    """

    def __init__(self, path: Path, metadata: Metadata, device: str, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                f"this export needs ONNX Runtime, which cannot be imported ({error}): pip install onnxruntime"
            ) from error
        self.device = "cpu" if device == "auto" else str(device).lower()
        provided = onnxruntime.get_available_providers()
        providers = {name.removesuffix("ExecutionProvider").lower(): name for name in provided}
        if self.device not in providers:
            raise _no_device(device, list(providers))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[providers[self.device]])
        except Exception as error:  # its exceptions share no base but this
            raise _not_exported(path, error) from error
        self._outputs = _outputs_of(metadata)
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if set(inputs) != {INPUT} or not set(self._outputs) <= outputs:
            raise _not_exported(path, f"its inputs are {', '.join(inputs)}, its outputs {', '.join(sorted(outputs))}")
        fixed = [side for side in inputs[INPUT].shape if isinstance(side, int)]
        wanted = [3] if metadata.graph.resize_inside else [*metadata.image_size, 3]
        if fixed != wanted:
            raise _not_exported(path, f"its images are {inputs[INPUT].shape}, its metadata says {wanted}")

    def run(self, images: NDArray[np.uint8]) -> Result:
        """Anomaly maps (N, h, w), if the graph makes any, and image scores (N,) of images (N, H, W, 3)."""
        *maps, scores = self._session.run(list(self._outputs), {INPUT: images})
        return (maps[0] if maps else None), scores


Graph = OpenVinoGraph | OnnxGraph


def _outputs_of(metadata: Metadata) -> tuple[str, ...]:
    """Outputs that the graph must have."""
    return OUTPUTS if metadata.map_scale is not None else OUTPUTS[-1:]


def _no_device(device: str, available: list[str]) -> ParameterError:
    return ParameterError(f"Device {device!r} is not available. Available: {', '.join(available)}.")


def _not_exported(path: Path, reason: object) -> ModelFileError:
    """The error for a graph that flawmap did not export."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return ModelFileError(f"{path}: is not a graph of `flawmap export` ({lines[-1][:200]}). Export again.")
