"""A safetensors file written piece by piece: tensors are not copied first, and need not fit into memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Streamed", "write_tensors"]

DTYPES = {torch.float32: ("F32", 4), torch.float16: ("F16", 2), torch.bfloat16: ("BF16", 2)}
"""Names and bytes of the numbers that can be written."""


@dataclass(frozen=True)
class Streamed:
    """A float32 tensor that is made as it is written: its shape, and its values in pieces, row-major."""

    shape: tuple[int, ...]
    pieces: Iterable[NDArray[np.float32]]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], streamed: Mapping[str, Streamed], metadata: Mapping[str, str]
) -> None:
    """Write tensors, wide numbers before narrow ones, as the safetensors format has them; raises OSError."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    in_memory = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype][1], name))
    wide = [name for name in in_memory if tensors[name].dtype == torch.float32]
    layout = [(name, tuple(tensors[name].shape), *DTYPES[tensors[name].dtype]) for name in in_memory]
    layout[len(wide) : len(wide)] = [(name, streamed[name].shape, "F32", 4) for name in sorted(streamed)]
    for name, shape, dtype, n_bytes in layout:
        end = begin + n_bytes * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, *_ in layout:
            pieces = streamed[name].pieces if name in streamed else [_bits(tensors[name])]
            for piece in pieces:
                file.write(_little_endian(piece))


def _bits(tensor: Tensor) -> NDArray[np.float32 | np.float16 | np.int16]:
    """A tensor's values; of bfloat16, which numpy has not, their bits."""
    values = tensor.detach().cpu()
    bits: NDArray[np.float32 | np.float16 | np.int16] = (
        values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    ).numpy()
    return bits


def _little_endian(values: NDArray[np.float32 | np.float16 | np.int16]) -> memoryview:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).data.cast("B")
