"""A frozen timm network, cut off after the last layer used, from uint8 images to feature maps."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.models import PretrainedCfg, create_feature_extractor
from torch import Tensor, nn

from flawmap.backbones.catalogue import CATALOGUE, CatalogueEntry, describe
from flawmap.backbones.compiled import NETWORKS, CompiledNetwork, NormalisedNetwork, Precision
from flawmap.backbones.weights import find_weights, fingerprint, load_weights
from flawmap.errors import BackboneError, ParameterError
from flawmap.openvino_module import has_bfloat16
from flawmap.prediction import Size

__all__ = [
    "COMPILE_AFTER",
    "Backbone",
    "Precision",
    "PrecisionChoice",
    "Runtime",
    "feature_levels",
    "load_backbone",
    "pick_device",
]

Runtime = Literal["auto", "openvino", "torch"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]

MAX_LAYERS = 5
COMPILE_AFTER = 32
"""Images of one size that "auto" leaves to torch before it compiles."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network and the layers read from it.

    Attributes:
        name: the name the user gave.
        layers: modules whose outputs are read, in the order of the embedding.
        weights: file name of the pretrained weights, or None for random ones.
        weights_path: that file's whole path, or None.
        sha256: fingerprint of the network's tensors.
        network: the frozen network; its outputs are in the order of `layers`.
        mean, std: per channel (3,), for pixels scaled to 0..1.
        trained_size: (height, width) of the images it was trained on.
        device: where it runs.
        runtime: "torch"; "openvino"; or "auto": torch for the first images, then OpenVINO, which takes a second or two
            to compile and is several times faster from then on. In bfloat16 the two would differ: OpenVINO at once.
        precision: of its computations; its outputs are float32.
    """

    name: str
    layers: tuple[str, ...]
    weights: str | None
    weights_path: str | None
    sha256: str
    network: nn.Module
    mean: Tensor
    std: Tensor
    trained_size: Size
    device: torch.device
    runtime: Runtime
    precision: Precision
    _compiled: dict[Size, CompiledNetwork | None] = field(default_factory=dict, repr=False)
    _n_seen: Counter[Size] = field(default_factory=Counter, repr=False)

    def features(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """Feature maps (B, C, h, w) of each layer from RGB images (B, H, W, 3) uint8."""
        size = pixels.shape[1], pixels.shape[2]
        if size not in self._compiled and self.is_worth_compiling(size, len(pixels)):
            with NETWORKS:
                if size not in self._compiled:
                    self._compiled[size] = self.compile(self.from_pixels, size)
        self._n_seen[size] += len(pixels)
        compiled = self._compiled.get(size)
        return self._run_torch(pixels) if compiled is None else compiled(pixels)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which belongs to this process and is made anew in another."""
        return {**self.__dict__, "_compiled": {}}

    @property
    def from_pixels(self) -> NormalisedNetwork:
        """The network with its normalisation, from images (N, H, W, 3) uint8 on."""
        return NormalisedNetwork(self.network, self.mean, self.std)

    def expect(self, size: Size, n_images: int) -> None:
        """Make ready for so many images of one size: "auto" then compiles before the first, not after some."""
        self._n_seen[size] += n_images

    def is_worth_compiling(self, size: Size, n_images: int) -> bool:
        """Whether OpenVINO is to run so many more images of one size."""
        if self.runtime == "torch":
            return False
        at_once = self.runtime == "openvino" or self.precision == "bfloat16"
        return at_once or self._n_seen[size] + n_images > COMPILE_AFTER

    def is_compiled(self, size: Size) -> bool:
        """Whether OpenVINO runs images of one size already."""
        return self._compiled.get(size) is not None

    def compile(self, network: nn.Module, size: Size) -> CompiledNetwork | None:
        """A network that begins with this one, compiled; None if OpenVINO cannot and "auto" may do without.

        Raises BackboneError if OpenVINO was asked for.
        """
        try:
            return CompiledNetwork(network, size, self.precision)
        except Exception as error:  # converting runs the network's own code, which may fail in any way
            if self.runtime == "openvino":
                raise BackboneError(
                    f"{self.name} cannot be compiled by OpenVINO ({error}); use runtime='torch'"
                ) from error
            return None

    @torch.inference_mode()
    def _run_torch(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        images = images.div_(255).sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        with NETWORKS, torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs: Sequence[Tensor] = self.network(images)
        return [features.float() for features in outputs]

    def shapes(self, input_size: Size) -> list[tuple[int, Size]]:
        """Channels and grid (h, w) of each layer for images of this size; BackboneError if it cannot take them."""
        try:
            maps = self._run_torch(np.zeros((1, *input_size, 3), np.uint8))
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise BackboneError(
                f"{self.name} cannot take images of {input_size[0]} x {input_size[1]} ({error}); choose another "
                f"`resize` or `crop`, such as the {self.trained_size} pixels it was trained at"
            ) from error
        return [(features.shape[1], (features.shape[2], features.shape[3])) for features in maps]


def load_backbone(
    name: str,
    *,
    layers: Sequence[str] | None = None,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
    runtime: Runtime = "auto",
    precision: PrecisionChoice = "float32",
    most_layers: int = MAX_LAYERS,
) -> Backbone:
    """A frozen backbone with its weights.

    Args:
        name: a name of the catalogue or any timm name.
        layers: one to five module names; None for the catalogue's, or the levels of stride 4, 8 and 16.
        pretrained: False for random weights, which `seed` fixes.
        weights: a file, or `hf-hub:REPO`; None to look for them on this machine.
        device: "auto" takes a GPU where there is one.
        runtime: "torch"; "openvino", on the CPU only; "auto": torch on a GPU, else for a few images, then OpenVINO.
        precision: "bfloat16" computes in 16 bits, twice as fast where the processor has them, with 1 % of error; "auto"
            does so where it has.
        most_layers: how many `layers` there may be.
    """
    target = pick_device(device)
    chosen_runtime = _check_runtime(runtime, target)
    chosen_precision = _check_precision(precision, target, chosen_runtime)
    entry = describe(name)
    with torch.random.fork_rng(devices=[]):  # timm draws initial weights; the caller's generator is left alone
        torch.manual_seed(seed)
        anatomy = _dissect(name, entry)
        chosen = _choose_layers(name, entry, anatomy.levels, layers, most_layers)
        file = find_weights(name, entry, weights) if pretrained else None
        network = _cut(entry, anatomy.levels, chosen)
    if file is not None:
        load_weights(network, file, name, order=anatomy.tensors)
    network.eval().requires_grad_(False)
    return Backbone(
        name=name,
        layers=chosen,
        weights=file.path.name if file else None,
        weights_path=str(file.path.resolve()) if file and not file.by_order else None,
        sha256=fingerprint(network),
        network=_Ordered(network, anatomy.levels, chosen)
        .to(target)
        .to(memory_format=torch.channels_last),  # faster on a CPU
        mean=torch.tensor(anatomy.mean, device=target),
        std=torch.tensor(anatomy.std, device=target),
        trained_size=anatomy.trained_size,
        device=target,
        runtime=chosen_runtime,
        precision=chosen_precision,
    )


def _check_runtime(runtime: Runtime, device: torch.device) -> Runtime:
    if runtime not in get_args(Runtime):
        raise ParameterError(f"runtime must be 'auto', 'openvino' or 'torch', got {runtime!r}")
    if device.type != "cpu" and runtime == "openvino":
        raise ParameterError(f"runtime 'openvino' runs on the CPU, not on {device}; give one or the other")
    return runtime if device.type == "cpu" else "torch"


def _check_precision(precision: PrecisionChoice, device: torch.device, runtime: Runtime) -> Precision:
    if precision not in get_args(PrecisionChoice):
        raise ParameterError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if precision == "auto":
        return "bfloat16" if device.type == "cpu" and runtime != "torch" and has_bfloat16() else "float32"
    return precision


def feature_levels(name: str) -> tuple[str, ...]:
    """Every level of a backbone, fine to coarse: of an EfficientNet its stem, its stages and its head, else timm's."""
    entry = describe(name)
    with torch.random.fork_rng(devices=[]):
        levels = _dissect(name, entry).levels
        parts = dict(timm.create_model(entry.architecture, pretrained=False).named_children())
    stages = parts.get("blocks")
    if isinstance(stages, nn.Sequential) and {"conv_stem", "bn1", "conv_head", "bn2"} <= set(parts):
        return ("bn1", *(f"blocks.{i}" for i in range(len(stages))), "bn2")  # bn1 and bn2 hold the activations too
    return tuple(levels)


def pick_device(device: torch.device | str) -> torch.device:
    """The device meant; "auto" is a CUDA GPU where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"device {device!r} cannot be used here ({error}); use 'auto' or 'cpu'") from error
    return chosen


class _Ordered(nn.Module):
    """Runs a feature network and gives its maps as (B, C, h, w) in the order of the layers asked for."""

    def __init__(self, network: nn.Module, info: dict[str, int], layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.channels = [info.get(layer) for layer in layers]
        self.layers = list(layers)
        ascending = [layer for layer in info if layer in layers]
        self.order = [ascending.index(layer) for layer in layers] if len(ascending) == len(layers) else None

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = self.network(images)
        maps = [outputs[i] for i in self.order] if self.order is not None else [outputs[name] for name in self.layers]
        return [_channels_first(features, n) for features, n in zip(maps, self.channels, strict=True)]


def _channels_first(features: Tensor, n_channels: int | None) -> Tensor:
    """(B, C, h, w) from networks that answer so, or in (B, h, w, C)."""
    if features.ndim != 4:
        raise BackboneError(f"a layer gave {tuple(features.shape)}, not feature maps (B, C, h, w); choose other layers")
    if n_channels is not None and features.shape[1] != n_channels and features.shape[3] == n_channels:
        return features.permute(0, 3, 1, 2)
    return features


@dataclass(frozen=True)
class _Anatomy:
    """What a whole network is made of: its tensors' names, the channels of its feature levels, its normalisation."""

    tensors: list[str]
    levels: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained_size: Size


def _dissect(name: str, entry: CatalogueEntry) -> _Anatomy:
    if not timm.is_model(entry.architecture):  # a name with a hub prefix would make timm reach for the network
        near = difflib.get_close_matches(name, [*CATALOGUE, *timm.list_models()], 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists all names"
        raise BackboneError(f"unknown backbone '{name}'{hint}")
    whole: Any = timm.create_model(entry.architecture, pretrained=False)
    levels = {level["module"]: level["num_chs"] for level in getattr(whole, "feature_info", None) or []}
    config = timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=True) or PretrainedCfg(**whole.default_cfg)
    trained_size = config.input_size[1], config.input_size[2]
    return _Anatomy(list(whole.state_dict()), levels, tuple(config.mean), tuple(config.std), trained_size)


def _choose_layers(
    name: str, entry: CatalogueEntry, info: dict[str, int], layers: Sequence[str] | None, most_layers: int
) -> tuple[str, ...]:
    """The layers asked for, or the default ones: the catalogue's, else the second to fourth feature level."""
    if isinstance(layers, str):
        raise ParameterError(f"layers must be a list of names, got the text {layers!r}; write [{layers!r}]")
    usual = entry.layers or (tuple(info)[1:4] if len(info) > 3 else tuple(info))
    chosen = usual if layers is None else tuple(layers)
    if not 1 <= len(chosen) <= most_layers or len(set(chosen)) != len(chosen):
        raise ParameterError(
            f"layers must be one to {most_layers} distinct names, got {list(chosen)}; {name} has {list(info)}"
        )
    return chosen


def _cut(entry: CatalogueEntry, info: dict[str, int], layers: Sequence[str]) -> nn.Module:
    """The network up to the last layer: timm's feature network, or a traced graph for layers that does not list."""
    if all(layer in info for layer in layers):
        indices = sorted(list(info).index(layer) for layer in layers)
        network: nn.Module = timm.create_model(
            entry.architecture, features_only=True, out_indices=indices, pretrained=False
        )
        return network
    whole = timm.create_model(entry.architecture, pretrained=False).eval()
    known = dict(whole.named_modules())
    for layer in layers:
        if layer not in known:
            raise BackboneError(f"{entry.architecture} has no layer '{layer}'; its feature levels are {list(info)}")
    try:
        graph: nn.Module = create_feature_extractor(whole, list(layers))
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        raise BackboneError(
            f"the layers {list(layers)} of {entry.architecture} cannot be read; use its feature levels {list(info)}"
        ) from error
    return graph
