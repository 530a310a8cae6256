"""Loads a backbone: a timm network with its weights, cut off after the last layer used."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, create_feature_extractor
from torch import Tensor, nn

from flawmap.backbones.network import Backbone, OrderedNetwork
from flawmap.backbones.runtimes import Policy
from flawmap.backbones.weights import CATALOGUE, CatalogueEntry, describe, find_weights, fingerprint, load_weights
from flawmap.errors import BackboneError, ParameterError, first_line
from flawmap.options import PrecisionChoice, Runtime
from flawmap.prediction import Size

USUAL_MOST = 5
"""Most layers of an embedding."""
USUAL_STEP = 32
"""Coarsest stride of most networks."""


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
    n_images: int = 0,
    most_layers: int = USUAL_MOST,
    input_size: Size | None = None,
    claim: Claim | None = None,
) -> Backbone:
    """A frozen backbone with its weights.

    Args:
        name: a name of the catalogue or any timm name.
        layers: one to five module names; None for the catalogue's, or the levels of stride 4, 8 and 16, or of a network
            whose levels have one stride, such as a vision transformer, the level at three quarters of its depth.
        pretrained: False for random weights, which `seed` fixes.
        weights: a file, or `hf-hub:REPO`; None to look for them on this machine.
        device: "auto" takes a GPU where there is one.
        runtime: "torch"; "openvino", on the CPU only; "auto": torch on a GPU and for few images, else OpenVINO.
        precision: "bfloat16" computes in 16 bits, twice as fast where the processor has them, with 1 % of error; "auto"
            does so where it has.
        n_images: good images that the model learns from, by which "auto" chooses.
        most_layers: how many `layers` there may be.
        input_size: (height, width) of the images. A network that is built for one size, such as a vision transformer,
            is built for this one, and weights that belong to positions are resampled; None for the size of its weights.
        claim: what the layers must give, which is checked before weights are read or memory is taken; its size counts.

    Raises BackboneError for an unknown network or layer, or a size that it cannot take, ParameterError for a wrong
    claim, WeightsError for weights.
    """
    policy = Policy.choose(device, runtime, precision, n_images=n_images)
    target = policy.device
    entry = describe(name)
    with torch.device("meta"):  # without memory: whatever is claimed can be compared first
        whole = _dissect(name, entry)
        chosen = _choose_layers(name, entry, whole, layers, most_layers)
        size = whole.own_size(input_size if claim is None else claim.input_size)
        blank = _blank(name, entry, whole, chosen, size, claim) if pretrained or claim or size else None
    file = find_weights(name, entry, weights) if pretrained else None
    grids = None if size is None else whole.grids(size)
    resampled: dict[str, Tensor] = {}
    if file is not None and blank is not None:
        resampled = load_weights(blank, file, name, order=whole.tensors, grids=grids)
    if file is not None and blank is not None and _is_whole(blank):
        network = blank
    else:
        network = _drawn(name, entry, whole, chosen, seed, size)
        if file is not None:  # it has constants that no file holds
            resampled = load_weights(network, file, name, order=whole.tensors, grids=grids)
    network.eval().requires_grad_(False)
    return Backbone(
        name=name,
        layers=chosen,
        weights=file.path.name if file else None,
        weights_path=str(file.path.resolve()) if file and not file.by_order else None,
        sha256=fingerprint(network, resampled),
        network=OrderedNetwork(network, chosen, whole.levels)
        .to(target)
        .to(memory_format=torch.channels_last),  # faster on a CPU
        mean=torch.tensor(whole.config.mean, device=target),
        std=torch.tensor(whole.config.std, device=target),
        trained_size=whole.config.input_size[1:],
        policy=policy,
    )


@dataclass(frozen=True)
class WholeNetwork:
    """A network before anything is cut off.

    Attributes:
        tensors: names of its tensors.
        levels: channels of its feature levels by their module's name.
        strides: pixels of the image to one of the level's grid, of each level.
        config: what its weights were trained on.
        built_for: (height, width) of the images that it is built for; None if it takes any.
    """

    tensors: list[str]
    levels: dict[str, int]
    strides: list[int]
    config: PretrainedCfg
    built_for: Size | None

    @property
    def step(self) -> int:
        """Pixels that sides should be a multiple of, so that all grids are whole."""
        return max(self.strides, default=USUAL_STEP)

    def own_size(self, size: Size | None) -> Size | None:
        """The size, if the network has to be built for it, and is not by default; else None."""
        return None if self.built_for is None or size == self.built_for else size

    def grids(self, size: Size) -> tuple[Size, Size] | None:
        """Grid (h, w) of the patches of an image: by default, and for this size."""
        if self.built_for is None:
            return None
        patch = min(self.strides, default=1)
        height, width = self.built_for
        return (height // patch, width // patch), (size[0] // patch, size[1] // patch)

    def check_size(self, name: str, size: Size) -> None:
        """Raise BackboneError for a size that patches would not cover to its edges."""
        if any(side % min(self.strides, default=1) for side in size):
            raise self.refusal(name, size)

    def refusal(self, name: str, size: Size, reason: str = "") -> BackboneError:
        """The error for a size that the network cannot take, with sizes that it can."""
        fewer = tuple(max(1, side // self.step) * self.step for side in size)
        more = tuple(-(-side // self.step) * self.step for side in size)
        near = dict.fromkeys(f"{height} x {width}" for height, width in (fewer, more) if (height, width) != size)
        height, width = self.config.input_size[1:]
        hint = f"the size of its weights is {height} x {width}"
        if near:
            hint = f"the nearest whose sides are multiples of {self.step}: {' and '.join(near)}; {hint}"
        why = f" ({reason})" if reason else ""
        return BackboneError(
            f"{name} cannot take images of {size[0]} x {size[1]} (height x width){why}; choose another `resize` or "
            f"`crop`: {hint}"
        )


@dataclass(frozen=True)
class Claim:
    """What a model file says of its backbone.

    Attributes:
        input_size: (height, width) of the images.
        shapes: channels and grid (h, w) of each layer for them.
    """

    input_size: Size
    shapes: Sequence[tuple[int, Size]]

    def check(self, name: str, network: nn.Module) -> None:
        """Run a network without memory. Raises ParameterError if it gives other shapes."""
        try:
            with torch.inference_mode():
                maps = network(torch.zeros(1, 3, *self.input_size))
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise ParameterError(f"{name} cannot take images of {self.input_size} ({first_line(error)})") from error
        found = [(features.shape[1], (features.shape[2], features.shape[3])) for features in maps]
        if found != list(self.shapes):
            raise ParameterError(f"{name} gives {found} for images of {self.input_size}, not {list(self.shapes)}")


def feature_levels(name: str) -> tuple[str, ...]:
    """Every level of a backbone, fine to coarse: of an EfficientNet its stem, its stages and its head, else timm's."""
    with torch.device("meta"):
        whole = _dissect(name, describe(name))
    if {"conv_stem", "bn1", "blocks", "conv_head", "bn2"} <= {key.partition(".")[0] for key in whole.tensors}:
        stages = dict.fromkeys(".".join(key.split(".")[:2]) for key in whole.tensors if key.startswith("blocks."))
        return ("bn1", *stages, "bn2")  # bn1 and bn2 hold the activations too
    return tuple(whole.levels)


