from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import flawmap

WITHOUT_TORCH = "import sys; sys.modules.update(torch=None, timm=None, scipy=None); "


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_all_names_what_the_package_offers():
    for module in [flawmap, *(importlib.import_module(name) for name in modules())]:
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name) is not None, f"{module.__name__}.{name}"
    assert set(flawmap.__all__) >= {"PaDiM", "Prediction", "load", "FlawmapError"}


def modules():
    names = [info.name for info in pkgutil.walk_packages(flawmap.__path__, "flawmap.")]
    return [name for name in names if name != "flawmap.__main__"]


def test_importing_flawmap_and_asking_for_help_leaves_torch_alone():
    done = python("import sys, flawmap, flawmap.cli.app; print('torch' in sys.modules, 'timm' in sys.modules)")
    assert done.stdout.strip() == "False False", done.stderr


def test_without_opencv_images_are_read_and_a_video_names_the_remedy(tmp_path):
    (tmp_path / "a.avi").write_bytes(b"RIFF")
    code = f"""
import sys
sys.modules.update(cv2=None, torch=None)
import numpy as np, flawmap.results.pictures, flawmap.runtime
from flawmap.errors import MissingDependencyError
from flawmap.images import FrameReader, VideoFrame, read_image
assert read_image(np.zeros((4, 5, 3), np.uint8)).shape == (4, 5, 3)
try:
    from pathlib import Path
    FrameReader().read(VideoFrame(Path({str(tmp_path / "a.avi")!r}), 0))
except MissingDependencyError as error:
    print(error)
"""
    done = python(code)
    assert "pip install 'flawmap[video]'" in done.stdout, done.stderr


def test_without_the_train_extra_the_remedy_is_said():
    done = python(WITHOUT_TORCH + "import flawmap; flawmap.PaDiM")
    assert "pip install 'flawmap[train]'" in done.stderr.splitlines()[-1]
    for arguments in (["fit", "x", "-o", "y.flawmap"], ["info", "x"], ["evaluate", "x", "elpv:mono"]):
        command = f"sys.argv = ['flawmap', *{arguments}]; from flawmap.cli import main; main()"
        done = python(WITHOUT_TORCH + command)
        assert done.returncode == 1
        assert "pip install 'flawmap[train]'" in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr


def test_unknown_names_are_unknown():
    with pytest.raises(AttributeError, match="no attribute 'Padim'"):
        _ = flawmap.Padim
