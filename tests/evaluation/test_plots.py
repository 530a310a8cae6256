from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DatasetError, MissingDependencyError
from flawmap.evaluation.plots import Timeline, save_timelines

CLIP = Timeline([0, 1, 2, 3], [1.0, 2.0, 5.0, 1.5], [False, False, True, False])


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_ending_says_the_format(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"clips.{suffix}"
    save_timelines({"01_0014": CLIP, "01_0015": Timeline()}, path, threshold=3.0, title="scene 01")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


def test_anomalous_frames_are_shaded(tmp_path):
    pytest.importorskip("matplotlib")
    counts = []
    for clip in (CLIP, Timeline(CLIP.frames, CLIP.scores, [False] * 4)):
        save_timelines({"a": clip}, tmp_path / "clips.png")
        with Image.open(tmp_path / "clips.png") as image:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), 2, 0)
        counts.append(int(((red > green + 30) & (red > blue + 30)).sum()))
    assert counts[0] > 1000
    assert counts[1] == 0


def test_impossible_pictures_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(DatasetError, match="41 clips do not fit"):
        save_timelines({str(i): CLIP for i in range(41)}, tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"ending in \.png, \.svg or \.pdf"):
        save_timelines({"a": CLIP}, tmp_path / "a.jpeg2000")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"flawmap\[plots\]"):
        save_timelines({"a": CLIP}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