def usual_layers(name: str) -> tuple[str, ...]:
    """The layers that `load_backbone` reads unless told otherwise."""
    entry = describe(name)
    with torch.device("meta"):
        return _usual_layers(entry, _dissect(name, entry))


def size_step(name: str | None) -> int:
    """Pixels that the sides of a backbone's images should be a multiple of: its coarsest stride; 32 without a backbone.

    That is 32 for most networks, and the side of a patch for a vision transformer.
    """
    if name is None:
        return USUAL_STEP
    with torch.device("meta"):
        return _dissect(name, describe(name)).step


def _dissect(name: str, entry: CatalogueEntry) -> WholeNetwork:
    """A whole network of a timm name. Raises BackboneError for an unknown one."""
    if not timm.is_model(entry.architecture):  # a name with a hub prefix would make timm reach for the network
        near = difflib.get_close_matches(name, [*CATALOGUE, *timm.list_models()], 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists all names"
        raise BackboneError(f"unknown backbone '{name}'{hint}")
    whole: Any = timm.create_model(entry.architecture, pretrained=False)
    info = getattr(whole, "feature_info", None) or []
    default = whole.default_cfg
    return WholeNetwork(
        tensors=list(whole.state_dict()),
        levels={level["module"]: level["num_chs"] for level in info},
        strides=[level.get("reduction", 1) for level in info],
        config=timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=True) or PretrainedCfg(**default),
        built_for=tuple(default["input_size"][1:]) if default.get("fixed_input_size") else None,
    )


