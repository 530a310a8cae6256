"""Speed of exported graphs, one image at a time: the whole graph beside its backbone alone, in each format.

Runs interleave in blocks; the figures are medians. Random weights and images: times do not depend on them. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap import Inspector, PaDiM, export_model
from flawmap.backbones import Backbone
from flawmap.export import Format
from flawmap.openvino_module import import_openvino

BLOCK = 8
CASES = {"resnet18 / 100": ("resnet18", 100), "efficientnet_lite0 / 176": ("efficientnet_lite0", None)}


class BackboneAlone(nn.Module):
    """Images (N, H, W, 3) uint8 to the feature maps that the Gaussians take."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of each layer."""
        return tuple(self.network(images.float().permute(0, 3, 1, 2) / 255))


def backbone_alone(backbone: Backbone, format: Format, image: NDArray[np.uint8], folder: Path) -> Callable[[], object]:
    """A call of the backbone, exported in the same way and run by the same library."""
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
    program = torch.export.export(BackboneAlone(backbone).eval(), (example,), dynamic_shapes=({0: batch},))
    if format == "onnx":
        import onnxruntime

        torch.onnx.export(program, f=str(folder / "backbone.onnx"), dynamo=True, verbose=False, input_names=["images"])
        session = onnxruntime.InferenceSession(folder / "backbone.onnx", providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": image})
    openvino = import_openvino()
    model = openvino.convert_model(program)
    model.reshape([-1, *image.shape[1:]])
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer({0: image})


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turn; the first call of a block warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for call in range(BLOCK):
                start = time.perf_counter()
                run()
                if call:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def measure(name: str, rounds: int) -> dict[str, float]:
    """Milliseconds of one image, and the cost of what follows the backbone over that of the backbone."""
    backbone, n_features = CASES[name]
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    model = PaDiM(backbone=backbone, n_features=n_features, resize=224, pretrained=False).fit(images)
    runs: dict[str, Callable[[], object]] = {"torch": lambda: model.predict(images[0])}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        for format in get_args(Format):
            inspector = Inspector(export_model(model, folder / format, format=format))
            runs[format] = lambda inspector=inspector: inspector.score_batch(images[:1])
            runs[f"{format}, backbone alone"] = backbone_alone(model.backbone_, format, images[:1], folder)
        times = interleaved(runs, rounds)
    for format in get_args(Format):
        alone = times[f"{format}, backbone alone"]
        times[f"{format}, rest over backbone"] = round((times[format] - alone) / alone, 2)
    return times


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    results = {name: measure(name, options.rounds) for name in options.cases}
    print(
        json.dumps(
            {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "results": results}, indent=2
        )
    )


if __name__ == "__main__":
    main()
