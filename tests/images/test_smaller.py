"""Images that are read no larger than is needed show the same as whole ones, in the same place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flawmap import Inspector, PaDiM, load
from flawmap.errors import ImageError, ParameterError
from flawmap.export import export_model
from flawmap.images import Preprocessing
from flawmap.images.photo import Canvas, Reduction
from flawmap.images.read import use_photo
from flawmap.images.stream import load_image

SMALL = {"backbone": "resnet18", "pretrained": False, "n_features": 8, "resize": 64, "regularization": 0.01}


def photo(height, width, seed=0):
    """Smooth structure, and a bright square that says how the photo lies."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (height // 32 + 2, width // 32 + 2, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    image[height // 8 : height // 4, width // 8 : width // 4] = 255
    return image


def both(source, **options):
    whole = load_image(1, source, Preprocessing.of(**options))
    reduced = load_image(1, source, Preprocessing.of(**options, reading="reduced"))
    assert replace(reduced, pixels=whole.pixels).placement == whole.placement
    return whole.pixels.astype(int), reduced.pixels.astype(int)


@pytest.mark.parametrize(
    ("size", "canvas", "factor"),
    [
        ((300, 400), Canvas((25, 25), "squash"), 6),
        ((400, 300), Canvas((25, 25), "squash"), 6),
        ((51, 51), Canvas((25, 25), "squash"), 1),
        ((103, 400), Canvas((26, 25), "squash"), 1),
        ((104, 400), Canvas((26, 25), "squash"), 2),
        ((104, 400), Canvas((6, 25), "squash"), 8),
        ((100, 400), Canvas((25, 25), "letterbox"), 8),
        ((10, 10), Canvas((25, 25), "squash"), 1),
        ((300, 400), None, 1),
    ],
)
def test_two_pixels_are_left_for_each_of_the_canvas(size, canvas, factor):
    found = []
    use_photo(np.zeros(size, np.uint8), lambda _, reduction: found.append(reduction), canvas=canvas)
    assert found == [Reduction(size, factor=factor)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(600, 800), (613, 807)])
def test_a_jpeg_that_is_decoded_smaller_shows_the_same(tmp_path, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo(*size)).save(tmp_path / "photo.jpg", quality=95, subsampling=0, exif=exif)
    whole, reduced = both(tmp_path / "photo.jpg", resize=64)
    assert np.abs(whole - reduced).max() <= 12  # at the square's edges
    assert np.abs(whole - reduced).mean() < 0.5
    letterbox = both(tmp_path / "photo.jpg", resize=64, aspect="letterbox", crop=48)
    assert np.abs(letterbox[0] - letterbox[1]).mean() < 0.5


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})])
def test_other_jpegs_are_decoded_smaller_too(tmp_path, mode, options):
    Image.fromarray(photo(600, 800)).convert(mode).save(tmp_path / "photo.jpg", quality=95, **options)
    shapes = []
    use_photo(tmp_path / "photo.jpg", lambda image, **_: shapes.append(image.size), canvas=Canvas((64, 64), "squash"))
    assert shapes == [(200, 150)]
    whole, reduced = both(tmp_path / "photo.jpg", resize=64)
    assert np.abs(whole - reduced).mean() < 0.7


def test_a_file_without_loss_and_its_pixels_are_read_alike(tmp_path):
    rgb = photo(613, 807)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    preprocessing = Preprocessing.of(64, reading="reduced")
    from_file = load_image(1, tmp_path / "rgb.png", preprocessing).pixels
    for source in (rgb, Image.fromarray(rgb), np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])):
        assert np.array_equal(load_image(1, source, preprocessing).pixels, from_file)
    grey = rgb[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    wanted = load_image(1, grey, preprocessing).pixels
    for source in (tmp_path / "grey.png", tmp_path / "deep.png", grey[..., None], grey.astype(np.uint16) * 257):
        assert np.array_equal(load_image(1, source, preprocessing).pixels, wanted)
    whole, reduced = both(rgb, resize=64)
    assert np.abs(whole - reduced).mean() < 0.5


def test_a_cut_jpeg_is_refused_however_it_is_read(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(photo(600, 800)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-4000])
    for reading in ("whole", "reduced"):
        with pytest.raises(ImageError, match=r"cut\.jpg.*damaged"):
            load_image(1, path, Preprocessing.of(64, reading=reading))


def test_a_model_reads_as_it_was_fitted(tmp_path, good_images):
    paths = []
    for i, image in enumerate(good_images[:6]):
        paths.append(tmp_path / f"{i}.jpg")
        Image.fromarray(image).resize((403, 301)).save(paths[-1], quality=90)
    new = tmp_path / "new.jpg"
    Image.fromarray(good_images[7]).resize((403, 301)).save(new, quality=90)
    model = PaDiM(**SMALL).fit(paths)
    assert model.preprocessing.reading == "reduced"
    model.save(tmp_path / "m.flawmap")
    again = load(tmp_path / "m.flawmap")
    wanted = model.predict(new)
    assert again.preprocessing.reading == "reduced"
    assert again.predict(new).pred_score == wanted.pred_score
    assert wanted.placement.image_size == (301, 403)
    export_model(model, tmp_path / "out")
    assert Inspector(tmp_path / "out").predict(new).pred_score == pytest.approx(wanted.pred_score, rel=1e-3)
    whole = PaDiM(**SMALL, reading="whole").fit(paths)
    assert whole.preprocessing.reading == "whole"
    assert whole.predict(new).pred_score != wanted.pred_score
    with pytest.raises(ParameterError, match="reading"):
        PaDiM(reading="half")
