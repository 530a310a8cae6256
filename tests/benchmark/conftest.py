from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

SCRATCH = np.s_[24:40, 38:43]


def write_class(folder, good_images, scratched, n_train=8):
    """A class in MVTec AD's layout: good parts, three good test images, three with a fading scratch."""

    def save(name, image):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)

    for i, image in enumerate(good_images):
        save(f"train/good/{i:03}.png" if i < n_train else f"test/good/{i:03}.png", image)
    mask = np.zeros(scratched.shape[:2], np.uint8)
    mask[SCRATCH] = 255
    for i, strength in enumerate((0.08, 0.3, 1.0)):
        mixed = good_images[i + 8] + strength * (scratched.astype(float) - good_images[0])
        save(f"test/scratch/{i:03}.png", np.clip(mixed, 0, 255).astype(np.uint8))
        save(f"ground_truth/scratch/{i:03}_mask.png", mask)


@pytest.fixture(scope="session")
def parts(tmp_path_factory, good_images, scratched):
    """MVTec AD with two of its classes."""
    root = tmp_path_factory.mktemp("parts")
    write_class(root / "screw", good_images, scratched)
    write_class(root / "tile", good_images[::-1], scratched, n_train=9)
    return root


@pytest.fixture
def small_inputs():
    """Inputs of 64 x 64 instead of the paper's 224."""
    return {"resize": 72, "crop": 64}
