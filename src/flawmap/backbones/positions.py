"""Weights that belong to the positions of an image, resampled for images of another size.

Vision transformers learn an embedding of each patch's position, or a bias for each distance of two patches. Both are
resampled as timm does when it loads its own weights for another size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import timm.layers
from torch import Tensor, nn

from flawmap.prediction import Size

layers: Any = timm.layers  # it declares no public names
EMBEDDING = "pos_embed"
BIAS_TABLE = "relative_position_bias_table"


def depends_on_positions(key: str) -> bool:
    """Whether a tensor of this name may be resampled."""
    last = key.rpartition(".")[2]
    return last == BIAS_TABLE or last.startswith(EMBEDDING)


def resample(network: nn.Module, key: str, value: Tensor, shape: Sequence[int], old: Size, new: Size) -> Tensor:
    """A tensor of the network for another grid of patches; as it is if it cannot be resampled to this shape.

    Args:
        network: the one that is to have the tensor.
        key: the tensor's name in it.
        value: what the weights file has.
        shape: what the network expects.
        old: grid (h, w) that the weights are for, unless the value itself says another, a square.
        new: grid (h, w) of the network.
    """
    if key.endswith(BIAS_TABLE):
        module: Any = network.get_submodule(key.rpartition(".")[0])
        window = tuple(module.window_size)
        if value.shape == tuple(shape) and window[0] == window[1]:
            return value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how timm indexes
            table: Tensor = layers.resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=tuple(shape))
        return table
    if value.ndim != len(shape):
        return value
    return _tokens(value, shape, old, new) if value.ndim == 3 else _maps(value, shape)


def _tokens(value: Tensor, shape: Sequence[int], old: Size, new: Size) -> Tensor:
    """Embeddings (1, tokens, C): those of prefix tokens (classes, registers), which stay, then one of each patch."""
    n_prefix = shape[1] - math.prod(new)
    n_patches = value.shape[1] - n_prefix
    side = math.isqrt(max(0, n_patches))
    if n_patches != math.prod(old):
        old = side, side
    if n_prefix < 0 or n_patches < 1 or n_patches != math.prod(old):
        return value
    resampled: Tensor = layers.resample_abs_pos_embed(value, list(new), old_size=list(old), num_prefix_tokens=n_prefix)
    return resampled


def _maps(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Embeddings (1, h, w, C) or (1, C, h, w)."""
    if value.shape[3] == shape[3]:
        last: Tensor = layers.resample_abs_pos_embed_nhwc(value, list(shape[1:3]))
        return last
    first: Tensor = layers.resample_abs_pos_embed_nhwc(value.permute(0, 2, 3, 1), list(shape[2:]))
    return first.permute(0, 3, 1, 2).contiguous()
