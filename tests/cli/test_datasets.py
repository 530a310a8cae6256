from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flawmap.cli.app import app
from flawmap.datasets import open_dataset

FIT = ["--backbone", "resnet10t", "--random-weights", "--resize", "64", "--n-features", "60"]
SIZE = (64, 64)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def parts(tmp_path, good_images, scratched):
    """One class in MVTec AD layout."""
    root = tmp_path / "mvtec" / "bolt"
    for i in range(8):
        save(root / f"train/good/{i:03}.png", good_images[i])
    for i in range(8, 11):
        save(root / f"test/good/{i:03}.png", good_images[i])
    save(root / "test/scratch/000.png", scratched)
    mask = np.zeros(SIZE, np.uint8)
    mask[24:40, 38:43] = 255
    save(root / "ground_truth/scratch/000_mask.png", mask)
    return root


@pytest.fixture
def campus(tmp_path, good_images, scratched):
    """A scene of ShanghaiTech Campus: one training video of 12 frames, one test clip of 6."""
    root = tmp_path / "shanghaitech"
    video = root / "training" / "videos" / "01_001.avi"
    video.parent.mkdir(parents=True)
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25, SIZE)
    for image in good_images:
        writer.write(image[..., ::-1])
    writer.release()
    masks = np.zeros((6, *SIZE), np.uint8)
    for i in range(6):
        save(root / f"testing/frames/01_0014/{i:03}.jpg", scratched if i in (2, 3) else good_images[i])
    masks[2:4, 24:40, 38:43] = 1
    for folder, content in (("test_pixel_mask", masks), ("test_frame_mask", masks.any(axis=(1, 2)))):
        (root / "testing" / folder).mkdir()
        np.save(root / "testing" / folder / "01_0014.npy", content)
    return root


def test_list_names_every_data_set_with_licence_and_origin():
    listed = json.loads(run("datasets", "list", "--json").stdout)["datasets"]
    names = [row["name"] for row in listed]
    assert names == ["mvtec_ad", "mvtec_loco", "visa", "btad", "mtd", "elpv", "stc", "ucsd", "csv"]
    assert all(row["licence"] and row["origin"] and row["what"] and row["paper"] for row in listed)
    assert len(listed[0]["classes"]) == 15
    table = run("datasets", "list").stdout
    assert all(name in table for name in names)
    assert "CC BY-NC-SA 4.0" in table


def test_check_exits_by_what_it_finds(parts):
    report = json.loads(run("datasets", "check", "mvtec_ad", parts, "--json", "-q").stdout)
    assert report["is_whole"] is True
    assert report["classes"][0]["found"] == {
        "train": 8,
        "test": 4,
        "good": 3,
        "anomalous": 1,
        "train_groups": 0,
        "test_groups": 0,
    }
    assert "Nothing is broken" in run("datasets", "check", "mvtec_ad", parts).stderr
    (parts / "ground_truth/scratch/000_mask.png").unlink()
    (parts / "train/good/000.png").write_bytes(b"x")
    broken = run("datasets", "check", "mvtec_ad", parts, "-q", code=1)
    said = broken.stderr.replace("\n", "")
    assert f"{parts}/test/scratch/000.png: is scratch, but has no mask" in said
    assert f"{parts}/train/good/000.png: is not an image" in said
    report = json.loads(run("datasets", "check", "mvtec_ad", parts, "--json", "-q", "--names-only", code=1).stdout)
    assert [problem["path"] for problem in report["classes"][0]["problems"]] == [str(parts / "test/scratch/000.png")]


def test_check_compares_with_the_published_counts(parts):
    screw = parts.rename(parts.with_name("screw"))
    said = run("datasets", "check", "mvtec_ad", screw, "--names-only", code=1)
    assert "8 of 320" in said.stdout
    assert "8 training images, published are 320" in said.stderr.replace("\n", " ")


def test_check_refuses_what_it_does_not_know(tmp_path):
    assert "there are mvtec_ad, mvtec_loco, visa, btad" in run("datasets", "check", "cifar", tmp_path, code=1).stderr
    assert "no such file or folder" in run("datasets", "check", "btad", tmp_path / "none", code=1).stderr
    assert run("datasets", "check", "btad", tmp_path, "-q", code=1).stderr


def test_make_rd_writes_a_tree_that_can_be_checked_and_learnt(parts, tmp_path):
    out = tmp_path / "rd"
    made = json.loads(run("datasets", "make-rd", parts.parent, "-o", out, "--seed", "1", "--json", "-q").stdout)
    assert made == {"output": str(out), "seed": 1, "n_images": {"bolt": 12}}
    assert json.loads(run("datasets", "check", "mvtec_ad", out, "--json", "-q").stdout)["is_whole"]
    assert "not empty" in run("datasets", "make-rd", parts, "-o", out, code=1).stderr
    assert open_dataset(out / "bolt").test[0].path.is_relative_to(out)
    assert "Wrote 12 images of 1 class, seed 0" in run("datasets", "make-rd", parts, "-o", tmp_path / "b").stderr


