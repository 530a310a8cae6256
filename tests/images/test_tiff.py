"""Every kind of TIFF is read right, held to numbers computed here and to another reader, or refused by its name."""

from __future__ import annotations

import io
import itertools
import re
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from flawmap.errors import ImageError
from flawmap.images import read_image, read_mask, read_photo
from flawmap.images.tiff import _libtiff
from tiffs import encode_tiff

HEIGHT, WIDTH = 20, 33
KINDS = {
    "RGB, alpha and two more": (2, 6, (2, 0, 0)),
    "white is zero": (0, 1, ()), "grey": (1, 1, ()), "grey, unknown": (1, 2, (0,)), "grey, premultiplied": (1, 2, (1,)),
    "grey, alpha": (1, 2, (2,)), "RGB": (2, 3, ()), "RGB, unknown": (2, 4, (0,)), "RGB, premultiplied": (2, 4, (1,)),
    "RGB, alpha": (2, 4, (2,)), "RGB, unsaid": (2, 4, ()), "RGB, alpha and more": (2, 5, (2, 0)),
    "palette": (3, 1, ()),
    "palette, alpha": (3, 2, (2,)), "mask": (4, 1, ()), "CMYK": (5, 4, ()), "CMYK, unknown": (5, 5, (0,)),
    "CMYK, alpha": (5, 5, (2,)), "YCbCr": (6, 3, ()), "Lab": (8, 3, ()), "filter array": (32803, 1, ()),
}  # fmt: skip
"""Photometric interpretation, samples a pixel, kinds of the extra samples."""
UINT, INT, FLOAT = 1, 2, 3
READ = {
    "white is zero": {1, 2, 4, 8, 16}, "grey": {1, 2, 4, 8, 12, 16, 32}, "grey, unknown": {8},
    "grey, premultiplied": {8}, "grey, alpha": {8}, "RGB": {8, 16}, "RGB, unknown": {8, 16},
    "RGB, premultiplied": {8, 16}, "RGB, alpha": {8, 16}, "RGB, unsaid": {8, 16}, "RGB, alpha and more": {8},
    "RGB, alpha and two more": {8},
    "palette": {1, 2, 4, 8}, "palette, alpha": {8}, "CMYK": {8, 16}, "CMYK, unknown": {8}, "YCbCr": {8},
}  # fmt: skip
"""Bits a sample that are read where samples lie side by side, in the usual byte order."""


def draw(name, bits, sample_format=UINT):
    """Samples (H, W, S) and the tags that go with them."""
    photometric, n_samples, extra = KINDS[name]
    rng = np.random.default_rng(bits)
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    high = 65536 if bits == 32 else 2 ** (bits - (sample_format == INT))
    samples = rng.integers(0, high, (HEIGHT, WIDTH, n_samples)).astype(dtype)
    if sample_format == FLOAT:
        samples = samples.astype(np.float32)
    if extra[:1] == (1,):  # no colour of more than its alpha
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    tags = {338: extra} if extra else {}
    if sample_format != UINT:
        tags[339] = (sample_format,) * n_samples
    if photometric == 3:
        tags[320] = tuple(int(v) * 257 for v in rng.integers(0, 256, 3 * 2 ** min(bits, 8)))
    if photometric == 6:
        tags[530] = (1, 1)
    return samples, photometric, tags


def expected(samples, bits, photometric, tags):
    """RGB (H, W, 3) of samples, computed from the definitions."""
    top = 65535 if bits == 32 else 2**bits - 1
    values = samples.astype(np.float64)
    colours = values * 255 / top
    extra = tags.get(338, (2,) if photometric == 2 and samples.shape[2] == 4 else ())
    if photometric == 3:
        rgb = np.array(tags[320]).reshape(3, -1)[:, samples[..., 0]].transpose(1, 2, 0) / 257
    elif photometric in (0, 1):
        rgb = np.repeat(colours[..., :1] if photometric else 255 - colours[..., :1], 3, axis=2)
    elif photometric == 5:
        rgb = (255 - colours[..., :3]) * (255 - colours[..., 3:4]) / 255
    elif photometric == 6:
        y, b, r = colours[..., 0], colours[..., 1] - 128, colours[..., 2] - 128
        rgb = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], axis=2).clip(0, 255)
    else:
        rgb = colours[..., :3]
    if 1 in extra or 2 in extra:
        alpha = colours[..., -1:] if len(extra) == 1 else colours[..., 3:4]
        rgb = rgb + 255 - alpha if extra[0] == 1 else rgb * alpha / 255 + 255 - alpha
    return rgb


