"""A safetensors file written piece by piece, for tensors that do not fit into memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Streamed", "write_tensors"]


@dataclass(frozen=True)
class Streamed:
    """A float32 tensor that is made as it is written: its shape, and its values in pieces, row-major."""

    shape: tuple[int, ...]
    pieces: Iterable[NDArray[np.float32]]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], streamed: Mapping[str, Streamed], metadata: Mapping[str, str]
) -> None:
    """Write float32 tensors, those in memory first, as the safetensors format has them; raises OSError."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    shapes = {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())}
    shapes |= {name: tensor.shape for name, tensor in sorted(streamed.items())}
    for name, shape in shapes.items():
        end = begin + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in sorted(tensors):
            file.write(_little_endian(tensors[name].cpu().numpy()))
        for name in sorted(streamed):
            for piece in streamed[name].pieces:
                file.write(_little_endian(piece))


def _little_endian(values: NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(values, "<f4").reshape(-1).data.cast("B")
