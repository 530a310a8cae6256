"""Model files and exports, and ways to damage them: by chance, and by someone who writes right checksums."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from safetensors.torch import load

from flawmap import SPADE, VAE, Inspector, MahalanobisAD, PaDiM, Prediction, export_model
from flawmap import load as load_model
from flawmap.errors import FlawmapError
from flawmap.model_file import ModelFile, Streamed, write_model_file

DAMAGES = ("flip a bit", "change a byte", "zero a block", "cut the end off", "append", "swap two blocks")
EXTREMES = (
    0, 1, -1, 2, 3, 7, 64, 4096, 16384, 10**6, 2**31, 2**63, 2**64, 1e300, -1e-300, math.pi, "", "x" * 300, "../../x",
    "/dev/zero", "vit_huge_patch14_224", "resnet18", "float16", None, True, False, [], {}, [0], [4096, 4096],
)  # fmt: skip
"""Values that a hostile description may have anywhere."""
CLAIMS = "claims-"
"""Begins the names of model files whose description is changed, with right checksums."""


def damage_bytes(name: str, whole: bytes, rng: Generator) -> bytes:  # noqa: ARG001 (as every damage)
    """A file's bytes, damaged in one of the ways in which disks and copies damage files."""
    changed = bytearray(whole)
    kind, length = rng.choice(DAMAGES), len(whole)
    # as often in the header and in the first bytes as in the far larger data
    start = int(rng.choice([rng.integers(length), rng.integers(min(length, 4000)), rng.integers(16)]))
    block = int(rng.choice([1, 16, 512, 4096]))
    if kind == "flip a bit":
        changed[start] ^= 1 << int(rng.integers(8))
    elif kind == "change a byte":
        changed[start] ^= int(rng.integers(1, 256))
    elif kind == "zero a block":
        changed[start : start + block] = bytes(len(changed[start : start + block]))
    elif kind == "cut the end off":
        del changed[start:]
    elif kind == "append":
        changed += rng.bytes(block)
    else:
        other = int(rng.integers(length))
        one, two = changed[start : start + block], changed[other : other + block]
        size = min(len(one), len(two))
        changed[start : start + size], changed[other : other + size] = two[:size], one[:size]
    return bytes(changed)


def damage_model(name: str, whole: bytes, rng: Generator) -> bytes:
    """A damaged model file; of one of claims, with another value in its description, and right checksums."""
    if not name.startswith(CLAIMS):
        return damage_bytes(name, whole, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(whole)
        document, tensors = ModelFile(path).document, load(whole)
        parent, key = _places(document)[int(rng.integers(len(_places(document))))]
        parent[key] = EXTREMES[int(rng.integers(len(EXTREMES)))]
        if "gallery" in tensors:
            tensors["gallery"] = Streamed(tuple(tensors["gallery"].shape), tensors["gallery"].numpy())
        write_model_file(path, document, tensors)
        return path.read_bytes()


def _places(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 (any JSON)
    """Every place in a JSON value: its parent and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


@cache
def photos() -> NDArray[np.uint8]:
    """Eight good images and a scratched one (9, 48, 48, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    pattern = (128 + 60 * np.sin(x / 5) + 40 * np.cos(y / 7))[..., None]
    images = np.clip(pattern + rng.normal(0, 6, (9, 48, 48, 3)), 0, 255).astype(np.uint8)
    images[8, 20:30, 22:25] = 255
    return images


def _save(name: str, path: Path) -> None:
    small: dict[str, Any] = {"backbone": "resnet10t", "pretrained": False, "resize": 48}
    models = {
        "padim": lambda: PaDiM(**small, n_features=12, refit_below=0),
        "spade": lambda: SPADE(**small, layers=["layer2"], coreset=0.5, n_mapped=3),
        "mahalanobis-ad": lambda: MahalanobisAD(**small, layers=["layer1"]),
        "vae": lambda: VAE(resize=36, crop=32, width=2, epochs=1, steps=2, batch_size=4),
    }
    models[name]().fit(photos()[:8]).save(path)


@cache
def model_seeds() -> dict[str, bytes]:
    """Whole model files of four detectors by their names, each once more for hostile claims."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("padim", "spade", "mahalanobis-ad", "vae"):
            path = Path(folder, name)
            _save(name, path)
            found[f"{name}.flawmap"] = found[f"{CLAIMS}{name}.flawmap"] = path.read_bytes()
    return found


@cache
def export_seeds() -> dict[str, bytes]:
    """The files of two exports by their names, such as openvino.model.bin."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.flawmap")
        _save("padim", path)
        for kind in ("openvino", "onnx"):
            export = export_model(load_model(path), Path(folder, kind), format=kind)  # type: ignore[arg-type]
            found |= {f"{kind}.{file.name}": file.read_bytes() for file in export.iterdir()}
    return found


def check_model(path: Path) -> str:
    """Load a damaged model file and predict: it is refused, or says the very same."""
    try:
        found = _said(load_model(path, runtime="torch").predict(photos()[8]))
    except FlawmapError:
        return "refused"
    if path.name.startswith(CLAIMS):  # whoever writes checksums may write another model
        return "another model"
    if found != _of_whole_model(path.name):
        raise AssertionError("its prediction has changed")
    return "the same"


def check_export(path: Path) -> str:
    """The same for one file of an export; thresholds are there to be edited, so labels may change."""
    kind, _, damaged = path.name.partition(".")
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(kind, Path(folder))
        shutil.copyfile(path, Path(folder, damaged))
        try:
            found = _said(Inspector(folder).predict(photos()[8]))
        except FlawmapError:
            return "refused"
    if (found[0], *found[2:]) != (_of_whole_export(kind)[0], *_of_whole_export(kind)[2:]):
        raise AssertionError("its prediction has changed")
    return "the same"


def _said(prediction: Prediction | list[Prediction]) -> tuple[float, int | None, float | None, bytes]:
    """Score, label, p-value and map. AssertionError for what is not finite."""
    assert isinstance(prediction, Prediction)
    anomaly_map = prediction.anomaly_map
    numbers = [prediction.pred_score, prediction.p_value or 0.0, 0.0 if anomaly_map is None else anomaly_map.sum()]
    if not np.isfinite(numbers).all():
        raise AssertionError("what it says is not finite")
    json.dumps(numbers[:2], allow_nan=False)
    content = b"" if anomaly_map is None else anomaly_map.tobytes()
    return prediction.pred_score, prediction.pred_label, prediction.p_value, content


@cache
def _of_whole_model(name: str) -> tuple[float, int | None, float | None, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(model_seeds()[name])
        return _said(load_model(path, runtime="torch").predict(photos()[8]))


@cache
def _of_whole_export(kind: str) -> tuple[float, int | None, float | None, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(kind, Path(folder))
        return _said(Inspector(folder).predict(photos()[8]))


def _lay_out(kind: str, folder: Path) -> None:
    for name, content in export_seeds().items():
        if name.startswith(f"{kind}."):
            folder.joinpath(name.partition(".")[2]).write_bytes(content)