def tolerance(name, bits):
    if "premultiplied" in name or name == "YCbCr":
        return 4
    return 2 if "alpha" in name or "unsaid" in name or (name, bits) == ("CMYK", 16) else 1


def write(tmp_path, *args, **options):
    path = tmp_path / "image.tif"
    path.write_bytes(encode_tiff(*args, **options))
    return path


def read_or_refuse(path):
    try:
        return read_image(path), ""
    except ImageError as error:
        return None, str(error)


BITS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32)


@pytest.mark.parametrize("compression", [1, 8, 32773])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_read_right_or_refused_by_its_name(tmp_path, name, planar, order, compression):
    for bits, sample_format in itertools.product(BITS, (UINT, INT, FLOAT)):
        if (sample_format == FLOAT and bits != 32) or (sample_format == INT and bits < 8):
            continue
        samples, photometric, tags = draw(name, bits, sample_format)
        path = write(
            tmp_path, samples, bits, photometric, planar=planar, compression=compression, order=order, rows=7, tags=tags
        )
        rgb, refusal = read_or_refuse(path)
        if rgb is None:
            assert f"is a TIFF of a kind that is not read: {bits}-bit" in refusal, (bits, sample_format)
            must = sample_format == UINT and not planar and bits in READ.get(name, ())
            assert not must or order == ">", (bits, sample_format, refusal)
        else:
            wrong = np.abs(rgb - expected(samples, bits, photometric, tags)).max()
            assert wrong <= tolerance(name, bits), (bits, sample_format, wrong)


def test_what_is_read_in_big_endian_and_in_planes(tmp_path):
    for name, bits, planar in [("RGB", 8, True), ("RGB, alpha", 8, True), ("CMYK", 8, True), ("grey", 16, False),
                               ("RGB", 16, False), ("CMYK", 16, False), ("YCbCr", 8, False)]:  # fmt: skip
        samples, photometric, tags = draw(name, bits)
        path = write(tmp_path, samples, bits, photometric, planar=planar, order=">", tags=tags)
        wrong = np.abs(read_image(path) - expected(samples, bits, photometric, tags)).max()
        assert wrong <= tolerance(name, bits), name


UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "layout",
    [{}, {"rows": 6}, {"tile": 16}, {"big": True}, {"compression": 8}, {"compression": 8, "tile": 16},
     {"compression": 8, "predictor": True}, {"compression": 32773, "rows": 3}, {"compression": 8, "big": True}],
    ids=str,
)  # fmt: skip
def test_orientations_and_layouts(tmp_path, layout, orientation):
    for name, bits in [("grey", 8), ("grey", 12), ("grey", 16), ("white is zero", 16), ("palette", 8), ("RGB", 8),
                       ("RGB, alpha", 8), ("CMYK", 8), ("RGB", 16)]:  # fmt: skip
        if bits == 12 and layout.get("predictor"):
            continue
        samples, photometric, tags = draw(name, bits)
        stored = write(tmp_path, samples, bits, photometric, tags={**tags, 274: (orientation,)}, **layout)
        upright = UPRIGHT[orientation](expected(samples, bits, photometric, tags))
        with Image.open(stored) as lazy:
            for rgb in (read_image(stored), read_image(lazy)):
                assert rgb.shape == upright.shape, name
                assert np.abs(rgb - upright).max() <= tolerance(name, bits), name


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_reversed_bits(tmp_path, bits):
    samples, photometric, tags = draw("grey", bits)
    table = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    content = encode_tiff(samples, bits, photometric, tags={**tags, 266: (2,)})
    n_bytes = HEIGHT * -(-WIDTH * bits // 8)
    path = tmp_path / "image.tif"
    path.write_bytes(content[:8] + content[8 : 8 + n_bytes].translate(table) + content[8 + n_bytes :])
    assert np.abs(read_image(path) - expected(samples, bits, photometric, tags)).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "shape", "photometric"),
    [("uint8", (20, 33), "minisblack"), ("uint16", (20, 33), "minisblack"), ("uint8", (20, 33), "miniswhite"),
     ("uint16", (20, 33), "miniswhite"), ("uint8", (20, 33, 3), "rgb"), ("uint8", (3, 20, 33), "rgb")],
)  # fmt: skip
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 5}, {"tile": (16, 16)}, {"bigtiff": True}], ids=str)
def test_another_writer_and_reader_agree(tmp_path, dtype, shape, photometric, layout):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    for compression, order in itertools.product((None, "adobe_deflate"), "<>"):
        if order == ">" and ((photometric, dtype) == ("miniswhite", "uint16") or "bigtiff" in layout):
            continue  # refused
        path = tmp_path / "image.tif"
        tifffile.imwrite(
            path, values, photometric=photometric, compression=compression, byteorder=order, metadata=None, **layout
        )
        stored = tifffile.imread(path)
        stored = stored.transpose(1, 2, 0) if stored.shape[0] == 3 else stored
        levels = stored / np.iinfo(dtype).max * 255
        levels = 255 - levels if photometric == "miniswhite" else levels
        assert np.abs(read_image(path) - (levels if levels.ndim == 3 else levels[..., None])).max() <= 1


