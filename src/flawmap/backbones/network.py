"""A frozen network: from uint8 images to the feature maps of its layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.backbones.runtimes import NETWORKS, CompiledNetwork, NormalisedNetwork, Policy
from flawmap.errors import BackboneError
from flawmap.options import Precision
from flawmap.prediction import Size

AT_ONCE = 4
"""Images that a CPU runs at once: more are no faster, and their feature maps need more memory."""


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
        policy: how it runs.
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
    policy: Policy
    _compiled: dict[Size, CompiledNetwork | None] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where its feature maps are."""
        return self.policy.device

    @property
    def precision(self) -> Precision:
        """Numbers it computes in."""
        return self.policy.precision

    def features(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """Feature maps (B, C, h, w) of each layer from RGB images (B, H, W, 3) uint8."""
        whole: list[Tensor] = []
        for here, maps in self.parts(pixels):
            if len(maps[0]) == len(pixels):
                return maps
            for layer, part in enumerate(maps):
                if here.start == 0:
                    whole.append(part.new_empty(len(pixels), *part.shape[1:]))
                whole[layer][here] = part
        return whole

    def parts(self, pixels: NDArray[np.uint8]) -> Iterator[tuple[slice, list[Tensor]]]:
        """The same of a few images at a time, and which of the batch they are."""
        compiled = self.compile_for((pixels.shape[1], pixels.shape[2])) if self.policy.compiles else None
        step = AT_ONCE if self.device.type == "cpu" else len(pixels)
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step, ..., :3]
            yield slice(start, start + step), self._run_torch(part) if compiled is None else compiled(part)

    def compile_for(self, size: Size) -> CompiledNetwork | None:
        """The network compiled for images of one size, on first use; None where torch runs it."""
        if size not in self._compiled:
            with NETWORKS:
                if size not in self._compiled:
                    self._compiled[size] = self.policy.compile(self.from_pixels, size, self.name)
        return self._compiled[size]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which belongs to this process and is made anew in another."""
        return {**self.__dict__, "_compiled": {}}

    @property
    def from_pixels(self) -> NormalisedNetwork:
        """The network with its normalisation, from images (N, H, W, 3) uint8 on."""
        return NormalisedNetwork(self.network, self.mean, self.std)

    @torch.inference_mode()
    def _run_torch(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(0, 3, 1, 2).float()
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


class OrderedNetwork(nn.Module):
    """Runs a feature network and gives its maps as (B, C, h, w) in the order of the layers asked for."""

    def __init__(self, network: nn.Module, layers: Sequence[str], levels: Iterable[str]) -> None:
        super().__init__()
        self.network = network
        self.channels_last = getattr(network, "output_fmt", None) == "NHWC"  # as timm declares it
        self.layers = list(layers)
        ascending = [layer for layer in levels if layer in layers]
        self.order = [ascending.index(layer) for layer in layers] if len(ascending) == len(layers) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that is frozen too: those that torch.fx makes of its graphs are in training mode."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of each layer."""
        outputs = self.network(images)
        maps = [outputs[i] for i in self.order] if self.order is not None else [outputs[name] for name in self.layers]
        return [_channels_first(features, self.channels_last) for features in maps]


def _channels_first(features: Tensor, channels_last: bool) -> Tensor:
    """(B, C, h, w) from networks that answer so, or in (B, h, w, C)."""
    if features.ndim != 4:
        raise BackboneError(f"a layer gave {tuple(features.shape)}, not feature maps (B, C, h, w); choose other layers")
    return features.permute(0, 3, 1, 2) if channels_last else features
