"""What a fit says of its good images, and what later images are compared with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flawmap import Inspector, PaDiM, export_model, load
from flawmap.cli.app import app
from flawmap.decision import GoodPhotos, has_proportions
from flawmap.detectors.document import MAX_SIZES, ImagesRecord
from flawmap.errors import ImageError, ParameterError

SMALL = {"backbone": "efficientnet_lite0", "layers": ["blocks.1"], "resize": 32, "n_features": 4, "align": "none"}


def photos(count=6, size=(48, 64), high=256, dtype=np.uint8, seed=0):
    return list(np.random.default_rng(seed).integers(0, high, (count, *size), dtype))


def write(folder, images):
    folder.mkdir(exist_ok=True, parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("deep") / "good", photos(high=4096, dtype=np.uint16))
    return PaDiM(**SMALL, bits=12).fit(folder)


def test_a_fit_notes_bits_that_are_not_used():
    for high, bits in ((256, 8), (257, 9), (512, 9), (4096, 12), (32768, 15)):
        images = photos(high=high, dtype=np.uint16)
        images[0][0, 0] = high - 1
        model = PaDiM(**SMALL, calibrate=None).fit(images)
        remark = f"the 16-bit images use 0..{2**bits - 1} of 65535: --bits {bits} scales them to the full range"
        assert model.remarks_ == {remark: tuple(f"image {i}" for i in range(1, 7))}
    full = photos(high=65536, dtype=np.uint16)
    for images in (photos(), full, [*photos(5, high=300, dtype=np.uint16), full[0]]):
        assert PaDiM(**SMALL, calibrate=None).fit(images).remarks_ == {}


def test_bits_scale_what_is_learnt_predicted_and_exported(twelve_bits, tmp_path):
    model = twelve_bits
    assert model.remarks_ == {}
    scaled = [np.floor(image * 255.0 / 4095 + 0.5).astype(np.uint8) for image in photos(high=4096, dtype=np.uint16)]
    same = PaDiM(**SMALL).fit(scaled)
    assert np.array_equal(model.decision_.scores, same.decision_.scores)
    new = photos(1, high=4096, dtype=np.uint16, seed=1)[0]
    expected = same.predict(np.floor(new * 255.0 / 4095 + 0.5).astype(np.uint8)).pred_score
    model.save(tmp_path / "part.flawmap")
    loaded = load(tmp_path / "part.flawmap")
    inspector = Inspector(export_model(loaded, tmp_path / "export"))
    assert loaded.bits == inspector.preprocessing.bits == 12
    path = write(tmp_path / "new", [new]) / "00.png"
    for source in (new, path):
        assert loaded.predict(source).pred_score == pytest.approx(expected, rel=1e-5)
        assert inspector.predict(source).pred_score == pytest.approx(expected, rel=1e-4)
    for detector in (loaded, inspector):
        with pytest.raises(ImageError, match="has values from 0 to 4096, expected 0 to 4095; 12 bits are too few"):
            detector.predict(np.array([[0, 4096]], np.uint16))


@pytest.mark.parametrize("bits", [7, 17, 12.5, True, "12"])
def test_other_bits_are_refused(bits):
    with pytest.raises(ParameterError, match="bits must be a whole number from 8 to 16"):
        PaDiM(bits=bits)


def test_another_depth_is_remarked_on(twelve_bits, tmp_path):
    model = twelve_bits
    inspector = Inspector(export_model(model, tmp_path / "export"))
    remark = "its samples have 8 bits, those of the good images 16"
    for detector in (model, inspector):
        assert detector.predict(photos(1, seed=9)[0]).remarks == (remark,)
        assert detector.predict(photos(1, dtype=np.uint16, high=4096, seed=9)[0]).remarks == ()
    mixed = PaDiM(**SMALL).fit([*photos(5), *photos(1, dtype=np.uint16, high=65536, seed=2)])
    assert mixed.remarks_ == {"its samples have 16 bits, those of most good images 8": ("image 6",)}
    assert mixed.good_photos_.bits is None
    assert mixed.predict(photos(1, seed=9)[0]).remarks == ()


def test_other_proportions_are_remarked_on(tmp_path):
    good = [*photos(4), *photos(2, (60, 80), seed=1)]
    model = PaDiM(**SMALL).fit(good)
    assert model.remarks_ == {}
    model.save(tmp_path / "part.flawmap")
    model = load(tmp_path / "part.flawmap")
    assert model.good_photos_ == GoodPhotos(((48, 64), (60, 80)), 8, smallest=(48, 64))
    remark = (
        "it is squashed from 64 x 48 (height x width), the good images were from 48 x 64 or 60 x 80; crop it alike, or "
        "fit with --aspect letterbox"
    )
    for detector in (model, Inspector(export_model(model, tmp_path / "export"))):
        assert detector.predict(photos(1, (64, 48))[0]).remarks == (remark,)
        for alike in ((96, 128), (48, 64), (49, 64), (47, 64)):
            own = remark.replace("64 x 48", f"{alike[0]} x {alike[1]}")
            expected = () if has_proportions(alike, (48, 64)) else (own,)
            assert detector.predict(photos(1, alike, seed=9)[0]).remarks == expected
    letterbox = PaDiM(**SMALL, aspect="letterbox").fit([*good, *photos(1, (64, 48))])
    assert letterbox.remarks_ == {}
    assert letterbox.predict(photos(1, (30, 90))[0]).remarks == ()
    assert letterbox.good_photos_ == GoodPhotos((), 8, smallest=(48, 48))


def test_images_far_smaller_than_the_good_ones_are_remarked_on(tmp_path):
    model = PaDiM(**SMALL).fit([*photos(4), *photos(2, (60, 80), seed=1)])
    for detector in (model, Inspector(export_model(model, tmp_path / "export"))):
        for size in ((23, 31), (1, 1), (2, 3)):
            remarks = detector.predict(photos(1, size, seed=9)[0]).remarks
            own = f"a side of its {size[0]} x {size[1]} pixels is less than half of the smallest good image's 48 x 64"
            assert own in remarks
            assert ("all its pixels have one colour" in remarks) == (size == (1, 1))
        assert detector.predict(photos(1, (24, 32), seed=9)[0]).remarks == ()
    model.good_photos_ = None  # as of a model of an older version
    remark = "a side of its 7 x 40 pixels is less than a quarter of the model's 32 x 32"
    assert model.predict(photos(1, (7, 40))[0]).remarks == (remark,)
    assert model.predict(photos(1, (8, 40))[0]).remarks == ()


def test_a_fit_notes_images_that_are_enlarged():
    remark = "it is smaller than 32 x 32 (height x width), to which it is enlarged: a smaller --resize will do"
    model = PaDiM(**SMALL, aspect="letterbox").fit([*photos(4), *photos(1, (16, 31)), *photos(1, (16, 32))])
    assert model.remarks_ == {remark: ("image 5",)}
    model = PaDiM(**SMALL, calibrate=None).fit(photos(3, (31, 40)))
    assert model.remarks_ == {remark: ("image 1", "image 2", "image 3")}


def test_good_images_of_mixed_proportions_are_named():
    model = PaDiM(**SMALL).fit([*photos(2, (64, 48)), *photos(4), *photos(1, (90, 64))])
    remark = (
        "good images of 48 x 64 and 64 x 48 (height x width) are squashed into one shape; crop them alike, or use "
        "--aspect letterbox"
    )
    assert model.remarks_ == {remark: ("image 1", "image 2", "image 7")}


def test_proportions_within_two_percent_are_alike():
    assert has_proportions((100, 200), (102, 200))
    assert has_proportions((102, 200), (100, 200))
    assert not has_proportions((100, 200), (103, 200))
    assert not has_proportions((200, 100), (100, 200))


def test_too_many_sizes_to_keep_are_not_compared_with():
    sizes = tuple((100 + i, 200) for i in range(MAX_SIZES))
    assert ImagesRecord(digests=(), sizes=sizes, bits=8).photos("squash") == GoodPhotos((), 8)
    assert ImagesRecord(digests=(), sizes=sizes[1:]).photos("squash") == GoodPhotos(
        sizes[1:], None, smallest=(101, 200)
    )


def test_remarks_of_images_reach_the_fit():
    alpha = np.zeros((48, 64), np.uint8)
    good = [np.dstack([image] * 3 + [alpha + 255]) for image in photos(5)]
    good += [np.dstack([image] * 3 + [alpha]) for image in photos(2, seed=1)]
    model = PaDiM(**SMALL).fit(good)
    assert model.remarks_ == {"its transparency hides all of it and was ignored": ("image 6", "image 7")}


def test_the_commands_print_remarks_and_put_them_into_json(tmp_path):
    good = write(tmp_path / "data/train/good", photos(6, high=4096, dtype=np.uint16))
    write(tmp_path / "data/test/good", photos(2, high=4096, dtype=np.uint16, seed=3))
    write(tmp_path / "data/test/bent", photos(2, (64, 48), seed=4))
    options = ["--backbone", "efficientnet_lite0", "--layers", "blocks.1", "--resize", "32", "--n-features", "4"]
    model = str(tmp_path / "part.flawmap")
    run = CliRunner().invoke
    note = "the 16-bit images use 0..4095 of 65535: --bits 12 scales them to the full range"
    shown = run(app, ["fit", str(good), "-o", model, *options])
    assert shown.exit_code == 0, shown.stderr
    assert f"note: {good}/00.png and 5 more: {note}" in shown.stderr
    summary = run(app, ["fit", str(good), "-o", model, *options, "--json", "--quiet"])
    assert json.loads(summary.stdout)["remarks"] == {note: [str(good / f"{i:02}.png") for i in range(6)]}
    assert run(app, ["fit", str(good), "-o", model, *options, "--bits", "12"]).stderr.count("note: ") <= 2
    info = json.loads(run(app, ["info", model, "--json"]).stdout)
    assert (info["bits"], info["photo_bits"], info["photo_sizes"]) == (12, 16, [[48, 64]])
    remarks = {"its samples have 8 bits, those of the good images 16", "it is squashed from 64 x 48"}
    shown = run(app, ["evaluate", model, str(tmp_path / "data")])
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(run(app, ["evaluate", model, str(tmp_path / "data"), "--json"]).stdout)["remarks"]
    assert len(found) == 2
    for remark in remarks:
        assert f"bent/00.png and 1 more: {remark}" in shown.stderr
        assert [str(tmp_path / f"data/test/bent/{i:02}.png") for i in range(2)] in [
            names for text, names in found.items() if text.startswith(remark)
        ]
