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
from flawmap.model_file import ModelFile, Streamed, write_model_file

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
    write_model_file(path, {"key": "value"}, {**small, "gallery": Streamed((5, ROW), gallery.rows())})
    tensors = load_file(path)
    assert tensors["gallery"][:, 7].tolist() == [0, 1, 2, 3, 4]
    assert tensors["b"].tolist() == [0, 1, 2]
    opened = Gallery.open(ModelFile(path), "gallery", cache_mb=cache_mb)
    assert [float(opened.row(i)[0]) for i in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cache_mb", [0, 100])
def test_a_row_that_is_damaged_under_its_reader_is_named(tmp_path, cache_mb):
    path = tmp_path / "part"
    values = np.arange(3 * ROW, dtype=np.float32).reshape(3, ROW)
    write_model_file(path, {"key": "value"}, {"gallery": Streamed((3, ROW), values)})
    opened = Gallery.open(ModelFile(path), "gallery", cache_mb=0)
    assert opened.row(2).tolist() == values[2].tolist()
    changed = bytearray(path.read_bytes())
    changed[-ROW * 4 + 2] ^= 1  # in the last row
    path.write_bytes(bytes(changed))
    with pytest.raises(ModelFileError, match="checksum of tensor 'gallery' is wrong"):
        opened.row(2)
    assert opened.row(1).tolist() == values[1].tolist()
    reopened = ModelFile(path)
    with pytest.raises(ModelFileError, match="checksum"):
        list(Gallery.open(reopened, "gallery", cache_mb=cache_mb).rows())
    path.write_bytes(bytes(changed[:-4]))
    with pytest.raises(ModelFileError, match="was cut short while it was read"):
        opened.row(2)


def test_a_row_that_is_not_finite_is_named(tmp_path):
    values = np.zeros((3, ROW), np.float32)
    values[1, 5] = np.nan
    write_model_file(tmp_path / "part", {"key": "value"}, {"gallery": Streamed((3, ROW), values)})
    with pytest.raises(ModelFileError, match="row 2 of tensor 'gallery' holds NaN"):
        Gallery.open(ModelFile(tmp_path / "part"), "gallery", cache_mb=100)
