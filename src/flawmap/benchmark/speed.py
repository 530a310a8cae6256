"""Speed, memory and file size of flawmap on this machine, beside the usual script with full matrices."""

from __future__ import annotations

import copy
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from flawmap.backbones import AT_ONCE, Backbone, NormalisedNetwork, load_backbone
from flawmap.benchmark.peers import PEERS, Peer, find_peers
from flawmap.benchmark.timing import Latency, interleaved
from flawmap.detectors import PaDiM, load
from flawmap.errors import MissingDependencyError, ParameterError
from flawmap.export import export_model
from flawmap.images import Preprocessing, collect, stream
from flawmap.images.stream import load_image
from flawmap.options import Precision, Runtime
from flawmap.prediction import Size
from flawmap.runtime import Inspector

T = TypeVar("T")

CASES: dict[str, tuple[str, int | None]] = {
    "resnet18-100": ("resnet18", 100),
    "efficientnet_lite0-176": ("efficientnet_lite0", None),
    "wide_resnet50_2-550": ("wide_resnet50_2", 550),
}
"""Backbone and random channels of each case."""

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
    """Seconds of a fit on image files, and the peak memory of its process, libraries included."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class SpeedCase:
    """Figures of one backbone.

    Attributes:
        latency: milliseconds of a call, by batch ("1", "8", "1 from file" or "1 from a large JPEG") and by runner.
        fits: by precision, fit, calibration and writing the file, for `n_images` image files; by other package, its fit
            on the same files, or the reason of its failure.
        alone: seconds of the parts of every fit: to decode the files, and by precision to compile the backbone and run
            it over the images.
        file_mb: size of the model file.
        file_mb_float16: its size with 16-bit factors.
    """

    name: str
    n_images: int
    file_mb: float
    file_mb_float16: float
    fits: dict[str, Fit | str]
    alone: dict[str, float]
    latency: dict[str, dict[str, Latency]] = field(default_factory=dict)

    def ratios(self) -> dict[str, float]:
        """Ratios of times within this run: medians of one image, and of the fits."""
        one = {name: latency.p50 for name, latency in self.latency["1"].items()}
        found: dict[str, float] = {}
        for precision in PRECISIONS:
            graph = one[f"graph, OpenVINO {precision}"]
            found[f"graph over backbone alone, {precision}"] = graph / one[f"backbone alone, OpenVINO {precision}"]
            if large := {name: latency.p50 for name, latency in self.latency.get("1 from a large JPEG", {}).items()}:
                least = large["scaled decoding alone"] + graph
                found[f"large JPEG to verdict over decoding and graph, {precision}"] = (
                    large[f"graph, OpenVINO {precision}"] / least
                )
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
    """All cases, and the machine."""

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
    cases: Mapping[str, tuple[str, int | None]] = CASES,
    side: int = 224,
    file_side: int = 512,
    large: Size = (3000, 4000),
) -> SpeedReport:
    """Measure some cases, with random weights and images, on which times do not depend.

    Args:
        names: names of the cases.
        n_images: images to fit on.
        rounds: rounds of calls; more give steadier figures.
        peers: folder of virtual environments of other packages, to time beside ResNet-18 (see `find_peers`).
        tell: called with each step.
        cases: backbone and random channels of each case.
        side: side of the detectors' input.
        file_side: side of the image files.
        large: (height, width) of a JPEG as a camera writes it.

    Raises ParameterError for unknown cases and impossible numbers.
    """
    pythons = find_peers(peers) if peers is not None else {}
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise ParameterError(f"unknown case '{unknown[0]}'; there are {', '.join(cases)}")
    if n_images < 3 or rounds < 1:
        raise ParameterError(f"at least 3 images and one round are needed, got {n_images} and {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        images = _write_images(Path(folder) / "good", n_images, (file_side, file_side), ".png", compress_level=1)
        photo = _write_images(Path(folder) / "large", 1, large, ".jpg", quality=92)
        bench = _Bench(images, next(photo.iterdir()), Path(folder), rounds, pythons, tell, side)
        measured = tuple(bench.measure(name, *cases[name]) for name in names)
    return SpeedReport(f"{_processor()}, {os.cpu_count()} processors, torch {torch.__version__}", measured)


@dataclass
class _Bench:
    """Measures one case after the other on the same images."""

    images: Path
    photo: Path
    folder: Path
    rounds: int
    pythons: Mapping[str, Path]
    tell: Callable[[str], None]
    side: int

    def measure(self, name: str, backbone: str, n_features: int | None) -> SpeedCase:
        """Fit a case, and time all that scores its images in turn."""
        options = {"backbone": backbone, "n_features": n_features, "pretrained": False}
        case, model = self._fit(name, options)
        self.tell(f"{name}: exporting and compiling")
        runners = _runners(model, self.folder / name, self.side)
        with ExitStack() as stack:
            peers = self._peers(stack, case, n_features or 0) if backbone == "resnet18" else []
            for batch in BATCHES:
                self.tell(f"{name}: scoring {batch}")
                pixels = _random_images(batch, self.side)
                calls: dict[str, Callable[[], object]] = {
                    runner: partial(run, pixels) for runner, run in runners.items()
                }
                for peer in peers:
                    supported = peer.ask("images", batch, self.side)
                    calls |= {f"{peer.name}, {call}": partial(peer.ask, "call", call) for call in supported}
                case.latency[str(batch)] = interleaved(calls, rounds=self.rounds)
        self.tell(f"{name}: scoring a file")
        del runners
        file = next(self.images.iterdir())
        graphs = {
            f"graph, OpenVINO {precision}": Inspector(self.folder / name / "openvino", precision=precision).predict
            for precision in PRECISIONS
        }
        for where, path in (("1 from file", file), ("1 from a large JPEG", self.photo)):
            ways: dict[str, Callable[[Path], object]] = {**graphs, "predict": model.predict}
            if path == self.photo:
                whole = replace(model.preprocessing, reading="whole")
                ways["reading all its pixels"] = partial(load_image, 1, preprocessing=whole)
                ways["scaled decoding alone"] = partial(_decoded, size=model.preprocessing.resize)
            calls = {way: partial(call, path) for way, call in ways.items()}
            case.latency[where] = interleaved(calls, rounds=self.rounds)
        return case

    def _fit(self, name: str, options: Mapping[str, Any]) -> tuple[SpeedCase, PaDiM]:
        """The case with its fits and sizes of files, and a model to score with."""
        self.tell(f"{name}: fitting")
        path, half = self.folder / f"{name}.flawmap", self.folder / "half.flawmap"
        fits: dict[str, Fit | str] = {}
        alone: dict[str, float] = {}
        for precision in reversed(PRECISIONS):  # the last file, of float32, stays
            parameters = {**options, "resize": 256, "crop": self.side, "precision": precision}
            fits[precision] = _in_a_process(_fit, parameters, str(self.images), str(path))
            alone |= _in_a_process(_alone, options["backbone"], precision, str(self.images), self.side)
        model = PaDiM(**options, calibrate=None, resize=self.side).fit(_random_images(3, self.side))
        model.save(half, dtype="float16")
        whole_mb, half_mb = (round(file.stat().st_size / 1e6, 1) for file in (path, half))
        return SpeedCase(name, len(list(self.images.iterdir())), whole_mb, half_mb, fits, alone), model

    def _peers(self, stack: ExitStack, case: SpeedCase, n_features: int) -> list[Peer]:
        """Other packages, fitted like the case; their fits go into the case."""
        ready = []
        for name, python in self.pythons.items():
            self.tell(f"{case.name}: {name} is fitting")
            try:
                with Peer(name, python) as learner:  # a process of its own, for its memory
                    seconds, megabytes = learner.ask("fit", n_features, self.side, str(self.images))
                case.fits[name] = Fit(round(seconds, 2), round(megabytes))
            except ParameterError as error:
                case.fits[name] = str(error)
            peer = stack.enter_context(Peer(name, python))
            peer.ask("prepare", n_features, self.side, str(self.folder / name))
            ready.append(peer)
        return ready


def _runners(model: PaDiM, folder: Path, side: int) -> dict[str, Callable[[NDArray[np.uint8]], object]]:
    """Everything that scores images, and the backbones alone, each ready for any batch."""
    backbone, channels = _backbone(model, "torch", "float32"), torch.from_numpy(model.channels_)
    plain = PlainPaDiM(backbone, model.factor_.hierarchy.grid, channels, (side, side))
    runners: dict[str, Callable[[NDArray[np.uint8]], object]] = {"usual script": plain}
    folder.mkdir()
    file = folder / "model.flawmap"
    model.save(file)
    for runtime in RUNTIMES:
        runners[f"predict, {SHOWN[runtime]} float32"] = load(file, weights=model.weights, runtime=runtime).predict
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
    size = model.preprocessing.input_size
    options: dict[str, Any] = {"runtime": runtime, "precision": precision, "input_size": size}
    return load_backbone(model.backbone, layers=model.layers, pretrained=False, **options)


def _in_a_process(call: Callable[..., T], *arguments: object) -> T:
    """The result of a call in a new process, whose peak memory is that of the call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _fit(options: Mapping[str, Any], images: str, path: str) -> Fit:
    """Seconds and peak memory of this process for a fit on the images of a folder."""
    start = time.perf_counter()
    PaDiM(**options).fit(images).save(path)
    seconds = time.perf_counter() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Fit(round(seconds, 2), round(kilobytes / (2**20 if platform.system() == "Darwin" else 1024)))


