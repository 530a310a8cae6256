"""What the program around has changed of torch, and forks, change no diagnosis."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from flawmap import VAE, MahalanobisAD, PaDiM, export_model, load
from flawmap.backbones import plain_torch

GOOD = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
PART = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
KINDS = {
    "padim": lambda: PaDiM(resize=64, n_features=12, runtime="torch"),
    "mahalanobis-ad": lambda: MahalanobisAD(resize=64, layers=["blocks.1"], runtime="torch"),
    "vae": lambda: VAE(resize=64, steps=2, seed=1),
}


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device().type == name
    finally:
        torch.set_default_device(None)


SURROUNDINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each model's file, and what it says of a part."""
    folder = tmp_path_factory.mktemp("surroundings")
    found = {}
    for name, make in KINDS.items():
        model = make().fit(list(GOOD))
        model.save(folder / f"{name}.flawmap")
        found[name] = model, folder / f"{name}.flawmap", model.predict(PART)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_settings_of_torch_change_nothing(models, kind, surroundings, tmp_path):
    model, path, expected = models[kind]
    with SURROUNDINGS[surroundings]():
        fitted = KINDS[kind]().fit(list(GOOD))
        fitted.save(tmp_path / "again.flawmap")
        loaded = load(path, runtime="torch")
        found = [one.predict(PART) for one in (model, fitted, loaded)]
        found += loaded.iter_predict([PART])
    assert {prediction.pred_score for prediction in found} == {expected.pred_score}
    if expected.anomaly_map is not None:
        assert all(np.array_equal(prediction.anomaly_map, expected.anomaly_map) for prediction in found)
    if kind != "vae":  # its file says how long the training took
        assert (tmp_path / "again.flawmap").read_bytes() == path.read_bytes()


def test_an_export_is_the_same(models, tmp_path):
    model = models["padim"][0]
    export_model(model, tmp_path / "usual")
    with default_dtype(torch.float64), torch.autocast("cpu", dtype=torch.bfloat16):
        export_model(model, tmp_path / "odd")
    weights = [(tmp_path / name / "model.bin").read_bytes() for name in ("usual", "odd")]
    assert weights[0] == weights[1]


def test_the_last_of_several_threads_puts_the_default_back():
    def compute(_):
        with plain_torch():
            return torch.zeros(1).dtype

    with default_dtype(torch.float64), ThreadPoolExecutor(8) as pool:
        assert set(pool.map(compute, range(200))) == {torch.float32}


FORK = """
import multiprocessing, sys
import numpy as np, torch
from flawmap import Inspector, load
torch.set_num_threads(2)
part = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
model = Inspector(sys.argv[1]) if sys.argv[2] == "inspector" else load(sys.argv[1], runtime=sys.argv[2])
expected = model.predict(part).pred_score
def child():
    sys.exit(0 if abs(model.predict(part).pred_score - expected) <= 1e-5 * expected else 3)
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
process.kill()
print(process.exitcode)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("runtime", ["torch", "openvino", "inspector"])
def test_a_forked_child_predicts_as_its_parent_did(models, runtime, tmp_path):
    model, path, _ = models["padim"]
    where = export_model(model, tmp_path / "export") if runtime == "inspector" else path
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(where), runtime],
        capture_output=True, text=True, timeout=200, check=False, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == "0", done.stderr