def _choose_layers(
    name: str, entry: CatalogueEntry, whole: WholeNetwork, layers: Sequence[str] | None, most_layers: int
) -> tuple[str, ...]:
    """The layers asked for, or the default ones: see `load_backbone`."""
    if isinstance(layers, str):
        raise ParameterError(f"layers must be a list of names, got the text {layers!r}; write [{layers!r}]")
    chosen = _usual_layers(entry, whole) if layers is None else tuple(layers)
    if not 1 <= len(chosen) <= most_layers or len(set(chosen)) != len(chosen):
        raise ParameterError(
            f"layers must be one to {most_layers} distinct names, got {list(chosen)}; {name} has {list(whole.levels)}"
        )
    return chosen


def _usual_layers(entry: CatalogueEntry, whole: WholeNetwork) -> tuple[str, ...]:
    known = tuple(whole.levels)
    if entry.layers or len(known) < 4:
        return entry.layers or known
    return known[1:4] if len(set(whole.strides)) > 1 else (known[3 * len(known) // 4 - 1],)


def _blank(
    name: str, entry: CatalogueEntry, whole: WholeNetwork, layers: Sequence[str], size: Size | None, claim: Claim | None
) -> nn.Module:
    """The network without memory. It gives what is claimed, else takes images of `size`. Raises as `load_backbone`."""
    if size is not None and claim is None:
        whole.check_size(name, size)
    network = _cut(name, entry, whole, layers, size)
    ordered = OrderedNetwork(network, layers, whole.levels).eval()
    if claim is not None:
        claim.check(name, ordered)
    elif size is not None:
        try:
            with torch.inference_mode():
                ordered(torch.zeros(1, 3, *size))
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise whole.refusal(name, size, first_line(error)) from error
    return network


def _drawn(
    name: str, entry: CatalogueEntry, whole: WholeNetwork, layers: Sequence[str], seed: int, size: Size | None
) -> nn.Module:
    """The network with random weights; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        timm.create_model(entry.architecture, pretrained=False)  # its draws come first, as they always have
        return _cut(name, entry, whole, layers, size)


def _is_whole(network: nn.Module) -> bool:
    """Whether nothing of a network is without memory still: neither weights nor constants that no file holds."""
    held = (value for module in network.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    return not any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers(), held))


def _cut(name: str, entry: CatalogueEntry, whole: WholeNetwork, layers: Sequence[str], size: Size | None) -> nn.Module:
    """The network up to the last layer: timm's feature network, or a traced graph for layers that does not list.

    It is built for images of `size`; None for its default. Raises BackboneError for a layer or a size it cannot have.
    """
    listed = all(layer in whole.levels for layer in layers)
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    if listed:
        indices = sorted(list(whole.levels).index(layer) for layer in layers)
        options |= {"features_only": True, "out_indices": indices}
    try:
        network: nn.Module = timm.create_model(entry.architecture, pretrained=False, **options)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        if size is None:
            raise
        raise whole.refusal(name, size, first_line(error)) from error
    return network if listed else _traced(entry, whole, network.eval(), layers)


def _traced(entry: CatalogueEntry, whole: WholeNetwork, network: nn.Module, layers: Sequence[str]) -> nn.Module:
    """A graph of a network that ends with these layers. Raises BackboneError."""
    known = dict(network.named_modules())
    for layer in layers:
        if layer not in known:
            raise BackboneError(
                f"{entry.architecture} has no layer '{layer}'; its feature levels are {list(whole.levels)}"
            )
    try:
        graph: Any = create_feature_extractor(network, list(layers))
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        raise BackboneError(
            f"the layers {list(layers)} of {entry.architecture} cannot be read; use its feature levels "
            f"{list(whole.levels)}"
        ) from error
    graph.output_fmt = getattr(network, "output_fmt", None)
    traced: nn.Module = graph
    return traced
