from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flawmap.detectors.spade.gallery import Gallery
from flawmap.errors import ModelFileError
from flawmap.model_file import Streamed, write_model_file

ROW = 4096
MB = 2**20 / 4


@contextmanager
def files_no_longer_than(n_bytes):
    """As on a full disk: no file may grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def filled(n_rows, cache_mb):
    gallery = Gallery(ROW, cache_mb=cache_mb)
    for i in range(n_rows):
        gallery.append(torch.full((ROW,), float(i)))
    return gallery


@pytest.mark.parametrize("cache_mb", [0, 3 * ROW / MB, 100])
def test_rows_come_back_whatever_is_in_memory(cache_mb):
    gallery = filled(10, cache_mb)
    assert len(gallery) == 10
    for i in (9, 0, 3, 2, 4, 9):
        assert gallery.row(i).tolist() == [i] * ROW
    assert [row[0] for row in gallery.rows()] == list(range(10))
    with ThreadPoolExecutor(4) as pool:
        firsts = list(pool.map(lambda i: float(gallery.row(i % 10)[5]), range(200)))
    assert firsts == [i % 10 for i in range(200)]


def test_a_full_disk_is_said_with_its_remedy():
    with files_no_longer_than(3 * 4 * ROW), pytest.raises(ModelFileError, match=r"TMPDIR.* raise cache_mb"):
        filled(10, 2 * ROW / MB)


@pytest.mark.parametrize("cache_mb", [0, 2 * ROW / MB, 100])
def test_a_gallery_streamed_into_a_file_is_a_safetensors_file(tmp_path, cache_mb):
    path = tmp_path / "part"
    gallery = filled(5, cache_mb)
    small = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    write_model_file(path, {"key": "value"}, small, {"gallery": Streamed((5, ROW), gallery.rows())})
    tensors = load_file(path)
    assert tensors["gallery"][:, 7].tolist() == [0, 1, 2, 3, 4]
    assert tensors["b"].tolist() == [0, 1, 2]
    opened = Gallery.open(path, path.stat().st_size - 5 * 4 * ROW, 5, ROW, cache_mb=cache_mb)
    assert [float(opened.row(i)[0]) for i in range(5)] == [0, 1, 2, 3, 4]


def test_a_file_that_is_damaged_under_its_reader_is_named(tmp_path):
    path = tmp_path / "rows"
    values = np.zeros((3, ROW), np.float32)
    values[1, 5] = np.nan
    path.write_bytes(values.tobytes())
    gallery = Gallery.open(path, 0, 3, ROW, cache_mb=0)
    with pytest.raises(ModelFileError, match="image 2 of the gallery holds NaN"):
        gallery.row(1)
    path.write_bytes(values.tobytes()[:-4])
    with pytest.raises(ModelFileError, match="was changed while it was in use"):
        gallery.row(2)
    with pytest.raises(ModelFileError, match="cannot be read"):
        Gallery.open(tmp_path / "gone", 0, 3, ROW, cache_mb=0)