def test_the_other_reader_agrees_on_the_files_written_here(tmp_path):
    for name, bits, options in [("grey", 16, {"big": True, "order": ">"}), ("RGB", 8, {"planar": True, "rows": 7}),
                                ("RGB", 16, {"tile": 16, "compression": 8, "order": ">"})]:  # fmt: skip
        samples, photometric, tags = draw(name, bits)
        stored = tifffile.imread(write(tmp_path, samples, bits, photometric, tags=tags, **options))
        stored = stored.transpose(1, 2, 0) if options.get("planar") else stored
        assert np.array_equal(stored.reshape(samples.shape), samples)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group3", "group4", "zstd", "tiff_adobe_deflate", "webp"])
def test_compressions(tmp_path, compression):
    from PIL import features

    if not features.check("libtiff"):
        pytest.skip("this Pillow has no libtiff")
    smooth = np.add.outer(np.arange(64) * 2, np.arange(48)).astype(np.uint8)
    image = Image.fromarray(np.dstack([smooth, smooth[::-1], smooth]))
    image = image.convert("1") if "group" in compression else image
    try:
        image.save(tmp_path / "image.tif", compression=compression)
    except OSError:
        pytest.skip(f"this libtiff has no {compression}")
    loss = 12 if compression in {"jpeg", "webp"} else 0
    assert np.abs(read_image(tmp_path / "image.tif").astype(int) - np.asarray(image.convert("RGB"))).max() <= loss


def test_twelve_bits_have_their_own_full_range(tmp_path):
    samples = np.array([[0, 8, 2048, 4095]], np.uint16)[..., None]
    path = write(tmp_path, samples, 12, 1)
    photo = read_photo(path)
    assert photo.rgb[0, :, 0].tolist() == [0, 0, 128, 255]
    assert (photo.bits, photo.highest) == (12, 4095)
    assert read_mask(path).tolist() == [[False, False, True, True]]
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert read_photo(image).bits == 12


@pytest.mark.parametrize(
    ("name", "bits", "options", "words"),
    [
        ("grey, alpha", 16, {}, "16-bit grey with alpha, raw"),
        ("grey", 10, {"compression": 8}, "10-bit grey, tiff_adobe_deflate"),
        ("RGB", 16, {"planar": True}, "16-bit RGB in separate planes, raw"),
        ("Lab", 8, {}, "8-bit Lab, raw"),
        ("mask", 1, {}, "1-bit transparency mask, raw"),
        ("filter array", 12, {}, "12-bit colour filter array, raw"),
        ("RGB, alpha and more", 16, {}, "16-bit RGB with 2 more samples, raw"),
    ],
)
def test_what_is_refused_is_named(tmp_path, name, bits, options, words):
    samples, photometric, tags = draw(name, bits)
    path = write(tmp_path, samples, bits, photometric, tags=tags, **options)
    message = f"is a TIFF of a kind that is not read: {words}; save it as grey or RGB with 8 or 16 bits"
    with pytest.raises(ImageError, match=re.escape(message)):
        read_image(path)


