"""The paper's evaluation: every system on every class that is there, one run after the other, resumable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.benchmark.paper.class_images import RD, ClassFiles, ClassImages, look_at_class, read_class, readable
from flawmap.benchmark.paper.footprint import GROWING, measure_footprint
from flawmap.benchmark.paper.gallery import Gallery
from flawmap.benchmark.paper.plan import Group, Plan, asked_classes, class_paths, classes_on_disk, groups, left_out
from flawmap.benchmark.paper.published import PAPER_TABLES
from flawmap.benchmark.paper.results import Results, Run
from flawmap.benchmark.paper.scores import RunScores
from flawmap.benchmark.paper.shared_features import SharedFeatures, score_shared, steady_backbone
from flawmap.benchmark.paper.systems import System, systems_without_data
from flawmap.detectors import Detector, PaDiM
from flawmap.errors import BackboneError, FlawmapError, ImageError
from flawmap.options import OnBad
from flawmap.progress import Progress, report_progress

__all__ = ["Outcome", "run_plan"]

FOR_GALLERY = ("Rd100", "all")
"""Systems for the pictures of heat maps: the first of them that is run, or else any other."""

Advance = Callable[[int], None]
Tell = Callable[[str], None]
Scored = tuple[int, float, NDArray[np.float32] | None, NDArray[np.bool_] | None]
"""Index of a test image, its score, its map, its mask."""


@dataclass
class Outcome:
    """Outcome of a plan.

    Attributes:
        runs: all runs in the results, earlier ones included.
        on_disk: names of the classes on disk, asked for or not.
        asked: names of the classes that were asked for; None for all.
        failures: reasons of failed runs, by system and class.
        left_out: reasons of systems that are not run.
        n_done: new runs.
    """

    runs: list[Run] = field(default_factory=list)
    on_disk: tuple[str, ...] = ()
    asked: tuple[str, ...] | None = None
    failures: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    n_done: int = 0

    def reason(self, dataset: str, system: str, category: str) -> str | None:
        """Why a run is missing, if it failed or was left out."""
        if dataset == "speed":
            return self.failures.get(f"{system}, time and memory")
        sources = (dataset, "mvtec_ad") if dataset == RD else (dataset,)
        places = [*(f"{source} {category}" for source in sources), f"{system}, {category}", system]
        return next((self.failures[place] for place in places if place in self.failures), self.left_out.get(system))


def run_plan(
    plan: Plan,
    results: Results,
    *,
    progress: Progress = False,
    tell: Tell = lambda _: None,
    on_bad: OnBad | None = None,
) -> Outcome:
    """Make all runs that the results do not hold yet, each written before the next begins.

    `on_bad` is called once with each image that cannot be read, which is then left out; None fails the class's runs.
    """
    plan.check()
    names = {PAPER_TABLES[name].dataset for name in plan.tables}
    outcome = Outcome()
    if names != {"speed"}:
        outcome.on_disk = classes_on_disk(plan)
        outcome.asked = asked_classes(plan)
        outcome.left_out = left_out(plan)
        _measure_classes(plan, results, outcome, progress, tell, on_bad and _once(on_bad))
    if "speed" in names:
        _measure_footprints(plan, results, outcome, tell)
    outcome.runs = list(results.runs.values())
    return outcome


def _measure_classes(
    plan: Plan, results: Results, outcome: Outcome, progress: Progress, tell: Tell, on_bad: OnBad | None
) -> None:
    """All tables but VII and VIII."""
    files: dict[Path, ClassFiles] = {}
    for path in class_paths(plan):
        try:
            files[path] = look_at_class(plan.dataset, path, stride=plan.settings.stride)
        except FlawmapError as error:
            outcome.failures[f"{plan.dataset} {path.name}"] = str(error)
            continue
        if _forget_others(plan, results, path.name, files[path]):
            tell(f"{path.name}: its files have changed since earlier runs, which are repeated")
    todo = [left for group in groups(plan, list(files)) if (left := group.left(results)).todo]
    total = sum(_n_images(plan, group, files[group.path]) for group in todo)
    unreadable: dict[Path, ImageError] = {}
    with report_progress(progress, "Images", total) as advance:
        for group in todo:
            tell(f"{group.dataset} {group.path.name}" + (f", rotations {group.image_seed}" * (group.dataset == RD)))
            _Worker(plan, results, outcome, advance, on_bad, unreadable).run(group, files[group.path])


def _forget_others(plan: Plan, results: Results, category: str, files: ClassFiles) -> bool:
    """Drop runs of a class that were made of other files, and their pictures; whether there were any."""
    own = [run for run in results.runs.values() if run.category == category and run.dataset != "speed"]
    others = [run.key for run in own if not run.is_of(files.digest, files.n_train, files.n_test)]
    for key in others:
        del results.runs[key]
    if others:
        (plan.output / "galleries" / f"{category}.jpg").unlink(missing_ok=True)
    return bool(others)


def _once(on_bad: OnBad) -> OnBad:
    """Passes each image on once, however often it is read."""
    told: set[str] = set()

    def tell(error: ImageError) -> None:
        if error.name not in told:
            told.add(error.name)
            on_bad(error)

    return tell


def _n_images(plan: Plan, group: Group, files: ClassFiles) -> int:
    """Images that a group's runs and its backbones' passes over shared features read."""
    made = [system.make(seed, plan.inputs[group.dataset])[0] for system, seed in group.todo]
    n_backbones = len({_backbone_key(model) for model in made if isinstance(model, PaDiM)})
    return files.n_images * (len(group.todo) + n_backbones)


def _backbone_key(model: PaDiM) -> tuple[object, ...]:
    return model.backbone, model.weights, model.pretrained, model.preprocessing


class _Share:
    """A share of the whole progress: it reports exactly its size, whatever the work reports."""

    def __init__(self, advance: Advance, size: int) -> None:
        self._advance, self._left = advance, size

    def __call__(self, images: int) -> None:
        images = min(images, self._left)
        self._left -= images
        if images:
            self._advance(images)

    def finish(self) -> None:
        """Report the rest."""
        self(self._left)


def _measure_footprints(plan: Plan, results: Results, outcome: Outcome, tell: Tell) -> None:
    """Tables VII and VIII, and how they depend on the number of good images."""
    known = systems_without_data() if plan.known is None else plan.known
    rows = [(name, "", plan.n_images) for name in PAPER_TABLES["VIII"].rows if name in known]
    rows += [(name, str(n_images), n_images) for name in GROWING if name in known for n_images in plan.growth]
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

    def __init__(
        self,
        plan: Plan,
        results: Results,
        outcome: Outcome,
        advance: Advance,
        on_bad: OnBad | None,
        unreadable: dict[Path, ImageError],
    ) -> None:
        self._plan, self._results, self._outcome, self._advance = plan, results, outcome, advance
        self._on_bad, self._unreadable = on_bad, unreadable
        self._features: dict[tuple[object, ...], SharedFeatures | FlawmapError] = {}
        self._shown: str | None = None

    def run(self, group: Group, files: ClassFiles) -> None:
        """All runs of the group; a failure is noted, and the other runs go on."""
        whole = _Share(self._advance, _n_images(self._plan, group, files))
        self._advance = whole
        try:
            self._run_all(group, files)
        except FlawmapError as error:
            if isinstance(error, ImageError):  # no other system could read it either
                self._unreadable[group.path] = error
            self._outcome.failures[f"{group.dataset} {group.path.name}"] = str(error)
        finally:
            self._drop_features()
            whole.finish()

    def _run_all(self, group: Group, files: ClassFiles) -> None:
        if group.path in self._unreadable:
            raise self._unreadable[group.path]
        stride = self._plan.settings.stride
        images = read_class(group.dataset, group.path, seed=group.image_seed, stride=stride, on_bad=self._on_bad)
        names = [system.name for system, _ in group.todo]
        self._shown = next((name for name in FOR_GALLERY if name in names), names[0])
        for system, seed in group.todo:
            share = _Share(self._advance, files.n_images)
            try:
                images = self._run_readable(images, system, seed, files.digest, share)
            except ImageError:
                raise
            except FlawmapError as error:
                where = system.name if isinstance(error, BackboneError) else f"{system.name}, {images.name}"
                self._outcome.failures[where] = str(error)
            share.finish()

    def _run_readable(
        self, images: ClassImages, system: System, seed: int, digest: str, advance: Advance
    ) -> ClassImages:
        """Run; if an image cannot be read, run without all such images. Returns the images used."""
        try:
            self._run(images, system, seed, digest, advance)
        except ImageError:
            if self._on_bad is None:
                raise
            images = readable(images, self._on_bad)
            self._drop_features()
            self._run(images, system, seed, digest, advance)
        return images

    def _run(self, images: ClassImages, system: System, seed: int, digest: str, advance: Advance) -> None:
        detectors = system.make(seed, self._plan.inputs[images.dataset])
        padims = [detector for detector in detectors if isinstance(detector, PaDiM)]
        shared = self._share(images, padims[0]) if len(padims) == len(detectors) else None
        started = time.perf_counter()
        scores = RunScores()
        gallery = Gallery.of(images) if self._wants_gallery(images, system) else None
        if shared:
            scored = self._score_shared(images, padims, shared, advance)
        else:
            scored = self._score_each(images, detectors, advance)
        for index, score, anomaly_map, mask in scored:
            scores.add(score, anomaly_map, mask, is_anomalous=images.is_anomalous(index))
            if gallery is not None and anomaly_map is not None:
                gallery.take(index, score, anomaly_map)
        if gallery is not None:
            folder = self._plan.output / "galleries"
            folder.mkdir(exist_ok=True)
            gallery.save(folder / f"{images.name}.jpg", detectors[0].preprocessing, f"{images.name}: {system.name}")
            self._shown = None
        run = Run(
            images.dataset,
            images.name,
            system.name,
            seed,
            scores.figures(),
            n_train=len(images.train),
            n_test=len(images.test),
            curves=scores.curves(),
            seconds=round(time.perf_counter() - started, 2),
            data=digest,
            n_without_mask=scores.n_without_mask,
            n_skipped=images.n_skipped,
        )
        self._results.append(run)
        self._outcome.n_done += 1

    def _score_shared(
        self, images: ClassImages, models: Sequence[PaDiM], features: SharedFeatures, advance: Advance
    ) -> Iterator[Scored]:
        for index, anomaly_map in score_shared(models, features, advance):
            mask = images.mask(index, features.preprocessing, features.placement(index))
            yield index, float(anomaly_map.max()), anomaly_map, mask

    def _score_each(self, images: ClassImages, detectors: Sequence[Detector], advance: Advance) -> Iterator[Scored]:
        """Any one detector, by the interface of all detectors."""
        [detector] = detectors
        detector.fit(list(images.train))
        advance(len(images.train))
        for index, prediction in enumerate(detector.iter_predict(list(images.test))):
            mask = images.mask(index, detector.preprocessing, prediction.placement)
            yield index, prediction.pred_score, prediction.anomaly_map, mask
            advance(1)

    def _share(self, images: ClassImages, model: PaDiM) -> SharedFeatures:
        """Features of a model's backbone; those of one backbone at a time are kept."""
        key = _backbone_key(model)
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
            steady_backbone(model, len(images.train) + len(images.test)),
            model.preprocessing,
            folder=self._plan.output,
            limit_bytes=int(min(self._plan.limit_gb * 1e9, shutil.disk_usage(self._plan.output).free / 2)),
        )
        features.compute(self._advance)
        return features

    def _drop_features(self) -> None:
        self._features = {key: kept for key, kept in self._features.items() if isinstance(kept, FlawmapError)}

    def _wants_gallery(self, images: ClassImages, system: System) -> bool:
        """One picture of each class, unless it exists."""
        if images.dataset == RD or system.name != self._shown:
            return False
        return not (self._plan.output / "galleries" / f"{images.name}.jpg").exists()
