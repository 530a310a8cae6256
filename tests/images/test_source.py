from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flawmap.errors import DatasetError, ImageError, ParameterError, PassedOverWarning
from flawmap.images import ImagePage, Preprocessing, VideoFrame, collect, read_image, stream
from videos import number, write_video

PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Images in two levels, among files that are none."""
    for name in ("b.png", "a.JPG", "deep/c.bmp", "deep/[x].png", ".hidden.png", ".git/d.png", "__MACOSX/e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(path)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    return tmp_path


def names(images):
    return [Path(str(item)).name for item in collect(images, warn=False).items]


def others(images):
    return [path.name for path in collect(images, warn=False).passed_over]


def save_pages(path, greys, **options):
    """A file of flat pages, one for each grey."""
    first, *more = (Image.new("RGB", (8, 6), (grey,) * 3) for grey in greys)
    first.save(path, save_all=True, append_images=more, **options)
    return path


def test_a_folder_is_searched_in_depth_and_in_order(folder):
    assert names(folder) == ["a.JPG", "b.png", "[x].png", "c.bmp"]
    assert names(str(folder)) == names([folder])
    collection = collect(folder, warn=False)
    assert (collection.count, collection.single) == (4, False)
    assert others(folder) == ["notes.txt"]


def test_globs_and_names_that_look_like_globs(folder):
    assert names(f"{folder}/*.png") == ["b.png"]
    assert names(f"{folder}/**/*.png") == ["b.png", "[x].png"]
    assert names(f"{folder}/deep/[x].png") == ["[x].png"]
    assert collect(f"{folder}/deep/[x].png").single
    assert not collect(f"{folder}/*.png").single


def test_single_images_and_batches():
    for one in (PIXELS, PIXELS[..., 0], Image.fromarray(PIXELS)):
        assert collect(one).single
        assert collect(one).count == 1
    batch = collect(np.stack([PIXELS] * 3))
    assert (batch.count, batch.single) == (3, False)
    assert [item.shape for item in batch.items] == [(4, 4, 3)] * 3


def test_a_list_may_mix_everything(folder):
    mixed = [folder / "b.png", PIXELS, Image.fromarray(PIXELS), folder / "deep", np.stack([PIXELS, PIXELS])]
    assert collect(mixed).count == 7
    assert not collect([folder / "b.png"]).single


def test_a_generator_is_not_exhausted_before_it_is_needed():
    pulled = []

    def endless():
        while True:
            pulled.append(1)
            yield PIXELS

    collection = collect(endless())
    assert collection.count is None
    assert pulled == []
    next(iter(collection.items))
    assert len(pulled) == 1


def test_nothing_to_be_found_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"no images in this folder; expected files ending in \.bmp"):
        collect(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(DatasetError, match=r"no images in this folder; 1 file passed over: 1 \.txt; expected files"):
        collect(tmp_path / "notes")
    with pytest.raises(DatasetError, match="no image matches"):
        collect(f"{tmp_path}/*.png")
    with pytest.raises(ImageError, match="no such file or folder"):
        collect(tmp_path / "missing.png")
    assert collect([tmp_path / "missing.png"]).count == 1  # the stream will tell of it, and go on
    with pytest.raises(ParameterError, match="not int"):
        collect(5)
    with pytest.raises(ParameterError, match="got int"):
        collect([5])


def test_a_glob_may_name_an_ending_of_its_own(folder, monkeypatch):
    assert names(f"{folder}/*.txt") == ["notes.txt"]
    assert names(f"{folder}/*") == ["a.JPG", "b.png"]
    assert names(f"{folder}/**/?.*") == ["a.JPG", "b.png", "c.bmp"]
    assert names(f"{folder}/**/d??p/*.bmp") == names(f"{folder}/d*/**/*.bmp") == ["c.bmp"]
    assert names(f"{folder}/**/*.txt") == ["notes.txt"]
    assert names(f"{folder}/**") == names(folder)
    monkeypatch.chdir(folder)
    assert [str(path) for path in collect("**/*.bmp").items] == ["deep/c.bmp"]


def test_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert collect("~/b.png").single
    assert names("~/deep") == ["[x].png", "c.bmp"]
    assert names("~/*.png") == ["b.png"]


def save_run(folder, *, table="predictions.jsonl"):
    """What an earlier run leaves."""
    for name in ("overlays/a.png", "overlays/deep/b.png", "masks/a.png", "own/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name, format="PNG")
    (folder / "maps").mkdir()
    np.save(folder / "maps" / "a.npy", np.zeros(4))
    lines = {
        "predictions.jsonl": '{"path": "a.png", "pred_score": 1.5}\n',
        "predictions.csv": "\ufeffpath,pred_score,pred_label\na.png,1.5,0\n",
    }
    (folder / table).write_text(lines[table], encoding="utf-8")


@pytest.mark.parametrize("table", ["predictions.jsonl", "predictions.csv"])
def test_pictures_of_earlier_runs_are_left_out(tmp_path, table):
    save_run(tmp_path / "run", table=table)
    Image.new("L", (4, 4)).save(tmp_path / "part.png")
    for given in (tmp_path, tmp_path / "**" / "*.png"):
        found = collect(given, warn=False)
        assert [path.name for path in found.items] == ["part.png", "c.png"]
        assert [path.relative_to(tmp_path / "run").as_posix() for path in found.results] == [
            "masks/a.png", "overlays/a.png", "overlays/deep/b.png",
        ]  # fmt: skip
    with pytest.warns(PassedOverWarning) as told:
        collect([tmp_path / "part.png", tmp_path / "run"])
    assert "3 pictures left out: results of an earlier run, such as" in str(told[-1].message)
    assert len(collect(tmp_path / "run" / "overlays").items) == 2  # a folder that is named is meant


def test_a_table_of_another_program_makes_no_run(tmp_path):
    save_run(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"label": 1}\n')
    assert len(collect(tmp_path, warn=False).items) == 4


def test_a_picture_that_names_its_run_is_left_out_of_folders(tmp_path):
    label = PngInfo()
    label.add_text("run", "2026-01-02T03:04:05Z-0a1b2c")
    Image.new("L", (4, 4)).save(tmp_path / "copied.png", pnginfo=label)
    with pytest.raises(DatasetError, match=r"1 picture left out: results of an earlier run.*no other images"):
        collect(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "part.png")
    found = collect(tmp_path, warn=False)
    assert ([path.name for path in found.items], found.results) == (["part.png"], (tmp_path / "copied.png",))
    assert collect(tmp_path / "copied.png").single


def test_a_linked_folder_is_searched(folder):
    (folder / "link").symlink_to(folder / "deep")
    assert names(folder / "link") == ["[x].png", "c.bmp"]


def test_links_to_folders_are_entered_once(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.fromarray(PIXELS).save(other / "far.png")
    (other / "back").symlink_to(folder)  # a loop over two links
    for name, target in {"a_link": "deep", "far": other, "far2": other, "loop": ".", "itself": "itself"}.items():
        (folder / name).symlink_to(target)
    relative = [path.relative_to(folder).as_posix() for path in collect(folder, warn=False).items]
    assert relative == ["a.JPG", "b.png", "deep/[x].png", "deep/c.bmp", "far/far.png"]
    assert list(collect(f"{folder}/**/*", warn=False).items) == list(collect(folder, warn=False).items)
    assert others(f"{folder}/**/*") == others(folder) == ["itself", "notes.txt"]


def test_links_to_files_are_files_of_their_own(folder):
    (folder / "deep" / "again.png").symlink_to(folder / "b.png")
    (folder / "deep" / "gone.png").symlink_to(folder / "nothing.png")
    assert names(folder / "deep") == ["[x].png", "again.png", "c.bmp", "gone.png"]
    with pytest.raises(ImageError, match=r"gone\.png: is a link to .*nothing\.png, where there is nothing; mend"):
        read_image(folder / "deep" / "gone.png")
    with pytest.raises(ImageError, match=r"gone\.png: is a link to"):
        collect(folder / "deep" / "gone.png")


def test_order_goes_by_the_parts_of_the_path(tmp_path):
    for name in ("a/2.png", "a-b/1.png", "a.png", "B.png", "a/10.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for images in (tmp_path, f"{tmp_path}/**/*.png"):
        found = [Path(str(item)).relative_to(tmp_path).as_posix() for item in collect(images).items]
        assert found == ["B.png", "a/10.png", "a/2.png", "a-b/1.png", "a.png"]


def test_impossible_names_are_missing_files(tmp_path):
    for name in ("x" * 5000, "nul\0.png", f"{tmp_path}/a.png/b.png"):
        with pytest.raises(ImageError, match="no such file or folder"):
            collect(name)
    with pytest.raises(ParameterError, match="not bytes"):
        collect(b"a.png")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(folder, monkeypatch):
    scandir = os.scandir

    def scan(top):
        if Path(top).name == "deep":
            raise PermissionError(13, "Permission denied", top)
        return scandir(top)

    monkeypatch.setattr("os.scandir", scan)
    with pytest.raises(DatasetError, match=r"deep: this folder cannot be listed \(Permission denied\)"):
        collect(folder)


def test_a_folder_among_others_may_not_be_empty(folder):
    (folder / "none").mkdir()
    with pytest.raises(DatasetError, match="none: no images in this folder"):
        collect([folder / "b.png", folder / "none"])


def test_images_are_known_by_their_content(folder):
    """The one .png among five images of other endings, and files that are none."""
    where = folder / "mixed"
    where.mkdir()
    image = Image.fromarray(PIXELS)
    image.save(where / "a.png")
    for name, kind in {"b.jfif": "JPEG", "c.avif": "AVIF", "d.tga": "TGA", "e.j2k": "JPEG2000", "f": "PNG"}.items():
        image.save(where / name, format=kind)
    for name in ("g.dat", "h.TXT", "i.txt", "j.csv", ".hidden", "Desktop.ini"):
        (where / name).write_bytes(b"x")
    image.save(where / "k.nef", format="TIFF")  # the thumbnail of a raw file
    assert names(where) == ["a.png", "b.jfif", "c.avif", "d.tga", "e.j2k", "f"]
    assert others(where) == ["g.dat", "h.TXT", "i.txt", "j.csv", "k.nef"]
    assert [read_image(item).shape for item in collect(where, warn=False).items] == [(4, 4, 3)] * 6
    assert names(f"{where}/*") == names(where)
    assert others(f"{where}/*") == others(where)
    assert others([where, folder / "deep", f"{where}/?.txt"]) == others(where)


def test_what_is_passed_over_is_a_warning(folder):
    message = r"^1 file passed over: 1 \.txt$"
    for use in (collect, lambda images: list(collect(iter([images])).items)):
        with pytest.warns(PassedOverWarning, match=message):
            use(folder)
    with pytest.warns(PassedOverWarning, match=r"^2 files passed over: 2 \.txt$"):
        collect([folder, folder])


def test_a_file_named_like_an_image_is_a_bad_image(folder):
    (folder / "deep" / "bad.png").write_text("no image")
    assert "bad.png" in names(folder)
    os.mkfifo(folder / "deep" / "pipe")
    os.mkfifo(folder / "deep" / "pipe.png")
    assert names(folder / "deep")[-1] == "pipe.png"
    assert others(folder / "deep") == ["pipe"]


def test_every_page_is_an_image(tmp_path):
    path = save_pages(tmp_path / "scan.tif", (10, 20, 30))
    Image.new("RGB", (8, 6)).save(tmp_path / "zone.tif")
    for images in (tmp_path, f"{tmp_path}/*.tif", [path, tmp_path / "zone.tif"]):
        assert names(images) == ["scan.tif#1", "scan.tif#2", "scan.tif#3", "zone.tif"]
    collection = collect(path)
    assert (collection.count, collection.single) == (3, False)
    assert collect(tmp_path / "zone.tif").single
    loaded = list(stream(collection.items, Preprocessing.of(8)))
    assert [int(image.pixels.mean()) for image in loaded] == [10, 20, 30]
    assert [image.path for image in loaded] == [f"{path}#1", f"{path}#2", f"{path}#3"]
    assert list(collect(iter([path])).items) == list(collection.items)


def test_a_page_is_named_by_its_number(tmp_path):
    path = save_pages(tmp_path / "scan.tif", (10, 20, 30))
    one = collect(f"{path}#2")
    assert (list(one.items), one.count, one.single) == ([ImagePage(path, 2)], 1, True)
    assert collect(ImagePage(path, 3)).single
    assert [int(read_image(item).mean()) for item in collect([f"{path}#3", f"{path}#1"]).items] == [30, 10]
    for wrong, reason in {"#4": "the file has no such page; pages are counted", "#0": "no such file; check"}.items():
        [item] = collect([f"{path}{wrong}"]).items
        with pytest.raises(ImageError, match=f"scan.tif{wrong}: {reason}"):
            read_image(item)
    Image.new("RGB", (8, 6)).save(tmp_path / "scan.tif#2", "PNG")  # a file of this very name
    assert list(collect(f"{path}#2").items) == [Path(f"{path}#2")]
    with pytest.raises(ImageError, match="no such file or folder"):
        collect(f"{tmp_path}/missing.tif#2")


def test_every_frame_of_a_video_is_an_image(tmp_path):
    path = write_video(tmp_path / "clip.avi", 7)
    collection = collect(str(path), stride=3)
    assert (list(collection.items), collection.single) == ([VideoFrame(path, i) for i in (0, 3, 6)], False)
    assert [number(image.pixels) for image in stream(collection.items, Preprocessing.of(16))] == [0, 3, 6]
    assert list(collect(f"{path}#4").items) == [VideoFrame(path, 4)]
    assert collect([path, f"{tmp_path}/*.avi"]).count == 14
    with pytest.raises(DatasetError, match=r"no images.*1 file passed over: 1 \.avi; \.avi is a video: name the file"):
        collect(tmp_path)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_path_is_no_folder(empty):
    for images in (empty, [empty], iter([empty])):
        with pytest.raises(ParameterError, match="a path is empty; give a file, folder or glob"):
            list(collect(images).items)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rtsp://camera/1", "is an address"),
        ("https://example.org/a.png", "is an address"),
        ("/dev/video0", "if it is a camera"),
        ("0", "if it is a camera"),
        ("-", "standard input"),
    ],
)
def test_cameras_addresses_and_pipes_are_refused(text, reason):
    for images in (text, [text]):
        with pytest.raises(ParameterError, match=reason) as told:
            collect(images)
        assert "in Python" in str(told.value)


def test_brackets_in_the_name_of_a_folder(folder):
    for name in ("lot[1]", "lot1"):
        (folder / name).mkdir()
        Image.fromarray(PIXELS).save(folder / name / f"{name}.png")
    assert names(folder / "lot[1]") == names(f"{folder}/lot[1]/*.png") == ["lot[1].png"]
    assert names(f"{folder}/lot[12]/*.png") == ["lot1.png"]
    with pytest.raises(
        DatasetError, match=r"no image matches this pattern.*; brackets stand for one of the characters"
    ):
        collect(f"{folder}/lot[3]")