def test_a_scene_is_learnt_from_its_video_and_evaluated_on_its_clips(campus, tmp_path):
    model = tmp_path / "scene.flawmap"
    scene = f"stc:{campus}/01"
    fitted = json.loads(run("fit", scene, "-o", model, *FIT, "--json", "-q", "--cache-mb", "0").stdout)
    assert (fitted["n_images"], fitted["skipped"]) == (12, [])
    result = json.loads(run("evaluate", model, scene, "--json", "-q").stdout)
    assert result["n_images"] == 6
    assert result["image_auroc"] == 1
    assert result["pixel_auroc"] > 0.9
    fewer = json.loads(run("fit", scene, "-o", model, *FIT, "--stride", "3", "--json", "-q").stdout)
    assert fewer["n_images"] == 4
    assert json.loads(run("evaluate", model, scene, "--stride", "2", "--json", "-q").stdout)["n_images"] == 3


def test_scores_over_time_are_drawn_clip_by_clip(campus, parts, tmp_path):
    pytest.importorskip("matplotlib")
    model, picture = tmp_path / "scene.flawmap", tmp_path / "clips.png"
    run("fit", f"stc:{campus}/01", "-o", model, *FIT, "-q")
    drawn = json.loads(run("datasets", "timeline", model, f"stc:{campus}/01", "-o", picture, "--json", "-q").stdout)
    clip = drawn["clips"]["01_0014"]
    assert clip["frames"] == list(range(6))
    assert clip["anomalous"] == [False, False, True, True, False, False]
    assert min(clip["scores"][2:4]) > max(clip["scores"][:2] + clip["scores"][4:])
    with Image.open(picture) as image:
        assert image.width > 500
    assert "for videos" in run("datasets", "timeline", model, parts, "-o", picture, "-q", code=1).stderr
    (campus / "testing/frames/01_0014/004.jpg").write_bytes(b"x")
    skipping = run(
        "datasets", "timeline", model, f"stc:{campus}/01", "-o", picture, "--json", "-q", "--skip-bad"
    ).stdout
    assert json.loads(skipping)["clips"]["01_0014"]["frames"] == [0, 1, 2, 3, 5]
    strided = run("datasets", "timeline", model, f"stc:{campus}/01", "-o", picture, "--json", "-q", "--stride", "3")
    clip = json.loads(strided.stdout)["clips"]["01_0014"]
    assert (clip["frames"], clip["anomalous"]) == ([0, 3], [False, True])
    odd = run("datasets", "timeline", model, f"stc:{campus}/01", "-o", tmp_path / "a.doc", "-q", "--skip-bad", code=1)
    assert "ending in .png" in odd.stderr.replace("\n", " ")


def test_a_timeline_that_cannot_be_drawn_is_refused_before_anything_is_read(tmp_path):
    pytest.importorskip("matplotlib")

    def refused(output, *options, code=1):
        said = run("datasets", "timeline", tmp_path / "none", "stc:none/01", "-o", output, *options, code=code).stderr
        return said.replace("\n", " ")

    assert "ending in .png" in refused(tmp_path / "a.doc")
    assert "no such folder" in refused(tmp_path / "none" / "a.png")
    assert "is a folder" in refused(tmp_path)
    assert "stride" in refused(tmp_path / "a.png", "--stride", "0", code=2)
    assert str(tmp_path / "none") in refused(tmp_path / "a.png")
    if Path("/proc/self").is_dir():
        assert "/proc: cannot be written to" in refused("/proc/a.png")


def test_a_manifest_is_learnt_and_evaluated(parts, tmp_path):
    lines = ["path,label,mask,split,group"]
    lines += [f"mvtec/bolt/train/good/{i:03}.png,good,,train," for i in range(8)]
    lines += [f"mvtec/bolt/test/good/{i:03}.png,good,,test," for i in range(8, 11)]
    lines += ["mvtec/bolt/test/scratch/000.png,scratch,mvtec/bolt/ground_truth/scratch/000_mask.png,test,"]
    table = tmp_path / "parts.csv"
    table.write_text("\n".join(lines))
    run("fit", table, "-o", tmp_path / "a.flawmap", *FIT, "-q")
    run("fit", parts, "-o", tmp_path / "b.flawmap", *FIT, "-q")
    by_table = json.loads(run("evaluate", tmp_path / "a.flawmap", table, "--json", "-q").stdout)
    by_folder = json.loads(run("evaluate", tmp_path / "b.flawmap", parts, "--json", "-q").stdout)
    assert by_table == by_folder
    table.write_text("\n".join([*lines, "none.png,good,,test,"]))
    assert "line 14" in run("evaluate", tmp_path / "a.flawmap", table, "-q", code=1).stderr.replace("\n", " ")


def test_a_whole_root_is_no_training_set(parts, tmp_path, good_images):
    save(parts.parent / "nut/train/good/000.png", good_images[0])
    save(parts.parent / "nut/test/good/000.png", good_images[0])
    said = run("fit", parts.parent, "-o", tmp_path / "m.flawmap", *FIT, "-q", code=1).stderr.replace("\n", " ")
    assert "several classes (bolt, nut)" in said


def test_help():
    assert "datasets" in run("--help").stdout
    for command in ("list", "check", "make-rd", "timeline"):
        assert "--json" in run("datasets", command, "--help").stdout
