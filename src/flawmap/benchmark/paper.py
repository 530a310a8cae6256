"""The paper's evaluation: every system on every class that is there, one run after the other, resumable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawmap.backbones import Backbone, Runtime, load_backbone, pick_device
from flawmap.benchmark.class_images import RD, ClassImages, read_class
from flawmap.benchmark.footprint import GROWING, GROWTH, N_IMAGES, measure_footprint
from flawmap.benchmark.gallery import Gallery
from flawmap.benchmark.paper_tables import PAPER_TABLES
from flawmap.benchmark.plan import Group, Plan, class_paths, groups, left_out
from flawmap.benchmark.results import Results, Run
from flawmap.benchmark.scores import RunScores
from flawmap.benchmark.shared_features import SharedFeatures, score_shared
from flawmap.benchmark.systems import System, systems_without_data
from flawmap.detectors import Detector, PaDiM
from flawmap.errors import BackboneError, FlawmapError
from flawmap.images.datasets import LAYOUTS
from flawmap.progress import Progress, report_progress

__all__ = ["Outcome", "run_plan"]

FOR_GALLERY = ("Rd100", "all")
"""Systems whose maps are shown, the first that is run; another if none of them is."""
FEW_IMAGES = 32
"""Images for which compiling a backbone does not pay."""

UNTRAINED = "left out: on a CPU its paper's training takes hours; --budget MINUTES trains it for so long on each class"

Advance = Callable[[int], None]
Tell = Callable[[str], None]
Scored = tuple[int, float, NDArray[np.float32] | None, NDArray[np.bool_] | None]
"""Number of a test image, its score, its map, its mask."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        runs: all runs there are now, also those of earlier times.
        missing: published classes that are not on disk.
        failures: why a system could not be run, by system and class.
        n_done: runs made this time.
    """

    runs: list[Run] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    n_done: int = 0


def run_plan(plan: Plan, results: Results, *, progress: Progress = False, tell: Tell = lambda _: None) -> Outcome:
    """Make all runs that the results do not hold yet, each written down before the next begins."""
    plan.check()
    names = {PAPER_TABLES[name].dataset for name in plan.tables}
    paths = class_paths(plan) if names != {"speed"} else []
    wanted = plan.classes or LAYOUTS[plan.dataset].classes if paths else ()
    outcome = Outcome(missing=tuple(name for name in wanted if name not in {path.name for path in paths}))
    outcome.failures.update(dict.fromkeys(left_out(plan), UNTRAINED))
    todo = [left for group in groups(plan, paths) if (left := group.left(results)).todo]
    total = sum(group.count(plan.settings.stride) * (len(group.todo) + 1) for group in todo)
    with report_progress(progress, "Images", total) as advance:
        for group in todo:
            tell(f"{group.dataset} {group.path.name}" + (f", rotations {group.image_seed}" * (group.dataset == RD)))
            _Worker(plan, results, outcome, advance).run(group)
    if "speed" in names:
        _measure_footprints(results, outcome, tell)
    outcome.runs = list(results.runs.values())
    return outcome


def _measure_footprints(results: Results, outcome: Outcome, tell: Tell) -> None:
    """Tables VII and VIII, and how they depend on the number of good images."""
    known = systems_without_data()
    rows = [(name, "", N_IMAGES) for name in PAPER_TABLES["VIII"].rows]
    rows += [(name, str(n_images), n_images) for name in GROWING for n_images in GROWTH]
    for name, category, n_images in rows:
        if ("speed", category, name, 0) in results.runs:
            continue
        tell(f"time and memory of {name}, {n_images} good images")
        try:
            figures = measure_footprint(known[name], n_images=n_images)
        except FlawmapError as error:
            outcome.failures[f"{name}, time and memory"] = str(error)
            continue
        results.append(Run("speed", category, name, 0, figures, n_images))
        outcome.n_done += 1


class _Worker:
    """Makes the runs of one group."""

    def __init__(self, plan: Plan, results: Results, outcome: Outcome, advance: Advance) -> None:
        self._plan, self._results, self._outcome, self._advance = plan, results, outcome, advance
        self._features: dict[tuple[object, ...], SharedFeatures | FlawmapError] = {}
        self._shown: str | None = None

    def run(self, group: Group) -> None:
        """All runs of the group; what fails is noted, and the others go on."""
        try:
            images = read_class(group.dataset, group.path, seed=group.image_seed, stride=self._plan.settings.stride)
        except FlawmapError as error:
            self._outcome.failures[f"{group.dataset} {group.path.name}"] = str(error)
            return
        if (changed := self._changed(images)) is not None:
            self._outcome.failures[f"{group.dataset} {group.path.name}"] = changed
            return
        names = [system.name for system, _ in group.todo]
        self._shown = next((name for name in FOR_GALLERY if name in names), names[0])
        try:
            for system, seed in group.todo:
                try:
                    self._run(images, system, seed)
                except FlawmapError as error:
                    where = system.name if isinstance(error, BackboneError) else f"{system.name}, {images.name}"
                    self._outcome.failures[where] = str(error)
                    self._advance(len(images.train) + len(images.test))
        finally:
            self._drop_features()

    def _changed(self, images: ClassImages) -> str | None:
        """What is wrong if earlier runs were on other images."""
        now = len(images.train), len(images.test)
        for run in self._results.runs.values():
            if (run.dataset, run.category) == (images.dataset, images.name) and (run.n_train, run.n_test) != now:
                return (
                    f"earlier runs were on {run.n_train} and {run.n_test} images to learn from and to test on, there "
                    f"are {now[0]} and {now[1]} now; name another folder with --output"
                )
        return None

    def _run(self, images: ClassImages, system: System, seed: int) -> None:
        detectors = system.make(seed, images.input)
        padims = [detector for detector in detectors if isinstance(detector, PaDiM)]
        shared = self._share(images, padims[0]) if len(padims) == len(detectors) else None
        started = time.perf_counter()
        scores = RunScores()
        gallery = Gallery.of(images) if self._wants_gallery(images, system) else None
        scored = self._score_shared(images, padims, shared) if shared else self._score_each(images, detectors)
        for index, score, anomaly_map, mask in scored:
            scores.add(score, anomaly_map, mask, is_anomalous=images.is_anomalous(index))
            if gallery is not None and anomaly_map is not None:
                gallery.take(index, score, anomaly_map)
        if gallery is not None:
            folder = self._plan.output / "galleries"
            folder.mkdir(exist_ok=True)
            gallery.save(folder / f"{images.name}.jpg", detectors[0].preprocessing, f"{images.name}: {system.name}")
        seconds = round(time.perf_counter() - started, 2)
        figures, curves = scores.figures(), scores.curves()
        counts = len(images.train), len(images.test)
        self._results.append(Run(images.dataset, images.name, system.name, seed, figures, *counts, curves, seconds))
        self._outcome.n_done += 1

    def _score_shared(self, images: ClassImages, models: Sequence[PaDiM], features: SharedFeatures) -> Iterator[Scored]:
        for index, anomaly_map in score_shared(models, features, self._advance):
            mask = images.mask(index, features.preprocessing, features.placement(index))
            yield index, float(anomaly_map.max()), anomaly_map, mask

    def _score_each(self, images: ClassImages, detectors: Sequence[Detector]) -> Iterator[Scored]:
        """Any one detector, by what all detectors can do."""
        [detector] = detectors
        detector.fit(list(images.train))
        self._advance(len(images.train))
        for index, prediction in enumerate(detector.iter_predict(list(images.test))):
            mask = images.mask(index, detector.preprocessing, prediction.placement)
            yield index, prediction.pred_score, prediction.anomaly_map, mask
            self._advance(1)

    def _share(self, images: ClassImages, model: PaDiM) -> SharedFeatures:
        """Features of a model's backbone; those of one backbone at a time are kept."""
        key = (model.backbone, model.weights, model.pretrained, model.preprocessing)
        if key not in self._features:
            self._drop_features()
            try:
                self._features[key] = self._compute(images, model)
            except BackboneError as error:
                self._features[key] = error
        found = self._features[key]
        if isinstance(found, FlawmapError):
            raise found
        return found

    def _compute(self, images: ClassImages, model: PaDiM) -> SharedFeatures:
        features = SharedFeatures(
            images,
            _steady_backbone(model, len(images.train) + len(images.test)),
            model.preprocessing,
            folder=self._plan.output,
            limit_bytes=int(min(self._plan.limit_gb * 1e9, shutil.disk_usage(self._plan.output).free / 2)),
        )
        features.compute(self._advance)
        return features

    def _drop_features(self) -> None:
        self._features = {key: kept for key, kept in self._features.items() if isinstance(kept, FlawmapError)}

    def _wants_gallery(self, images: ClassImages, system: System) -> bool:
        """One of each class, unless there is one already."""
        if images.dataset == RD or system.name != self._shown:
            return False
        self._shown = None
        return not (self._plan.output / "galleries" / f"{images.name}.jpg").exists()


def _steady_backbone(model: PaDiM, n_images: int) -> Backbone:
    """A model's backbone with all the layers it is known for, on one runtime from the first image on.

    A benchmark that goes on after a kill then computes the very same features as one that was never disturbed.
    """
    runtimes: tuple[Runtime, ...] = ("torch",)
    if n_images > FEW_IMAGES and pick_device("auto").type == "cpu":
        runtimes = ("openvino", "torch")
    for runtime in runtimes:
        backbone = _load(model, runtime)
        try:
            backbone.features(np.zeros((1, *model.preprocessing.input_size, 3), np.uint8))
        except BackboneError:
            if runtime == runtimes[-1]:
                raise
        else:
            break
    return backbone


def _load(model: PaDiM, runtime: Runtime) -> Backbone:
    """With all layers it is known for, which then serve every model of it; with the model's, if those are others."""
    options: dict[str, Any] = {"pretrained": model.pretrained, "weights": model.weights, "runtime": runtime}
    backbone = load_backbone(model.backbone, **options)
    if set(model.layers or ()) <= set(backbone.layers):
        return backbone
    return load_backbone(model.backbone, layers=model.layers, **options)
