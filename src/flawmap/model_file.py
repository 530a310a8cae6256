"""The container of a model: one safetensors file whose metadata holds a versioned JSON document; never pickle.

Reading trusts nothing: the header's length, the document's version, and every tensor's name, shape, type and values are
checked before they are used, and no code of the file runs. Writing is atomic.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flawmap.errors import ModelFileError, first_line
from flawmap.files import replace_atomically

FORMAT_VERSION = 3
"""Of the document. Format 1 had another layout (`flawmap.detectors.format_1`); format 2 did not describe its images."""
DOCUMENT_KEY = "flawmap"
DTYPES = {torch.float32: ("F32", 4), torch.float16: ("F16", 2), torch.bfloat16: ("BF16", 2)}
"""Numbers that a file may hold, with their names and bytes; all become float32 when read."""
MAX_HEADER_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Streamed:
    """A float32 tensor that is made while it is written: its shape, and its values in pieces, row-major."""

    shape: tuple[int, ...]
    pieces: Iterable[NDArray[np.float32]]


class ModelFile:
    """An opened model file: its document as plain JSON values, and its tensors once their shapes are known.

    Attributes:
        path: where the file lies.
        document: what the file says of itself, a JSON object of format 1, 2 or 3.
        shapes, dtypes: shape of each tensor, and its type as safetensors calls it.
        starts: first byte of each tensor in the file; reliable once `read` has checked the shapes.

    Raises ModelFileError for a file that is missing, damaged, too new, or no model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        header, data, size = self._read_header()
        self.document = self._read_document(header)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.starts: dict[str, int] = {}
        known, end = [name for name, _ in DTYPES.values()], data
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if not isinstance(entry, dict) or entry.get("dtype") not in known:
                raise damaged(self.path, f"tensor '{name}' is not of {', '.join(known)}")
            shape, offsets = entry.get("shape"), entry.get("data_offsets")
            if not (_are_numbers(shape) and _are_numbers(offsets) and len(offsets) == 2):
                raise damaged(self.path, f"tensor '{name}' has no shape, or no position in the file")
            self.shapes[name], self.dtypes[name] = tuple(shape), entry["dtype"]
            self.starts[name], end = data + offsets[0], max(end, data + offsets[1])
        if size < end:  # `read` refuses more
            raise damaged(self.path, f"it ends after {size} bytes of {end}")

    def read(
        self, expected: Mapping[str, tuple[int, ...]], device: torch.device, *, leave: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """The tensors, which must be just the `expected` ones, finite; those to `leave` are not read yet."""
        if self.shapes != dict(expected):
            wrong = sorted(set(self.shapes.items()) ^ set(expected.items()))[0][0]
            raise damaged(
                self.path,
                f"tensor '{wrong}' has shape {self.shapes.get(wrong)}, its description needs {expected.get(wrong)}",
            )
        tensors = {}
        try:
            with safe_open(self.path, framework="pt", device=str(device)) as file:
                for name in (name for name in expected if name not in leave):
                    # a copy: a mapped tensor would change, or end the process, if the file is overwritten in place
                    tensors[name] = file.get_tensor(name).to(torch.float32, copy=True)
        except (OSError, SafetensorError) as error:
            raise damaged(self.path, first_line(error)) from error
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise damaged(self.path, f"tensor '{name}' holds NaN or infinite values")
        return tensors

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        """The safetensors header, 8 bytes of length and then JSON, checked; its end in the file; the file's size."""
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as stream:
                start = stream.read(8)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                    raise damaged(self.path, f"its header claims {length} bytes of the file's {size}")
                text = stream.read(length)
        except FileNotFoundError as error:
            raise ModelFileError(f"{self.path}: no such model file; `flawmap fit` makes one") from error
        except IsADirectoryError as error:
            raise ModelFileError(
                f"{self.path}: is a folder, not a model file of `flawmap fit`; an export is for `flawmap predict` and "
                f"`Inspector`"
            ) from error
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read ({first_line(error)})") from error
        return self._parse("header", text), 8 + length, size

    def _read_document(self, header: dict[str, Any]) -> dict[str, Any]:
        metadata = header.get("__metadata__")
        text = metadata.get(DOCUMENT_KEY) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise ModelFileError(f"{self.path}: a safetensors file, but no flawmap model; `flawmap fit` makes one")
        content = self._parse("description", text)
        version = content.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelFileError(
                f"{self.path}: was written by a newer flawmap (format {version}; this one reads up to "
                f"{FORMAT_VERSION}). Upgrade flawmap, or fit again"
            )
        return content

    def _parse(self, part: str, text: str | bytes) -> dict[str, Any]:
        """A JSON object of the file."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(self.path, f"its {part} is not JSON") from error
        if not isinstance(content, dict):
            raise damaged(self.path, f"its {part} is not a JSON object")
        return content


def write_model_file(
    path: str | os.PathLike[str],
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    streamed: Mapping[str, Streamed] | None = None,
) -> None:
    """Write a model file atomically: whole or not at all. The same document and tensors give the same bytes.

    Tensors that are `streamed` never lie in memory as a whole. Raises ModelFileError.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    try:
        with replace_atomically(path) as temporary:
            _write_tensors(temporary, tensors, streamed or {}, text)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be written ({first_line(error)}). Check that the folder exists, is writable and has room. "
            f"Nothing was changed"
        ) from error


def damaged(path: str | os.PathLike[str], reason: object) -> ModelFileError:
    """The error for a file whose content is wrong."""
    return ModelFileError(f"{path} is damaged: {reason}. Fit again or restore a backup")


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, without a copy: the extremes are finite, and NaN would be one."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], streamed: Mapping[str, Streamed], text: str) -> None:
    """Write a safetensors file piece by piece, wide numbers before narrow ones. Raises OSError."""
    entries: dict[str, object] = {"__metadata__": {DOCUMENT_KEY: text}}
    begin = 0
    layout = [(name, tuple(tensor.shape), *DTYPES[tensor.dtype]) for name, tensor in tensors.items()]
    layout += [(name, tensor.shape, *DTYPES[torch.float32]) for name, tensor in streamed.items()]
    layout.sort(key=lambda entry: (-entry[3], entry[0] in streamed, entry[0]))
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
                file.write(np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).reshape(-1).data.cast("B"))


def _bits(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values; of bfloat16, which numpy does not have, their bits."""
    values = tensor.detach().cpu()
    bits: NDArray[Any] = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    return bits


def _are_numbers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
