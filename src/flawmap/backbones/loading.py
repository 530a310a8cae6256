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
from torch import nn

from flawmap.backbones.network import Backbone, OrderedNetwork
from flawmap.backbones.runtimes import Policy
from flawmap.backbones.weights import CATALOGUE, CatalogueEntry, describe, find_weights, fingerprint, load_weights
from flawmap.errors import BackboneError, ParameterError, first_line
from flawmap.options import PrecisionChoice, Runtime
from flawmap.prediction import Size

USUAL_MOST = 5
"""Most layers of an embedding."""


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
    claim: Claim | None = None,
) -> Backbone:
    """A frozen backbone with its weights.

    Args:
        name: a name of the catalogue or any timm name.
        layers: one to five module names; None for the catalogue's, or the levels of stride 4, 8 and 16.
        pretrained: False for random weights, which `seed` fixes.
        weights: a file, or `hf-hub:REPO`; None to look for them on this machine.
        device: "auto" takes a GPU where there is one.
        runtime: "torch"; "openvino", on the CPU only; "auto": torch on a GPU and for few images, else OpenVINO.
        precision: "bfloat16" computes in 16 bits, twice as fast where the processor has them, with 1 % of error; "auto"
            does so where it has.
        n_images: good images that the model learns from, by which "auto" chooses.
        most_layers: how many `layers` there may be.
        claim: what the layers must give, which is checked before weights are read or memory is taken.

    Raises BackboneError for an unknown network or layer, ParameterError for a wrong claim, WeightsError for weights.
    """
    policy = Policy.choose(device, runtime, precision, n_images=n_images)
    target = policy.device
    entry = describe(name)
    with torch.device("meta"):  # without memory: whatever is claimed can be compared first
        tensors, levels, config = _dissect(name, entry)
        chosen = _choose_layers(name, entry, levels, layers, most_layers)
        blank = _cut(entry, levels, chosen) if pretrained or claim is not None else None
        if blank is not None and claim is not None:
            claim.check(name, OrderedNetwork(blank, levels, chosen).eval())
    file = find_weights(name, entry, weights) if pretrained else None
    if file is not None and blank is not None:
        load_weights(blank, file, name, order=tensors)
    if file is not None and blank is not None and _is_whole(blank):
        network = blank
    else:
        network = _drawn(entry, levels, chosen, seed)
        if file is not None:  # it has constants that no file holds
            load_weights(network, file, name, order=tensors)
    network.eval().requires_grad_(False)
    return Backbone(
        name=name,
        layers=chosen,
        weights=file.path.name if file else None,
        weights_path=str(file.path.resolve()) if file and not file.by_order else None,
        sha256=fingerprint(network),
        network=OrderedNetwork(network, levels, chosen)
        .to(target)
        .to(memory_format=torch.channels_last),  # faster on a CPU
        mean=torch.tensor(config.mean, device=target),
        std=torch.tensor(config.std, device=target),
        trained_size=config.input_size[1:],
        policy=policy,
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
        tensors, levels, _ = _dissect(name, describe(name))
    if {"conv_stem", "bn1", "blocks", "conv_head", "bn2"} <= {key.partition(".")[0] for key in tensors}:
        stages = dict.fromkeys(".".join(key.split(".")[:2]) for key in tensors if key.startswith("blocks."))
        return ("bn1", *stages, "bn2")  # bn1 and bn2 hold the activations too
    return tuple(levels)


def _dissect(name: str, entry: CatalogueEntry) -> tuple[list[str], dict[str, int], PretrainedCfg]:
    """Names of a whole network's tensors, channels of its feature levels, and what it was trained on."""
    if not timm.is_model(entry.architecture):  # a name with a hub prefix would make timm reach for the network
        near = difflib.get_close_matches(name, [*CATALOGUE, *timm.list_models()], 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists all names"
        raise BackboneError(f"unknown backbone '{name}'{hint}")
    whole: Any = timm.create_model(entry.architecture, pretrained=False)
    levels = {level["module"]: level["num_chs"] for level in getattr(whole, "feature_info", None) or []}
    config = timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=True) or PretrainedCfg(**whole.default_cfg)
    return list(whole.state_dict()), levels, config


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


def _drawn(entry: CatalogueEntry, info: dict[str, int], layers: Sequence[str], seed: int) -> nn.Module:
    """The network with random weights; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        timm.create_model(entry.architecture, pretrained=False)  # its draws come first, as they always have
        return _cut(entry, info, layers)


def _is_whole(network: nn.Module) -> bool:
    """Whether nothing of a network is without memory still: neither weights nor constants that no file holds."""
    held = (value for module in network.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    return not any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers(), held))


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
