"""Compressed files in which a block was zeroed are refused; whole files that hold zeros are read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from flawmap.errors import ImageError
from flawmap.images import read_image

HAS_AVIF = features.check("avif")
KINDS = {
    "plain.jpg": {"quality": 90},
    "optimized.jpg": {"quality": 90, "optimize": True},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "restarts.jpg": {"quality": 90, "restart_marker_blocks": 16},
    "lossy.webp": {"quality": 95},
    "lossless.webp": {"lossless": True},
    "plain.avif": {"quality": 95},
    "plain.jp2": {},
    "layers.jp2": {"irreversible": True, "quality_mode": "rates", "quality_layers": [80, 40, 10]},
    "bare.j2k": {},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"compression": "jpeg", "quality": 95},
    "lzw.tif": {"compression": "tiff_lzw"},
    "packbits.tif": {"compression": "packbits"},
    "plain.png": {},
}


def photo(size=384):
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:size, :size]
    waves = 128 + 60 * np.sin(rows / 17) * np.cos(columns / 23)
    return (waves[..., None] + rng.normal(0, 9, (size, size, 3))).clip(0, 255).astype(np.uint8)


def encoded(pixels, kind):
    buffer = io.BytesIO()
    ending = kind.rpartition(".")[2]
    formats = {"jpg": "JPEG", "webp": "WEBP", "avif": "AVIF", "jp2": "JPEG2000", "tif": "TIFF", "png": "PNG"}
    options = {"no_jp2": True} if ending == "j2k" else {}
    Image.fromarray(pixels).save(buffer, formats.get(ending, "JPEG2000"), **KINDS[kind], **options)
    return buffer.getvalue()


def written(tmp_path, kind, content):
    path = tmp_path / kind
    path.write_bytes(content)
    return path


def kinds():
    return [pytest.param(kind, marks=pytest.mark.skipif(kind.endswith("avif") and not HAS_AVIF, reason="no AVIF"))
            for kind in KINDS]  # fmt: skip


@pytest.mark.parametrize("kind", kinds())
def test_a_zeroed_block_or_tail_is_refused(tmp_path, kind):
    content = encoded(photo(), kind)
    n_bytes = len(content)
    assert read_image(written(tmp_path, kind, content)).shape == (384, 384, 3)
    for share in (0.3, 0.5, 0.7):
        start = int(share * n_bytes)
        block = content[:start] + bytes(4096) + content[start + 4096 :]
        for damaged in (
            block if start + 5000 < n_bytes else None,
            content[:start] + bytes(n_bytes - start),
            content[:start] + bytes(n_bytes - start - 2) + content[-2:],
        ):
            if damaged is not None:
                with pytest.raises(ImageError, match="is damaged"):
                    read_image(written(tmp_path, kind, damaged))


def test_the_error_tells_of_the_zeros(tmp_path):
    content = encoded(photo(), "plain.jpg")
    damaged = content[:20000] + bytes(4096) + content[24096:]
    path = written(tmp_path, "plain.jpg", damaged)
    expected = "is damaged: it holds a run of 4096 zero bytes, as after a power cut; copy or record it again"
    with pytest.raises(ImageError, match=expected):
        read_image(path)
    with Image.open(path) as opened, pytest.raises(ImageError, match=expected):
        read_image(opened)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_progressive_picture_without_its_last_scans_is_refused(tmp_path, share):
    content = encoded(photo(), "progressive.jpg")
    cut = content[: int(share * len(content))] + b"\xff\xd9"
    with pytest.raises(ImageError, match="lacks scans of its progressive picture"):
        read_image(written(tmp_path, "progressive.jpg", cut))


@pytest.mark.parametrize("kind", ["optimized.jpg", "lossless.webp", "lossy.webp", "deflate.tif", "restarts.jpg"])
def test_flat_areas_that_are_coded_in_zeros_are_read(tmp_path, kind):
    pixels = np.full((1600, 1600, 3), 255, np.uint8)
    pixels[400:800, 400:800] = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    path = tmp_path / kind
    options = {**KINDS[kind]} if kind == "deflate.tif" else {**KINDS[kind], "method": 0, "quality": 100}
    Image.fromarray(pixels).save(path, **options)
    assert read_image(path)[0, 0].tolist() == [255, 255, 255]
    if kind in {"optimized.jpg", "lossless.webp", "lossy.webp"}:
        assert bytes(512) in path.read_bytes()  # the kind of file that this test is about


def test_zeros_outside_the_coded_data_are_read(tmp_path):
    content = encoded(photo(), "plain.jpg")
    comment = b"\xff\xfe" + (4098).to_bytes(2, "big") + bytes(4096)
    padded = content[:2] + comment + content[2:] + bytes(4096)
    assert np.array_equal(
        read_image(written(tmp_path, "padded.jpg", padded)), read_image(written(tmp_path, "plain.jpg", content))
    )
    webp = encoded(photo(), "lossless.webp")
    chunk = b"junk" + (4096).to_bytes(4, "little") + bytes(4096)
    size = (len(webp) - 8 + len(chunk)).to_bytes(4, "little")
    assert read_image(written(tmp_path, "padded.webp", webp[:4] + size + webp[8:] + chunk)).shape == (384, 384, 3)


def test_as_many_zeros_as_there_are_packets_are_read(tmp_path):
    """In JPEG 2000 an empty packet is a byte of zero, and a tile may have thousands of them."""
    path = tmp_path / "many.jp2"
    Image.fromarray(photo(1024)).save(path, precinct_size=(64, 64), codeblock_size=(32, 32), num_resolutions=1)
    content = path.read_bytes()
    start = len(content) // 2
    path.write_bytes(content[:start] + bytes(3 * 16 * 16) + content[start + 3 * 16 * 16 :])
    read_image(path)
    path.write_bytes(content[:start] + bytes(3000) + content[start + 3000 :])
    with pytest.raises(ImageError, match="zero bytes"):
        read_image(path)
