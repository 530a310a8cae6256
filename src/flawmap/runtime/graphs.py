"""Exported graphs, run by OpenVINO or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from flawmap.errors import MissingDependencyError, ModelFileError, ParameterError
from flawmap.openvino_module import has_bfloat16, import_openvino
from flawmap.options import PRECISION_HINTS, Precision, PrecisionChoice
from flawmap.runtime.export_files import Content, Export
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


def open_graph(export: Export, device: str, threads: int | None, precision: PrecisionChoice) -> Graph:
    """The graph of an export, compiled. Raises ModelFileError, ParameterError, MissingDependencyError."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ParameterError(f"threads must be a number from 1, or None for all processors; got {threads!r}")
    if precision not in get_args(PrecisionChoice):
        raise ParameterError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if export.metadata.graph.format == "onnx":
        if precision == "bfloat16":
            raise ParameterError("ONNX Runtime computes in float32; export with format 'openvino' for bfloat16")
        return OnnxGraph(export, device, threads)
    if precision == "auto":
        precision = "bfloat16" if export.metadata.fitted_in == "bfloat16" and has_bfloat16() else "float32"
    return OpenVinoGraph(export, device, threads, precision)


class OpenVinoGraph:
    """A compiled OpenVINO graph, in the precision asked for: by itself OpenVINO chooses 16 bits on some processors.

    Several threads may call it. `device` is the OpenVINO device that runs it.
    """

    def __init__(self, export: Export, device: str, threads: int | None, precision: Precision) -> None:
        openvino = import_openvino()
        metadata = export.metadata
        graph, constants = FILES["openvino"]
        self._path = export.folder / graph
        core = openvino.Core()
        self.device = "CPU" if device == "auto" else str(device).upper()
        if self.device.split(".")[0] not in {name.split(".")[0] for name in core.available_devices}:
            raise _no_device(device, core.available_devices)
        hint = PRECISION_HINTS[precision]
        options: dict[str, object] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None and self.device == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        # OpenVINO computes with these bytes in place and does not keep them alive
        self._constants = export.contents.get(constants, np.empty(0, np.uint8))
        try:
            shared = openvino.Tensor(self._constants, shared_memory=True)
            model = core.read_model(export.contents[graph], shared)
            height, width = (-1, -1) if metadata.graph.resize_inside else metadata.image_size
            wanted = [-1, height, width, metadata.n_channels]
            if model.input(INPUT).partial_shape != openvino.PartialShape(wanted):
                raise ValueError(f"its images are {model.input(INPUT).partial_shape}, its metadata says {wanted}")
            self._outputs = _outputs_of(metadata)
            for name in self._outputs:
                model.output(name)
            compiled = core.compile_model(model, self.device, options)
        except (RuntimeError, ValueError) as error:
            raise _not_exported(self._path, error) from error
        self._request = compiled.create_infer_request()
        self._lock = Lock()

    def run(self, images: NDArray[np.uint8]) -> Result:
        """Anomaly maps (N, h, w), if the graph makes any, and image scores (N,) of images (N, H, W, 3)."""
        with self._lock, _errors_named(self._path, images):
            results = self._request.infer({INPUT: images})  # copies: the next call reuses its memory
        *maps, scores = (results[name] for name in self._outputs)
        return (maps[0] if maps else None), scores


class OnnxGraph:
    """An ONNX Runtime session; several threads may call it.

    `device` is "cpu", or another that this build of ONNX Runtime supports, such as "cuda".
    """

    def __init__(self, export: Export, device: str, threads: int | None) -> None:
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
        metadata = export.metadata
        graph, constants = FILES["onnx"]
        self._path = path = export.folder / graph
        if constants in export.contents:
            _add_constants(options, constants, export.contents[constants])
        try:
            self._session = onnxruntime.InferenceSession(
                export.contents[graph], options, providers=[providers[self.device]]
            )
            self._session._model_bytes = None  # it would keep the file's bytes, for a change of providers
        except Exception as error:  # its exceptions share no base but this
            raise _not_exported(path, error) from error
        self._outputs = _outputs_of(metadata)
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if set(inputs) != {INPUT} or not set(self._outputs) <= outputs:
            raise _not_exported(path, f"its inputs are {', '.join(inputs)}, its outputs {', '.join(sorted(outputs))}")
        fixed = [side for side in inputs[INPUT].shape if isinstance(side, int)]
        wanted = [3] if metadata.graph.resize_inside else [*metadata.image_size, metadata.n_channels]
        if fixed != wanted:
            raise _not_exported(path, f"its images are {inputs[INPUT].shape}, its metadata says {wanted}")

    def run(self, images: NDArray[np.uint8]) -> Result:
        """Anomaly maps (N, h, w), if the graph makes any, and image scores (N,) of images (N, H, W, 3)."""
        with _errors_named(self._path, images):
            *maps, scores = self._session.run(list(self._outputs), {INPUT: images})
        return (maps[0] if maps else None), scores


Graph = OpenVinoGraph | OnnxGraph


def _outputs_of(metadata: Metadata) -> tuple[str, ...]:
    """Outputs that the graph must have."""
    return OUTPUTS if metadata.map_scale is not None else OUTPUTS[-1:]


def _add_constants(options: Any, name: str, content: Content) -> None:  # noqa: ANN401 (onnxruntime.SessionOptions)
    """Give a session the constants that lie in a file of their own."""
    add = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if add is None:
        raise MissingDependencyError("this export needs a newer ONNX Runtime: pip install --upgrade onnxruntime")
    add([name], [content], [len(content)])


@contextmanager
def _errors_named(path: Path, images: NDArray[np.uint8]) -> Iterator[None]:
    """A failure of a graph that runs, as a ModelFileError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # those of ONNX Runtime share no base but this
        raise ModelFileError(
            f"{path}: the graph fails on images of shape {images.shape} ({_reason(error)}). Use device 'cpu', or "
            f"export again"
        ) from error


def _no_device(device: str, available: list[str]) -> ParameterError:
    return ParameterError(f"Device {device!r} is not available. Available: {', '.join(available)}.")


def _not_exported(path: Path, reason: object) -> ModelFileError:
    """The error for a graph that flawmap did not export."""
    return ModelFileError(f"{path}: is not a graph of `flawmap export` ({_reason(reason)}). Export again.")


def _reason(reason: object) -> str:
    """The last line, in which both libraries say what is wrong."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return lines[-1][:200]
