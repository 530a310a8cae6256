"""The container of a model: one safetensors file whose metadata holds a versioned JSON document; never pickle.

Reading trusts nothing: the header, the document's version and checksum, and every tensor's name, shape, type, checksum
and values are checked before they are used, and no code of the file runs. Writing is atomic.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.errors import ModelFileError, first_line
from flawmap.files import expand_home, open_file, replace_atomically
from flawmap.tensor_file import MAX_HEADER_BYTES, TensorFile, parse_object

FORMAT_VERSION = 3
"""Of the document. Format 1 had another layout (`flawmap.detectors.format_1`); formats 1 and 2 have no checksums."""
FIRST_WITH_CHECKSUMS = 3
DOCUMENT_KEY, CHECKSUM_KEY = "flawmap", "sha256"
"""Texts in the metadata: the document, and its SHA-256."""
CHECKSUMS = "sha256"
"""Field of the document: the SHA-256 of each tensor; of a streamed one, a list with that of each row."""
DTYPES = {torch.float32: ("F32", 4), torch.float16: ("F16", 2), torch.bfloat16: ("BF16", 2)}
"""Numbers that a file may hold, with their names and bytes; all become float32 when read."""
BLANK = "0" * 64
"""Stands for a checksum that is not known yet."""
CHECKSUM_THREADS = 2
"""They compute checksums while the model is built."""
MAX_ROWS = 2**16
"""Most rows of a streamed tensor, and most digests of images: the header has room for so many."""

Checksums = dict[str, str | list[str]]


@dataclass(frozen=True)
class Streamed:
    """A float32 tensor that is made while it is written: its shape, and its rows, at most `MAX_ROWS`."""

    shape: tuple[int, ...]
    pieces: Iterable[NDArray[np.float32]]


class ModelFile:
    """An opened model file: its document as plain JSON values, and its tensors once their shapes are known.

    Attributes:
        path: where the file lies.
        document: what the file says of itself, a JSON object of format 1, 2 or 3.
        shapes, dtypes: shape of each tensor, and its type as safetensors calls it.
        checksums: SHA-256 of each tensor, or of each of its rows; None in files of formats 1 and 2.

    Raises ModelFileError for a file that is missing, damaged, too new, or no model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expand_home(path)
        self._file = self._open()
        self._version = self._file.version()
        self._pool = ThreadPoolExecutor(CHECKSUM_THREADS, thread_name_prefix="flawmap-checksum")
        self._pending: list[Future[None]] = []
        self.checksums: Checksums | None = None
        self.document = self._read_document()
        entries, known = self._file.entries, [name for name, _ in DTYPES.values()]
        for name, entry in entries.items():
            if entry.dtype not in known:
                raise damaged(self.path, f"tensor '{name}' is not of {', '.join(known)}")
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in entries.items()}

    def read(
        self, expected: Mapping[str, tuple[int, ...]], device: torch.device, *, leave: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """The tensors, which must be just the `expected` ones, finite; those to `leave` are not read yet.

        Their checksums are computed by threads from now on: `check` waits for them.
        """
        if self.shapes != dict(expected):
            wrong = sorted(set(self.shapes.items()) ^ set(expected.items()))[0][0]
            raise damaged(
                self.path,
                f"tensor '{wrong}' has shape {self.shapes.get(wrong)}, its description needs {expected.get(wrong)}",
            )
        names = [name for name in expected if name not in leave]
        return {name: self._tensor(name).to(device) for name in names}

    def check(self) -> None:
        """Wait for the checksums of the tensors that were read. Raises ModelFileError for a wrong one."""
        while self._pending:
            self._pending.pop(0).result()

    def read_row(self, name: str, row: int) -> NDArray[np.float32]:
        """One row, along the first axis, of a float32 tensor that was left; its values in one axis, finite."""
        if self.checksums is None and self._file.version() != self._version:
            raise ModelFileError(f"{self.path}: was changed while it was in use; load the model again")
        n_rows = self.shapes[name][0]
        values: NDArray[np.float32] = self._checked_bytes(name, piece=row, n_pieces=n_rows).view("<f4")
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise damaged(self.path, f"row {row + 1} of tensor '{name}' holds NaN or infinite values")
        return values

    def has_right_checksums(self) -> bool:
        """Whether there are checksums; all are then compared. Raises ModelFileError for a wrong one."""
        if self.checksums is None:
            return False
        for name, sums in self.checksums.items():
            n_pieces = 1 if isinstance(sums, str) else len(sums)
            for piece in range(n_pieces):
                self._checked_bytes(name, piece=piece, n_pieces=n_pieces)
        return True

    def _tensor(self, name: str) -> Tensor:
        """A tensor as float32, finite; its checksum is compared by a thread."""
        values = self._bytes(name)
        self._pending.append(self._pool.submit(self._compare, values, name))
        tensor: Tensor = self._file.entries[name].tensor(values).float()
        if not is_finite(tensor):
            raise damaged(self.path, f"tensor '{name}' holds NaN or infinite values")
        return tensor

    def _bytes(self, name: str, *, piece: int = 0, n_pieces: int = 1) -> NDArray[np.uint8]:
        """The bytes of a tensor, or of a row of it."""
        try:
            return self._file.read(name, piece=piece, n_pieces=n_pieces)
        except (OSError, ValueError) as error:
            raise damaged(self.path, first_line(error)) from error

    def _checked_bytes(self, name: str, *, piece: int, n_pieces: int) -> NDArray[np.uint8]:
        values = self._bytes(name, piece=piece, n_pieces=n_pieces)
        self._compare(values, name, piece)
        return values

    def _compare(self, values: NDArray[np.uint8], name: str, piece: int = 0) -> None:
        """Raise ModelFileError for a wrong checksum."""
        if self.checksums is not None:
            sums = self.checksums[name]
            if hashlib.sha256(values.data).hexdigest() != (sums if isinstance(sums, str) else sums[piece]):
                raise damaged(self.path, f"the checksum of tensor '{name}' is wrong")

    def _open(self) -> TensorFile:
        try:
            return TensorFile(self.path)
        except FileNotFoundError as error:
            raise ModelFileError(f"{self.path}: no such model file; `flawmap fit` makes one") from error
        except IsADirectoryError as error:
            raise ModelFileError(
                f"{self.path}: is a folder, not a model file of `flawmap fit`; an export is for `flawmap predict` and "
                f"`Inspector`"
            ) from error
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read ({first_line(error)})") from error
        except ValueError as error:
            if _begins_otherwise(self.path):
                raise ModelFileError(f"{self.path}: is not a flawmap model file; `flawmap fit` makes one") from error
            raise damaged(self.path, error) from error

    def _read_document(self) -> dict[str, Any]:
        """The document, without its checksums, which are kept."""
        metadata = self._file.metadata
        text, checksum = metadata.get(DOCUMENT_KEY), metadata.get(CHECKSUM_KEY)
        if not isinstance(text, str):
            raise ModelFileError(f"{self.path}: a safetensors file, but no flawmap model; `flawmap fit` makes one")
        try:
            content = parse_object("description", text)
        except ValueError as error:
            raise damaged(self.path, error) from error
        version = content.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelFileError(
                f"{self.path}: was written by a newer flawmap (format {version}; this one reads up to "
                f"{FORMAT_VERSION}). Upgrade flawmap, or fit again"
            )
        has_checksums = checksum is not None or CHECKSUMS in content
        if has_checksums or (isinstance(version, int) and version >= FIRST_WITH_CHECKSUMS):
            if checksum != hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest():
                raise damaged(self.path, "the checksum of its description is wrong")
            self.checksums = self._checked(content.pop(CHECKSUMS, None))
        return content

    def _checked(self, checksums: object) -> Checksums:
        """The checksums of the document: one for each tensor, or for each of its rows."""
        entries = self._file.entries
        if not isinstance(checksums, dict) or checksums.keys() != entries.keys():
            raise damaged(self.path, "its checksums are not those of its tensors")
        for name, sums in checksums.items():
            shape = entries[name].shape
            if not (isinstance(sums, str) or (isinstance(sums, list) and shape and len(sums) == shape[0])):
                raise damaged(self.path, f"it has no checksum of tensor '{name}'")
        return checksums


def write_model_file(
    path: str | os.PathLike[str], document: Mapping[str, Any], tensors: Mapping[str, Tensor | Streamed]
) -> None:
    """Write a model file atomically: whole or not at all. The same document and tensors give the same bytes.

    Tensors that are streamed never lie in memory as a whole. Raises ModelFileError.
    """
    in_memory = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    streamed = {name: value for name, value in tensors.items() if isinstance(value, Streamed)}
    target = expand_home(path)
    try:
        with replace_atomically(target) as temporary, temporary.open("wb") as file:
            _write(file, document, in_memory, streamed)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be written ({first_line(error)}). Check that the folder exists, is writable and has room. "
            f"Nothing was changed"
        ) from error


