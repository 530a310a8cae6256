"""Reads an export folder: every file once, so that the bytes that are checked are the bytes that run.

All files are opened before the first is read: an export that takes the place of this one meanwhile changes nothing, and
what was opened half before and half after that is read again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from flawmap.errors import ModelFileError, first_line
from flawmap.files import open_file
from flawmap.folders import recover_folder
from flawmap.images import Preprocessing
from flawmap.images.alignment import COLOURS, GREY, AlignedPreprocessing
from flawmap.images.roi import RoiPreprocessing
from flawmap.runtime.metadata import ALIGNMENT_FILE, EXPORT_FILES, FILES, METADATA_FILE, Metadata

Content = bytes | NDArray[np.uint8]
"""A file's bytes: of constants an array that a graph can use in its place."""
CONSTANTS = tuple(files[1] for files in FILES.values())
ALIGNMENT = 64
"""Bytes at whose multiples an array of constants begins, as in a file that is mapped into memory."""
MAX_METADATA_BYTES = 256 * 2**20
TRIES = 20
"""How often a folder is read if it changes meanwhile."""


@dataclass(frozen=True)
class Export:
    """An export folder as it was at one moment: its checked metadata, and the checked content of its graph's files."""

    folder: Path
    metadata: Metadata
    contents: dict[str, Content]

    def preprocessing(self) -> Preprocessing:
        """What makes the graph's images of any. Raises ModelFileError."""
        whole, roi = self._preprocessing(), self.metadata.roi
        return whole if roi is None else RoiPreprocessing.of_roi(whole, roi.mask(whole.input_size))

    def _preprocessing(self) -> Preprocessing:
        """The same of images that are inspected as a whole."""
        plain, record = self.metadata.preprocessing, self.metadata.alignment
        if record is None:
            return plain
        path = self.folder / ALIGNMENT_FILE
        try:
            pictures = load(bytes(self.contents[ALIGNMENT_FILE]))
            if {name: picture.shape for name, picture in pictures.items()} != record.shapes:
                raise ValueError("its pictures are not those of the metadata")
            aligner = record.restore(pictures[GREY], pictures[COLOURS], plain.resize)
        except (SafetensorError, ValueError) as error:
            raise ModelFileError(f"{path}: is damaged ({first_line(error)}); export again") from error
        return AlignedPreprocessing.of_aligner(plain, aligner)


def read_export(folder: Path) -> Export:
    """Read and check an export folder. Raises ModelFileError."""
    recover_folder(folder)
    if os.path.isfile(folder):  # noqa: PTH113 (Path.is_file raises for names that are too long)
        raise ModelFileError(f"{folder}: is a file, not a folder of `flawmap export`; a model file is for flawmap.load")
    for _ in range(TRIES - 1):
        before = _state_of(folder)
        try:
            return _read_once(folder)
        except ModelFileError:
            if _state_of(folder) == before:
                raise
    return _read_once(folder)


def _state_of(folder: Path) -> tuple[int, ...] | None:
    """What changes when the folder is replaced, or a file in it; None if it is not there."""
    try:
        state = folder.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns


def _read_once(folder: Path) -> Export:
    names = (METADATA_FILE, *EXPORT_FILES)
    opened: dict[str, BinaryIO | OSError] = {}
    with ExitStack() as stack:
        for name in names:
            try:
                opened[name] = stack.enter_context(open_file(folder / name))
            except OSError as error:
                opened[name] = error.with_traceback(None)  # it would keep all that is read here alive
        metadata = Metadata.parse(_read_metadata(folder / METADATA_FILE, opened[METADATA_FILE]), folder / METADATA_FILE)
        contents = {
            name: _read_checked(folder / name, opened[name], expected)
            for name, expected in metadata.graph.files.items()
        }
    return Export(folder, metadata, contents)


def _read_metadata(path: Path, file: BinaryIO | OSError) -> bytes:
    if isinstance(file, FileNotFoundError):
        raise ModelFileError(
            f"{path}: no such file; expected a folder of `flawmap export`, with its graph and {METADATA_FILE}"
        ) from file
    try:
        if isinstance(file, OSError):
            raise file
        content = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({first_line(error)})") from error
    if len(content) > MAX_METADATA_BYTES:
        raise ModelFileError(f"{path}: is larger than any metadata of an export; export again")
    return content


def _read_checked(path: Path, file: BinaryIO | OSError, expected: str) -> Content:
    """A file's bytes, whose SHA-256 is the expected one."""
    try:
        if isinstance(file, OSError):
            raise file
        n_bytes = os.fstat(file.fileno()).st_size
        content = _read_aligned(file, n_bytes) if path.name in CONSTANTS else file.read(n_bytes)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({first_line(error)}); export again") from error
    except MemoryError as error:
        raise ModelFileError(f"{path}: its {n_bytes} bytes do not fit into memory; export again") from error
    if hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest() != expected:
        raise ModelFileError(f"{path}: is damaged or of another export; copy or export it again")
    return content


def _read_aligned(file: BinaryIO, n_bytes: int) -> NDArray[np.uint8]:
    """The bytes as an array that begins at a multiple of ALIGNMENT; fewer if the file has become shorter."""
    room = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    content = room[start : start + n_bytes]
    return content[: file.readinto(content)]  # type: ignore[attr-defined]