def test_big_tiffs_of_big_endian_order_are_named(tmp_path):
    samples, photometric, tags = draw("RGB", 8)
    with pytest.raises(ImageError, match="is a BigTIFF in big-endian byte order"):
        read_image(write(tmp_path, samples, 8, photometric, tags=tags, big=True, order=">"))


def test_unequal_bits_and_unknown_compressions_are_named(tmp_path):
    samples, photometric, tags = draw("RGB", 8)
    for changed, words in [({258: (5, 6, 5)}, "5/6-bit RGB"), ({259: (34712,)}, "8-bit RGB, compression 34712"),
                           ({530: (2, 2), 262: (6,)}, "8-bit YCbCr, subsampled 2 x 2, raw")]:  # fmt: skip
        path = write(tmp_path, samples, 8, photometric, tags={**tags, **changed})
        with pytest.raises(ImageError, match=re.escape(words)):
            read_image(path)


@pytest.mark.parametrize("compression", [1, 8, 32773])
@pytest.mark.parametrize(
    "layout",
    [
        {"rows": 4, "tags": {257: (16_000_000,)}},
        {"rows": 4, "tags": {257: (60,)}},
        {"tile": 16, "tags": {256: (200,)}},
        {"rows": 20, "tags": {257: (16_000_000,), 278: (2**32 - 1,)}},
        {"tile": 16, "tags": {322: (65536,), 323: (65536,)}},
        {"planar": True, "tags": {273: (8,), 279: (660,)}},
    ],
    ids=["16 million rows", "missing strips", "missing tiles", "one strip of all rows", "huge tiles", "missing planes"],
)
def test_files_without_all_their_pixels_are_refused_before_they_are_decoded(tmp_path, layout, compression):
    samples, photometric, _ = draw("RGB", 8)
    path = write(tmp_path, samples, 8, photometric, compression=compression, **layout)
    with pytest.raises(ImageError, match=r"damaged or cut short|more than the 1,073,741,824"):
        read_image(path)


@pytest.mark.parametrize("mark", [b"II\0*", b"MM*\0"])
def test_a_wrong_mark_that_pillow_takes_changes_nothing(tmp_path, mark):
    samples, photometric, _ = draw("RGB", 8)
    order = "<" if mark.startswith(b"I") else ">"
    for changed, message in (
        ({257: (16_000_000,), 278: (4,)}, "damaged or cut short"),
        ({258: (5, 6, 5)}, "5/6-bit RGB"),
    ):
        path = write(tmp_path, samples, 8, photometric, order=order, tags=changed)
        path.write_bytes(mark + path.read_bytes()[4:])
        with pytest.raises(ImageError, match=message):
            read_image(path)


def test_strips_beyond_the_end_or_too_short_are_refused(tmp_path):
    samples, photometric, _ = draw("grey", 8)
    for tags, words in [({273: (8, 10**6, 8), 279: (231, 231, 198)}, "lacks 1 strips or tiles, which lie beyond"),
                        ({279: (231, 5, 198)}, "lacks bytes of 1 strips or tiles"),
                        ({279: (231,)}, "lacks the lengths of 2 strips")]:  # fmt: skip
        with pytest.raises(ImageError, match=words):
            read_image(write(tmp_path, samples, 8, photometric, rows=7, tags=tags))


@pytest.mark.skipif(_libtiff() is None, reason="libtiff is inside Pillow's own module")
def test_libtiff_writes_no_lines_of_its_own(tmp_path, capfd):
    samples, photometric, tags = draw("RGB", 8)
    path = write(tmp_path, samples, 8, photometric, compression=8, rows=5, tags=tags)
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged or cut short"):
        read_image(path)
    captured = capfd.readouterr()
    assert captured.err == ""
    # and Pillow alone has its lines again
    with Image.open(path) as image, pytest.raises(OSError, match="decoder error"):
        image.load()
    assert "ZIPDecode" in capfd.readouterr().err


def test_a_directory_of_nonsense_is_an_image_error(tmp_path):
    path = tmp_path / "image.tif"
    for content in (
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        b"MM\0+" + struct.pack(">HHQ", 8, 0, 2**63),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"image\.tif: is "):
            read_image(path)
