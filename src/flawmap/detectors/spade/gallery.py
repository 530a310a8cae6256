"""Rows of numbers, one per training image, kept in memory up to a budget and in a file beyond it.

What does not fit is read back row by row into memory that is freed again, and not mapped: pages of a mapped file count
as resident memory of the process, and a gallery of tens of gigabytes would fill it.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawmap.detectors.good_images import reserve_memory
from flawmap.errors import ModelFileError
from flawmap.model_file import ModelFile


class Gallery:
    """Rows (N, n_values) of float32, appended to and then read in any order; safe to read from several threads.

    Args:
        n_values: length of a row.
        cache_mb: memory for the first rows; the others go to a temporary file, which vanishes with the gallery.
    """

    def __init__(self, n_values: int, *, cache_mb: float) -> None:
        self.n_values = n_values
        # one block, touched as it fills: many arrays among the large ones of a fit would fragment the memory
        block = reserve_memory(cache_mb)
        n_rows = len(block) // (4 * n_values)
        self._block = block[: 4 * n_rows * n_values].view(np.float32).reshape(n_rows, n_values)
        self._n_in_memory = 0
        self._file: BinaryIO | None = None
        self._start = 0
        self._n_in_file = 0
        self._stored: Callable[[int], NDArray[np.float32]] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, file: ModelFile, name: str, *, cache_mb: float) -> Self:
        """The rows of a model file's tensor (N, n_values), the first of which are read at once."""
        n_rows, n_values = file.shapes[name]
        gallery = cls(n_values, cache_mb=min(cache_mb, 4 * n_rows * n_values / 2**20))
        gallery._stored, gallery._n_in_file = partial(file.read_row, name), n_rows
        for row in range(min(n_rows, len(gallery._block))):
            gallery._block[row] = gallery._stored(row)
            gallery._n_in_memory += 1
        return gallery

    def __len__(self) -> int:
        return max(self._n_in_memory, self._n_in_file)

    def append(self, row: Tensor) -> None:
        """Add a row; ModelFileError if the temporary file cannot take it."""
        values = row.cpu().numpy()
        if self._n_in_memory < len(self._block):
            self._block[self._n_in_memory] = values
            self._n_in_memory += 1
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="flawmap-gallery-", buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
                self._n_in_file, self._start = self._n_in_memory, -4 * self.n_values * self._n_in_memory
            rest = values.data.cast("B")
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise ModelFileError(
                f"{tempfile.gettempdir()}: the gallery of {len(self)} images outgrew the {self._n_in_memory} in memory "
                f"and cannot be written here ({error.strerror}); set TMPDIR to a folder with room, raise cache_mb, or "
                f"keep less of each image with coreset"
            ) from error
        self._n_in_file += 1

    def __getstate__(self) -> dict[str, Any]:
        """All rows: what is pickled or copied has them in memory, and no file."""
        rows = np.empty((len(self), self.n_values), np.float32)
        for index, values in enumerate(self.rows()):
            rows[index] = values
        return {"n_values": self.n_values, "rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["n_values"], cache_mb=0)  # type: ignore[misc]
        self._block, self._n_in_memory = state["rows"], len(state["rows"])

    def row(self, index: int) -> Tensor:
        """A row (n_values,); ModelFileError if its file has been damaged."""
        return torch.from_numpy(self._values(index))

    def rows(self) -> Iterator[NDArray[np.float32]]:
        """All rows, one at a time."""
        for index in range(len(self)):
            yield self._values(index)

    def _values(self, index: int) -> NDArray[np.float32]:
        return self._block[index] if index < self._n_in_memory else self._read(index)

    def _read(self, index: int) -> NDArray[np.float32]:
        if self._stored is not None:
            return self._stored(index)
        if self._file is None:
            raise IndexError(f"row {index} of {len(self)}")
        values = np.empty(self.n_values, np.float32)
        rest = values.data.cast("B")
        try:
            with self._lock:
                self._file.seek(self._start + index * values.nbytes, os.SEEK_SET)
                while rest and (count := self._file.readinto(rest)):  # type: ignore[attr-defined]
                    rest = rest[count:]
        except OSError as error:
            raise ModelFileError(f"the gallery's temporary file: cannot be read ({error.strerror})") from error
        if rest:
            raise ModelFileError("the gallery's temporary file: was cut short while it was in use; fit again")
        return values
