"""Runs another package's PaDiM for `flawmap.benchmark.peers`, in a virtual environment of its own, without flawmap.

    python peer_worker.py anomalib|anomavision

Each line of standard input is a JSON array, a method of `Worker` and its arguments; each line of standard output is the
answer. Weights and images are random, as everything that is timed is: a call is from 8-bit images to maps and scores.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LAYERS = ["layer1", "layer2", "layer3"]
BATCH = 32

Call = Callable[[NDArray[np.float32]], object]
Learn = Callable[[], None]


def anomalib_calls(n_features: int, side: int, folder: str) -> dict[str, Call]:
    """anomalib's torch model, and what it exports."""
    import openvino
    from anomalib.models import Padim

    model = Padim(
        backbone="resnet18",
        layers=LAYERS,
        pre_trained=False,
        n_features=n_features,
        pre_processor=Padim.configure_pre_processor(image_size=(side, side)),
        visualizer=False,
        evaluator=False,
    )
    learner = model.model.train()
    learner(torch.rand(3, 3, side, side))
    learner.fit()
    model.eval()
    path = model.to_openvino(folder, input_size=(side, side))
    calls: dict[str, Call] = {"torch": torch.inference_mode()(lambda images: model(torch.from_numpy(images)))}
    for precision, hint in {"float32": "f32", "bfloat16": "bf16"}.items():
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        calls[f"OpenVINO export {precision}"] = openvino.Core().compile_model(path, "CPU", options)
    return calls


def anomavision_calls(n_features: int, side: int, folder: str) -> dict[str, Call]:
    """anomavision's torch model, and what it exports, as it runs it itself."""
    import logging

    import onnxruntime
    from anomavision.export import ModelExporter

    model = _anomavision_model(n_features)
    model.fit([(torch.rand(3, 3, side, side), 0, 0, 0)])
    path = Path(folder, "model.pt")
    torch.save(model, path)
    calls: dict[str, Call] = {"torch": torch.inference_mode()(lambda images: model.predict(torch.from_numpy(images)))}
    exporter = ModelExporter(path, Path(folder), logging.getLogger("anomavision"), device="cpu")
    try:
        graph = exporter.export_onnx(input_shape=(1, 3, side, side), dynamic_batch=True)
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    except Exception as error:  # with some releases of torch it makes none, or one that does not load
        sys.stderr.write(f"anomavision's export is left out: {error}\n")
    else:
        name = session.get_inputs()[0].name
        calls["ONNX export"] = lambda images: session.run(None, {name: images})
    return calls


def anomalib_fit(n_features: int, side: int, images: str) -> Learn:
    """Learning from a folder of images as its documentation does it."""
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Padim

    root = Path(images)
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": root.parent / "anomalib"}

    def learn() -> None:
        data = Folder(
            name="good",
            root=root.parent,
            normal_dir=root.name,
            train_batch_size=BATCH,
            eval_batch_size=BATCH,
            num_workers=2,
            test_split_mode="none",
            val_split_mode="none",
        )
        size = Padim.configure_pre_processor(image_size=(side, side))
        model = Padim(backbone="resnet18", layers=LAYERS, pre_trained=False, n_features=n_features, pre_processor=size)
        Engine(limit_val_batches=0, **options).fit(model, datamodule=data)  # there are no defects to validate on

    return learn


def anomavision_fit(n_features: int, side: int, images: str) -> Learn:
    """Learning from a folder of images as its documentation does it."""
    from anomavision import AnodetDataset

    def learn() -> None:
        data = AnodetDataset(images, resize=[side, side], crop_size=None, normalize=True)
        _anomavision_model(n_features).fit(torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=2))

    return learn


def _anomavision_model(n_features: int) -> Any:  # noqa: ANN401 (anomavision.Padim)
    from anomavision import Padim
    from anomavision.algorithm.common import feature_extraction

    known = {"resnet18": (lambda weights, progress: feature_extraction.resnet18(), None)}  # noqa: ARG005 (fetch none)
    feature_extraction.BACKBONES = known
    return Padim(backbone="resnet18", layer_indices=[0, 1, 2], feat_dim=n_features)


FUNCTIONS = {"anomalib": (anomalib_calls, anomalib_fit), "anomavision": (anomavision_calls, anomavision_fit)}


class Worker:
    """One package's PaDiM; each method is a request."""

    def __init__(self, name: str) -> None:
        self._make_calls, self._make_learn = FUNCTIONS[name]
        self._calls: dict[str, Call] = {}
        self._pixels: NDArray[np.uint8] = np.zeros((1, 1, 1, 3), np.uint8)

    def prepare(self, n_features: int, side: int, folder: str) -> None:
        """Make a model and its export."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._calls = self._make_calls(n_features, side, folder)

    def images(self, n_images: int, side: int) -> list[str]:
        """Set random images (n, side, side, 3) for the next calls; returns the names of the calls that support them."""
        self._pixels = np.random.default_rng(0).integers(0, 256, (n_images, side, side, 3), np.uint8)
        supported = []
        for name in self._calls:
            try:
                self.call(name)
                supported.append(name)
            except Exception as error:  # some exports run with batches of one alone
                sys.stderr.write(f"{name} is left out at {n_images} images: {error}\n")
        return supported

    def call(self, name: str) -> None:
        """From 8-bit images to maps and scores."""
        self._calls[name](np.ascontiguousarray(self._pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255))

    def fit(self, n_features: int, side: int, images: str) -> tuple[float, float]:
        """Seconds of a fit on a folder of images, and the peak memory of the process in MB."""
        learn = self._make_learn(n_features, side, images)
        start = time.perf_counter()
        learn()
        seconds = time.perf_counter() - start
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Answer until the input ends."""
    worker, answers = Worker(sys.argv[1]), sys.stdout
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            try:
                answer = getattr(worker, request)(*arguments)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
