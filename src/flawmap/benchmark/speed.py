"""Speed, memory and file size of flawmap on this machine, beside the usual script with full matrices."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flawmap.backbones import Backbone, Precision, Runtime, load_backbone
from flawmap.benchmark.peers import PEERS, Peer, find_peers
from flawmap.benchmark.plain import PlainPaDiM
from flawmap.benchmark.timing import Latency, interleaved
from flawmap.detectors import PaDiM, load
from flawmap.detectors.passes import AT_ONCE
from flawmap.errors import MissingDependencyError, ParameterError
from flawmap.export import export_model
from flawmap.images import Preprocessing, collect, stream
from flawmap.runtime import Inspector

__all__ = ["CASES", "PAPER_MEMORY", "PAPER_SECONDS", "Fit", "SpeedCase", "SpeedReport", "measure_speed"]

T = TypeVar("T")

SIDE = 224
FILE_SIDE = 512
"""Side of the image files that are read from disk."""

CASES: dict[str, tuple[str, int | None]] = {
    "resnet18-100": ("resnet18", 100),
    "efficientnet_lite0-176": ("efficientnet_lite0", None),
    "wide_resnet50_2-550": ("wide_resnet50_2", 550),
}
"""Backbone and drawn channels of each case."""

PAPER_SECONDS = {"SPADE": 7.10, "VAE": 0.21, "PaDiM-R18-Rd100": 0.23, "PaDiM-WR50-Rd550": 0.95}
"""Table VII of the PaDiM paper: seconds an image, Intel i7-4710HQ."""
PAPER_MEMORY = {"SPADE": 1.4, "VAE": 0.09, "PaDiM-R18-Rd100": 0.17, "PaDiM-WR50-Rd550": 3.8}
"""Table VIII: gigabytes, MVTec AD."""


PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
RUNTIMES: tuple[Runtime, ...] = ("torch", "openvino")
SHOWN = {"torch": "torch", "openvino": "OpenVINO"}
BATCHES = (1, 8)


@dataclass(frozen=True)
class Fit:
    """Seconds to learn from image files, and the greatest memory of the process that did so, libraries included."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class SpeedCase:
    """Figures of one backbone.

    Attributes:
        latency: by batch ("1", "8", or "1 from file") and by what ran: milliseconds of a call.
        fits: by precision, learning, calibration and writing the file, for `n_images` images from files; of other
            packages on the same files, learning alone, or why they cannot.
        alone: seconds that a fit cannot do without: to decode the files, and by precision to compile the backbone and
            run it over the images.
        file_mb: the model file; `file_mb_float16` with 16-bit factors.
    """

    name: str
    n_images: int
    file_mb: float
    file_mb_float16: float
    fits: dict[str, Fit | str]
    alone: dict[str, float]
    latency: dict[str, dict[str, Latency]] = field(default_factory=dict)

    def ratios(self) -> dict[str, float]:
        """What the times come to, within this run: medians of one image, and of the fits."""
        one = {name: latency.p50 for name, latency in self.latency["1"].items()}
        found: dict[str, float] = {}
        for precision in PRECISIONS:
            graph = one[f"graph, OpenVINO {precision}"]
            found[f"graph over backbone alone, {precision}"] = graph / one[f"backbone alone, OpenVINO {precision}"]
            for name, time_of_other in one.items():
                if name == "usual script" or name.split(",")[0] in PEERS:
                    found[f"{name} over graph, {precision}"] = time_of_other / graph
        for precision in PRECISIONS:
            fit = self.fits[precision]
            if isinstance(fit, Fit):
                least = self.alone["decoding"] + self.alone[f"backbone {precision}"]
                found[f"fit over decoding and backbone alone, {precision}"] = fit.seconds / least
                for name in PEERS:
                    if isinstance(other := self.fits.get(name), Fit):
                        found[f"{name}'s fit over fit, {precision}"] = other.seconds / fit.seconds
        return {name: round(ratio, 2) for name, ratio in found.items()}


