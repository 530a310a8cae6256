"""docs/architecture.md lists the files that a call walks through; here they are held to what runs."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

import flawmap
from flawmap import Inspector, PaDiM, export_model, load

ROOT = Path(flawmap.__file__).parent
TEXT = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"


class Walk:
    """The files of flawmap in the order in which a call enters them, and how often other files enter each."""

    def __init__(self, call):
        self.files: list[str] = []
        self.entries: dict[str, int] = {}
        self._lock = threading.Lock()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _note(self, frame, event, _argument):
        file = _file(frame)
        if event != "call" or file is None:
            return
        caller = frame.f_back
        while caller is not None and _file(caller) is None:
            caller = caller.f_back
        if caller is None or _file(caller) != file:
            with self._lock:
                if file not in self.entries:
                    self.files.append(file)
                self.entries[file] = self.entries.get(file, 0) + 1

    @property
    def n_lines(self):
        return sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in self.files)


def _file(frame):
    name = frame.f_code.co_filename
    return Path(name).relative_to(ROOT).as_posix() if name.startswith(str(ROOT)) else None


def listed(heading):
    """The files that the text lists below a heading, in order."""
    text = TEXT.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+\.py)`", text, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(good_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    (folder / "good").mkdir()
    for i, image in enumerate(good_images):
        Image.fromarray(image).save(folder / "good" / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    """A model's file, and the walk that made it."""
    path = folder / "part.flawmap"
    model = PaDiM(resize=64, n_features=20, align="none")
    return path, Walk(lambda: model.fit(folder / "good").save(path))


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_prediction_enters_each_file_once_and_goes_down(fitted, folder, runtime):
    model = load(fitted[0], runtime=runtime)
    walk = Walk(lambda: model.predict(folder / "good" / "00.png"))
    assert walk.files == listed(f"predict, by {runtime}")
    assert set(walk.entries.values()) == {1}
    assert len(walk.files) <= 12
    assert walk.n_lines <= 2920


def test_an_inspection_enters_each_file_once_and_goes_down(fitted, folder):
    inspector = Inspector(export_model(load(fitted[0]), folder / "export"))
    walk = Walk(lambda: inspector.predict(folder / "good" / "00.png"))
    assert walk.files == listed("Inspector.predict")
    assert set(walk.entries.values()) == {1}
    assert len(walk.files) <= 12


def test_a_fit_walks_through_the_files_that_are_listed(fitted):
    assert set(fitted[1].files) == set(listed("fit and save"))
    assert len(fitted[1].files) < 29  # and one more where OpenVINO runs the backbone