def _alone(name: str, precision: Precision, images: str, side: int) -> dict[str, float]:
    """Seconds of decoding, and of the backbone, for the images of a folder."""
    start = time.perf_counter()
    pixels = [image.pixels for image in stream(collect(images).items, Preprocessing.of(256, side))]
    decoded = time.perf_counter()
    backbone = load_backbone(name, pretrained=False, runtime="openvino", precision=precision, input_size=(side, side))
    for i in range(0, len(pixels), AT_ONCE):
        backbone.features(np.stack(pixels[i : i + AT_ONCE]))
    done = time.perf_counter()
    return {"decoding": round(decoded - start, 2), f"backbone {precision}": round(done - decoded, 2)}


def _random_images(n_images: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n_images, side, side, 3), np.uint8)


def _decoded(path: Path, size: Size) -> Image.Image:
    """A JPEG decoded by Pillow at the smallest scale that leaves two pixels for each one of a size, and resized."""
    with Image.open(path) as image:
        image.draft(None, (2 * size[1], 2 * size[0]))
        return image.resize(size[::-1], Image.Resampling.BILINEAR)


def _write_images(folder: Path, n_images: int, size: Size, suffix: str, **options: Any) -> Path:  # noqa: ANN401 (of Pillow's encoders)
    """Smooth random photos as files, which compress like real ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n_images):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        fine = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(fine + rng.normal(0, 3, fine.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04}{suffix}", **options)
    return folder


def _processor() -> str:
    """The processor's name, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class PlainPaDiM:
    """PaDiM's scoring as the usual scripts write it: one full inverse per patch, repeated embeddings, scipy's filter.

    Means and inverses are random: time does not depend on them.
    """

    def __init__(self, backbone: Backbone, grid: Size, channels: Tensor, input_size: Size) -> None:
        n_positions, n_features = grid[0] * grid[1], len(channels)
        network = copy.deepcopy(backbone.network).to(memory_format=torch.contiguous_format)
        self._network = NormalisedNetwork(network, backbone.mean, backbone.std)
        self._channels, self._input_size = channels, input_size
        self._mean = torch.randn(n_positions, n_features)
        self._inverse = torch.randn(n_positions, n_features, n_features)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Maps (B, H, W) and scores (B,) of images (B, H, W, 3)."""
        maps = self._network(torch.from_numpy(images))
        finest = max((part.shape[2:] for part in maps), key=lambda size: size[0] * size[1])
        joined = torch.cat([F.interpolate(part, size=finest, mode="nearest") for part in maps], dim=1)
        embedding = joined[:, self._channels].flatten(2).permute(2, 0, 1)
        delta = embedding - self._mean[:, None]
        squared = ((delta @ self._inverse) * delta).sum(dim=2).abs()
        patches = squared.sqrt().T.reshape(-1, 1, *finest)
        large = F.interpolate(patches, size=self._input_size, mode="bilinear")[:, 0]
        smooth = torch.stack([torch.from_numpy(gaussian_filter(one.numpy(), sigma=4)) for one in large])
        return smooth, smooth.amax(dim=(1, 2))