@dataclass(frozen=True)
class SpeedReport:
    """All cases, and the machine they were measured on."""

    machine: str
    cases: tuple[SpeedCase, ...]

    def to_json(self) -> dict[str, object]:
        """One plain object."""
        content = asdict(self)
        for case, described in zip(self.cases, content["cases"], strict=True):
            described["ratios"] = case.ratios()
        return {**content, "paper": {"seconds": PAPER_SECONDS, "gigabytes": PAPER_MEMORY}}


def measure_speed(
    names: Sequence[str],
    *,
    n_images: int,
    rounds: int,
    peers: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> SpeedReport:
    """Measure some cases, with random weights and images, on which times do not depend. ParameterError for others.

    `peers` is a folder of virtual environments of other packages, which ResNet-18 is timed beside (see `find_peers`).
    """
    pythons = find_peers(peers) if peers is not None else {}
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise ParameterError(f"unknown case '{unknown[0]}'; there are {', '.join(CASES)}")
    if n_images < 3 or rounds < 1:
        raise ParameterError(f"at least 3 images and one round are needed, got {n_images} and {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        images = _write_images(Path(folder) / "good", n_images)
        cases = tuple(_measure(name, images, Path(folder), rounds, pythons, tell) for name in names)
    return SpeedReport(f"{_processor()}, {os.cpu_count()} processors, torch {torch.__version__}", cases)


def _measure(
    name: str, images: Path, folder: Path, rounds: int, pythons: Mapping[str, Path], tell: Callable[[str], None]
) -> SpeedCase:
    backbone, n_features = CASES[name]
    options = {"backbone": backbone, "n_features": n_features, "resize": 256, "crop": SIDE, "pretrained": False}
    tell(f"{name}: fitting")
    path = folder / f"{name}.flawmap"
    fits: dict[str, Fit | str] = {}
    alone: dict[str, float] = {}
    for precision in reversed(PRECISIONS):  # the file that stays is of float32
        arguments = ({**options, "precision": precision}, str(images), str(path))
        fits[precision] = _in_a_process(_fit, arguments)
        alone |= _in_a_process(_alone, (backbone, precision, str(images)))
    model = PaDiM(**{**options, "calibrate": None, "resize": SIDE, "crop": None}).fit(_random_images(3))  # type: ignore[arg-type]
    model.save(folder / "half.flawmap", dtype="float16")
    case = SpeedCase(
        name,
        n_images=len(list(images.iterdir())),
        file_mb=round(path.stat().st_size / 1e6, 1),
        file_mb_float16=round((folder / "half.flawmap").stat().st_size / 1e6, 1),
        fits=fits,
        alone=alone,
    )
    tell(f"{name}: exporting and compiling")
    runners = _runners(model, folder / name)
    with ExitStack() as stack:
        others = _others(stack, pythons if backbone == "resnet18" else {}, n_features, images, folder, case, tell)
        for batch in BATCHES:
            tell(f"{name}: scoring {batch}")
            pixels = _random_images(batch)
            calls: dict[str, Callable[[], object]] = {runner: partial(run, pixels) for runner, run in runners.items()}
            for peer in others:
                calls |= {f"{peer.name}, {call}": partial(peer.call, call) for call in peer.take_images(batch, SIDE)}
            case.latency[str(batch)] = interleaved(calls, rounds=rounds)
    tell(f"{name}: scoring a file")
    del runners
    file = next(images.iterdir())
    inspector = Inspector(folder / name / "openvino")
    from_file = {"graph, OpenVINO float32": lambda: inspector.predict(file), "predict": lambda: model.predict(file)}
    case.latency["1 from file"] = interleaved(from_file, rounds=rounds)
    return case


def _others(
    stack: ExitStack,
    pythons: Mapping[str, Path],
    n_features: int | None,
    images: Path,
    folder: Path,
    case: SpeedCase,
    tell: Callable[[str], None],
) -> list[Peer]:
    """Other packages that have learnt what the case does; the case notes how."""
    ready = []
    for name, python in pythons.items():
        tell(f"{case.name}: {name} is fitting")
        try:
            with Peer(name, python) as learner:  # a process of its own, for its memory
                seconds, megabytes = learner.fit(n_features or 0, SIDE, images)
            case.fits[name] = Fit(round(seconds, 2), round(megabytes))
        except ParameterError as error:
            case.fits[name] = str(error)
        peer = stack.enter_context(Peer(name, python))
        peer.prepare(n_features or 0, SIDE, folder / name)
        ready.append(peer)
    return ready


def _runners(model: PaDiM, folder: Path) -> dict[str, Callable[[NDArray[np.uint8]], object]]:
    """Whatever scores images, and the backbones alone, each ready for any batch."""
    plain = PlainPaDiM(
        _backbone(model, "torch", "float32"),
        model.factor_.hierarchy.grid,
        torch.from_numpy(model.channels_),
        (SIDE, SIDE),
    )
    runners: dict[str, Callable[[NDArray[np.uint8]], object]] = {"usual script": plain}
    folder.mkdir()
    file = folder / "model.flawmap"
    model.save(file)
    for runtime in RUNTIMES:
        runners[f"predict, {SHOWN[runtime]} float32"] = load(file, runtime=runtime).predict
        runners[f"backbone alone, {SHOWN[runtime]} float32"] = _backbone(model, runtime, "float32").features
    export_model(model, folder / "openvino")
    for precision in PRECISIONS:
        graph = Inspector(folder / "openvino", precision=precision)
        runners[f"graph, OpenVINO {precision}"] = graph.score_batch
    runners["backbone alone, OpenVINO bfloat16"] = _backbone(model, "openvino", "bfloat16").features
    try:
        export_model(model, folder / "onnx", format="onnx")
        runners["graph, ONNX Runtime float32"] = Inspector(folder / "onnx").score_batch
    except MissingDependencyError:  # of an extra
        pass
    return runners


def _backbone(model: PaDiM, runtime: Runtime, precision: Precision) -> Backbone:
    return load_backbone(model.backbone, layers=model.layers, pretrained=False, runtime=runtime, precision=precision)


def _in_a_process(call: Callable[..., T], arguments: tuple[object, ...]) -> T:
    """The outcome of a call in a process of its own: nothing has been loaded there, and its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _fit(options: dict[str, object], images: str, path: str) -> Fit:
    """Seconds and greatest memory of this process for learning from the images of a folder."""
    start = time.perf_counter()
    PaDiM(**options).fit(images).save(path)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Fit(round(seconds, 2), round(kilobytes / (2**20 if platform.system() == "Darwin" else 1024)))


def _alone(name: str, precision: Precision, images: str) -> dict[str, float]:
    """Seconds of decoding, and of the backbone, for the images of a folder."""
    start = time.perf_counter()
    pixels = [image.pixels for image in stream(collect(images).items, Preprocessing.of(256, SIDE))]
    decoded = time.perf_counter()
    backbone = load_backbone(name, pretrained=False, runtime="openvino", precision=precision)
    for i in range(0, len(pixels), AT_ONCE):
        backbone.features(np.stack(pixels[i : i + AT_ONCE]))
    done = time.perf_counter()
    return {"decoding": round(decoded - start, 2), f"backbone {precision}": round(done - decoded, 2)}


def _random_images(n_images: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n_images, SIDE, SIDE, 3), np.uint8)


def _write_images(folder: Path, n_images: int) -> Path:
    """Smooth random photos as PNG files, which compress like real ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n_images):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        fine = np.asarray(coarse.resize((FILE_SIDE, FILE_SIDE), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(fine + rng.normal(0, 3, fine.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04}.png", compress_level=1)
    return folder


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
