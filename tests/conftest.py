from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # naive.py, the float64 twins; videos.py, small videos by a real codec
sys.path.append(str(ROOT / "benchmarks"))  # parts.py, generated parts with a known answer


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images, weights and golden results that lies beside the project on some machines."""
    folder = Path(os.environ.get("FLAWMAP_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder} with its golden results is not on this machine")
    return folder


@pytest.fixture(scope="session")
def screw(shared) -> Path:
    """MVTec AD, class screw."""
    return shared / "data" / "mvtec_ad" / "screw"


@pytest.fixture(scope="session")
def resnet18_weights(shared) -> Path:
    return shared / "weights" / "resnet18_imagenet1k_v1_to_layer3.safetensors"


def textured(rng: np.random.Generator, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A good part: a fixed pattern with a little noise, (H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    pattern = 128 + 60 * np.sin(x / 5) + 40 * np.cos(y / 7)
    image = pattern[..., None] + rng.normal(0, 6, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def good_images() -> np.ndarray:
    """Twelve good parts (12, 64, 64, 3)."""
    rng = np.random.default_rng(0)
    return np.stack([textured(rng) for _ in range(12)])


@pytest.fixture
def good_folder(tmp_path, good_images) -> Path:
    """The good parts as PNG files."""
    folder = tmp_path / "good"
    folder.mkdir()
    for i, image in enumerate(good_images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def scratched(good_images) -> np.ndarray:
    """A good part with a bright scratch at rows 24 to 40 of column 40 (64, 64, 3)."""
    image = good_images[0].copy()
    image[24:40, 38:43] = 255
    return image


SMALL = {
    "backbone": "resnet10t",
    "pretrained": False,
    "resize": 72,
    "crop": 64,
    "regularization": "paper",
    "refit_below": 0,
}


@pytest.fixture(scope="session")
def small_model(good_images):
    """A calibrated PaDiM of the good parts, resized to 72 and cropped to 64."""
    from flawmap import PaDiM

    return PaDiM(**SMALL).fit(good_images)


@pytest.fixture(scope="session", params=["openvino", "onnx"])
def exported(request, small_model, tmp_path_factory) -> Path:
    """Its export folder in each format; tests that change it copy it first."""
    from flawmap import export_model

    return export_model(small_model, tmp_path_factory.mktemp(request.param) / "part", format=request.param)