def damaged(path: str | os.PathLike[str], reason: object) -> ModelFileError:
    """The error for a file whose content is wrong."""
    return ModelFileError(f"{path} is damaged: {reason}. Fit again or restore a backup")


def _begins_otherwise(path: Path) -> bool:
    """Whether a file cannot be one of safetensors: after eight bytes comes a brace, and what is cut short has fewer."""
    try:
        with open_file(path) as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[8:] != b"{" and any(start)


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, without a copy: the extremes are finite, and NaN would be one."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax())


def _write(
    file: BinaryIO, document: Mapping[str, Any], tensors: Mapping[str, Tensor], streamed: Mapping[str, Streamed]
) -> None:
    """Write a safetensors file piece by piece, wide numbers before narrow ones, and its checksums. Raises OSError."""
    layout = [(name, tuple(tensor.shape), *DTYPES[tensor.dtype]) for name, tensor in tensors.items()]
    layout += [(name, tensor.shape, *DTYPES[torch.float32]) for name, tensor in streamed.items()]
    layout.sort(key=lambda entry: (-entry[3], entry[0] in streamed, entry[0]))
    entries: dict[str, object] = {}
    begin = 0
    for name, shape, dtype, n_bytes in layout:
        end = begin + n_bytes * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    # checksums that are not known yet have the length of those that will be
    checksums: Checksums = dict.fromkeys(tensors, BLANK)
    checksums |= {name: [BLANK] * tensor.shape[0] for name, tensor in streamed.items()}
    header = _header(document, checksums, entries)
    file.write(header)
    for name, *_ in layout:
        pieces = streamed[name].pieces if name in streamed else [_bits(tensors[name])]
        sums = []
        for piece in pieces:
            values = np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).reshape(-1).data.cast("B")
            sums.append(hashlib.sha256(values).hexdigest())
            file.write(values)
        checksums[name] = sums if name in streamed else sums[0]
    file.seek(0)
    file.write(_header(document, checksums, entries))


def _header(document: Mapping[str, Any], checksums: Checksums, entries: Mapping[str, object]) -> bytes:
    """The length and the header of a file. Raises ModelFileError for one that no reader takes."""
    text = json.dumps({**document, CHECKSUMS: checksums}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    metadata = {DOCUMENT_KEY: text, CHECKSUM_KEY: hashlib.sha256(text.encode()).hexdigest()}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to eight bytes
    if len(header) > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"the model's description has {len(header)} bytes, more than {MAX_HEADER_BYTES}: fit fewer images"
        )
    return struct.pack("<Q", len(header)) + header


def _bits(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values; of bfloat16, which numpy does not have, their bits."""
    values = tensor.detach().cpu()
    bits: NDArray[Any] = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    return bits
