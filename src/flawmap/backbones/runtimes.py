"""What runs a network: torch, or OpenVINO, which on a CPU is several times faster with the same numbers."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.errors import BackboneError, ParameterError
from flawmap.openvino_module import has_bfloat16, import_openvino
from flawmap.options import PRECISION_HINTS, Precision, PrecisionChoice, Runtime
from flawmap.prediction import Size

T = TypeVar("T")

NETWORKS = threading.RLock()
"""Held while torch runs a network or traces it: tracing swaps tensors and methods that every thread sees."""
DEVICES = ("cpu", "cuda")
"""Kinds of devices for which autocast may be on."""
COMPILE_FROM = 33
"""Good images from which compiling pays: it takes a second or two."""


@dataclass(frozen=True)
class Policy:
    """How the networks of one model run: chosen once, so that an image always gets the same score.

    Attributes:
        device: where torch runs them.
        precision: of their computations; their outputs are float32.
        compiles: whether OpenVINO runs them, and not torch.
        required: whether OpenVINO was asked for by name, so that torch may not stand in for it.
    """

    device: torch.device
    precision: Precision
    compiles: bool
    required: bool = False

    @classmethod
    def choose(
        cls, device: torch.device | str, runtime: Runtime, precision: PrecisionChoice, *, n_images: int
    ) -> Policy:
        """The policy of a model that learns, or has learnt, from so many images.

        "auto" takes torch on a GPU and for models of few images, else OpenVINO. In bfloat16 the two would differ, so
        OpenVINO runs all. Raises ParameterError.
        """
        target = pick_device(device)
        if runtime not in get_args(Runtime):
            raise ParameterError(f"runtime must be 'auto', 'openvino' or 'torch', got {runtime!r}")
        if precision not in get_args(PrecisionChoice):
            raise ParameterError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
        on_cpu = target.type == "cpu"
        if not on_cpu and runtime == "openvino":
            raise ParameterError(f"runtime 'openvino' runs on the CPU, not on {target}; give one or the other")
        if precision == "auto":
            precision = "bfloat16" if on_cpu and runtime != "torch" and has_bfloat16() else "float32"
        pays = n_images >= COMPILE_FROM or precision == "bfloat16"
        compiles = on_cpu and (runtime == "openvino" or (runtime == "auto" and pays))
        return cls(target, precision, compiles, required=runtime == "openvino")

    def compile(self, network: nn.Module, size: Size, name: str) -> CompiledNetwork | None:
        """The network, compiled for images of one size; None where torch is to run it.

        Raises BackboneError, which names the network, if OpenVINO was asked for and cannot run it.
        """
        if not self.compiles:
            return None
        try:
            return uninterrupted(lambda: CompiledNetwork(network, size, self.precision))
        except Exception as error:  # converting runs the network's own code, which may fail in any way
            if self.required:
                raise BackboneError(f"{name} cannot be compiled by OpenVINO ({error}); use runtime='torch'") from error
            return None


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


class FeatureNetwork(nn.Module):
    """Images (B, h, w, 3) uint8 to what a detector's head makes of a backbone's feature maps.

    With `masked`, images have a fourth channel, what they show, which the head gets too.
    """

    def __init__(self, features: nn.Module, head: nn.Module, *, masked: bool = False) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.n_channels = 4 if masked else 3

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Anomaly maps (B, h, w), where there are any, and scores (B,)."""
        if self.n_channels == 3:
            outputs: tuple[Tensor, ...] = self.head(self.features(images))
        else:
            outputs = self.head(self.features(images[..., :3]), images[..., 3])
        return outputs


class CompiledNetwork:
    """A network compiled for images of one size (height, width), any number at a time; threads wait for each other.

    Args:
        network: from images (N, H, W, 3) uint8 to one or more tensors.
        precision: bfloat16 only where the processor has it.

    Raises whatever torch or OpenVINO raise for a network that cannot be converted.
    """

    def __init__(self, network: nn.Module, size: Size, precision: Precision) -> None:
        model = convert(network, size)
        hint = PRECISION_HINTS[precision if has_bfloat16() else "float32"]
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        self._request: Any = import_openvino().Core().compile_model(model, "CPU", options).create_infer_request()
        self._n_outputs = len(model.outputs)
        self._lock = threading.Lock()

    def __call__(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """The network's outputs for RGB images (N, H, W, 3)."""
        with self._lock:
            results = self._request.infer({0: np.ascontiguousarray(pixels)})  # copies: the next call reuses its memory
        return [torch.from_numpy(results[i]) for i in range(self._n_outputs)]


def uninterrupted(call: Callable[[], T]) -> T:
    """What a call gives, and what it raises, from a thread that no Ctrl-C reaches: C++ code would drop it or abort."""
    with NETWORKS, ThreadPoolExecutor(1) as apart:
        return apart.submit(call).result()


def convert(network: nn.Module, size: Size) -> Any:  # noqa: ANN401 (openvino.Model)
    """A network as OpenVINO's graph, for any number of images (N, H, W, 3) uint8 of one size (height, width).

    By TorchScript, which takes less than half the time of `torch.export`; to be called by `uninterrupted`. Raises
    whatever torch or OpenVINO raise, and BackboneError for a network that keeps the number of images of its trace.
    """
    n_channels = getattr(network, "n_channels", 3)
    example = torch.zeros(2, *size, n_channels, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of what is constant here, such as the number of channels
        traced = torch.jit.trace(network.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        model = import_openvino().convert_model(traced)
    model.reshape([-1, *size, n_channels])
    if any(output.partial_shape[0].is_static for output in model.outputs):
        raise BackboneError("its graph is for one number of images alone")
    return model


_dtypes = threading.Lock()
_n_users = 0
_usual = torch.float32


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute as if the program around had changed nothing of torch; what it has changed is put back.

    The default dtype belongs to the process: the first of several threads sets it, the last one restores it. The rest
    belongs to the thread.
    """
    global _n_users, _usual
    with ExitStack() as stack:
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        with _dtypes:
            if _n_users == 0:
                _usual = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            _n_users += 1
        try:
            yield
        finally:
            with _dtypes:
                _n_users -= 1
                if _n_users == 0:
                    torch.set_default_dtype(_usual)


@cache
def prepare_for_forks() -> None:
    """Let children that are forked from now on compute with one thread: the others stay in the parent.

    A child would wait for them for ever. Only the thread that forks lives on in it, so no other holds the lock.
    """

    def start_anew() -> None:
        NETWORKS._at_fork_reinit()  # type: ignore[attr-defined]
        torch.set_num_threads(1)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=start_anew)


def pick_device(device: torch.device | str) -> torch.device:
    """The device meant; "auto" is a CUDA GPU where there is one, else the CPU."""
    prepare_for_forks()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        available = ", ".join(["auto", "cpu", *gpus])
        raise ParameterError(f"device {str(device)!r} cannot be used here. Available: {available}") from error
    return chosen
