"""Reads safetensors files of one opened descriptor; their header is checked before anything of it is used.

The library's own reader opens the path anew for the tensors, which may then be those of another file.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import weakref
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.files import open_file

MAX_HEADER_BYTES = 8 * 2**20
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types of numbers, by safetensors' name of them."""


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of a tensor: its type as safetensors calls it, its shape, its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        """Bytes of its values."""
        return TYPES[self.dtype].itemsize * math.prod(self.shape)

    def tensor(self, values: NDArray[np.uint8]) -> Tensor:
        """The tensor of these bytes, which share its memory."""
        return torch.from_numpy(values).view(TYPES[self.dtype]).reshape(self.shape)


class TensorFile:
    """An opened safetensors file. Everything is read of one descriptor: replacing the path does not mix two files.

    Attributes:
        metadata: texts by their names.
        entries: the tensors by their names.

    Raises OSError for a path that is no readable file, ValueError, which says why, for a file that is damaged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"mean": np.ones((2, 3), np.float32)}, Path(folder, "part.safetensors"))
        ...     file = TensorFile(Path(folder, "part.safetensors"))
        >>> file.entries["mean"].shape, file.read("mean").view(np.float32).sum()
        ((2, 3), np.float32(6.0))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open_file(path)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"its header claims {length} bytes of the file's {size}")
        header = parse_object("header", self._file.read(length))
        metadata = header.pop("__metadata__", {})
        self.metadata: dict[str, str] = metadata if isinstance(metadata, dict) else {}
        self.entries = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
        end = 8 + length
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
            if entry.start != end:
                raise ValueError(f"tensor '{name}' begins at byte {entry.start}, expected {end}")
            end += entry.n_bytes
        if end != size:
            raise ValueError(f"it has {size} bytes, its header describes {end}")

    def read(self, name: str, *, piece: int = 0, n_pieces: int = 1) -> NDArray[np.uint8]:
        """The bytes of a tensor, or of one of so many equal pieces of it. Raises OSError, ValueError."""
        entry = self.entries[name]
        values = np.empty(entry.n_bytes // n_pieces, np.uint8)
        rest = values.data
        with self._lock:
            self._file.seek(entry.start + piece * len(values))
            while rest and (count := self._file.readinto(rest)):  # type: ignore[attr-defined]
                rest = rest[count:]
        if rest:
            raise ValueError("it was cut short while it was read")
        return values

    def version(self) -> tuple[int, int]:
        """What changes with the file's content: when it was last written, and its size."""
        status = os.fstat(self._file.fileno())
        return status.st_mtime_ns, status.st_size


def parse_object(part: str, text: str | bytes) -> dict[str, Any]:
    """A JSON object, which is `part` of a file. Raises ValueError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {part} is not JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"its {part} is not a JSON object")
    return content


def _entry(name: str, entry: object, data: int) -> TensorEntry:
    """A checked entry of a header whose data begin at this byte."""
    if not isinstance(entry, dict) or entry.get("dtype") not in TYPES:
        raise ValueError(f"tensor '{name}' is of no known type")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_are_numbers(shape) and _are_numbers(offsets) and len(offsets) == 2):
        raise ValueError(f"tensor '{name}' has no shape, or no position in the file")
    checked = TensorEntry(entry["dtype"], tuple(shape), data + offsets[0])
    if checked.n_bytes != offsets[1] - offsets[0]:
        raise ValueError(f"tensor '{name}' of shape {checked.shape} has {offsets[1] - offsets[0]} bytes")
    return checked


def _are_numbers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
