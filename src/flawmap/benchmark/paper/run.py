"""The paper's evaluation: every system on every class that is there, one run after the other, resumable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from flawmap.benchmark.paper.class_images import RD, ClassImages, open_class, readable, rotated
from flawmap.benchmark.paper.footprint import GROWING, measure_footprint
from flawmap.benchmark.paper.gallery import Gallery
from flawmap.benchmark.paper.plan import Group, Plan, asked_classes, class_paths, classes_on_disk, groups, left_out
from flawmap.benchmark.paper.published import PAPER_TABLES
from flawmap.benchmark.paper.results import Results, Run
from flawmap.benchmark.paper.scores import run_curves, run_figures
from flawmap.benchmark.paper.shared_features import Advance, SharedFeatures, SharedModels, steady_backbone
from flawmap.benchmark.paper.systems import System, systems_without_data
from flawmap.decision import Decision
from flawmap.detectors import Detector, PaDiM
from flawmap.errors import BackboneError, DatasetError, FlawmapError, ImageError
from flawmap.evaluation.figures import ImageGroup
from flawmap.images import describe_passed_over
from flawmap.options import OnBad
from flawmap.prediction import Prediction
from flawmap.progress import Progress, report_progress

FOR_GALLERY = ("Rd100", "all")
"""Systems for the pictures of heat maps: the first of them that is run, or else any other."""

Tell = Callable[[str], None]


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
    worker = _Worker(plan, results, outcome, tell, on_bad and _once(on_bad))
    if names != {"speed"}:
        outcome.on_disk = classes_on_disk(plan)
        outcome.asked = asked_classes(plan)
        outcome.left_out = left_out(plan)
        worker.measure_classes(progress)
    if "speed" in names:
        worker.measure_footprints()
    outcome.runs = list(results.runs.values())
    return outcome


def _once(on_bad: OnBad) -> OnBad:
    """Passes each image on once, however often it is read."""
    told: set[str] = set()

    def tell(error: ImageError) -> None:
        if error.name not in told:
            told.add(error.name)
            on_bad(error)

    return tell


@contextmanager
def _share(advance: Advance, size: int) -> Iterator[Advance]:
    """A share of the whole progress: it reports exactly its size, whatever fails or is done twice."""
    left = size

    def report(images: int) -> None:
        nonlocal left
        images = min(images, left)
        left -= images
        if images:
            advance(images)

    try:
        yield report
    finally:
        report(left)


def _backbone_key(model: PaDiM) -> tuple[object, ...]:
    return model.backbone, model.weights, model.pretrained, model.preprocessing


class _Worker:
    """Makes the runs."""

    def __init__(self, plan: Plan, results: Results, outcome: Outcome, tell: Tell, on_bad: OnBad | None) -> None:
        self._plan, self._results, self._outcome, self._tell, self._on_bad = plan, results, outcome, tell, on_bad
        self._features: tuple[object, SharedFeatures | BackboneError] | None = None

    def measure_footprints(self) -> None:
        """Tables VII and VIII, and how they depend on the number of good images."""
        known = systems_without_data() if self._plan.known is None else self._plan.known
        rows = [(name, "", self._plan.n_images) for name in PAPER_TABLES["VIII"].rows if name in known]
        rows += [(name, str(n), n) for name in GROWING if name in known for n in self._plan.growth]
        for name, category, n_images in rows:
            if ("speed", category, name, 0) in self._results.runs:
                continue
            self._tell(f"time and memory of {name}, {n_images} good images")
            try:
                figures = measure_footprint(known[name], n_images=n_images)
            except FlawmapError as error:
                self._outcome.failures[f"{name}, time and memory"] = str(error)
            else:
                self._append(Run("speed", category, name, 0, figures, n_images))

    def measure_classes(self, progress: Progress) -> None:
        """All other tables, class by class."""
        classes = {images.path: images for images in self._open_classes()}
        todo = list(groups(self._plan, list(classes), self._results.runs))
        sizes = [self._n_images(group, classes[group.path]) for group in todo]
        with report_progress(progress, "Images", sum(sizes)) as advance:
            for group, size in zip(todo, sizes, strict=True):
                rotations = f", rotations {group.image_seed}" if group.dataset == RD else ""
                self._tell(f"{group.dataset} {group.path.name}{rotations}")
                with _share(advance, size) as part:
                    self._run_group(group, replace(classes[group.path], _packed={}), part)

    def _open_classes(self) -> Iterator[ClassImages]:
        """Classes on disk; runs that were made of other files are dropped, and their pictures."""
        for path in class_paths(self._plan):
            try:
                images = open_class(self._plan.dataset, path, stride=self._plan.settings.stride)
            except FlawmapError as error:
                self._outcome.failures[f"{self._plan.dataset} {path.name}"] = str(error)
                continue
            if images.passed_over:
                self._tell(f"{path.name}: {describe_passed_over(images.passed_over)}")
            own = [run for run in self._results.runs.values() if run.category == path.name and run.dataset != "speed"]
            others = [run for run in own if not run.is_of(images.digest, len(images.train), len(images.test))]
            if others:
                for run in others:
                    del self._results.runs[run.key]
                self._picture(path.name).unlink(missing_ok=True)
                self._tell(f"{path.name}: its files have changed since earlier runs, which are repeated")
            yield images

    def _n_images(self, group: Group, images: ClassImages) -> int:
        """Images that a group's runs and its backbones' passes over shared features read."""
        made = [system.make(seed, self._plan.inputs[group.dataset])[0] for system, seed in group.todo]
        n_backbones = len({_backbone_key(model) for model in made if isinstance(model, PaDiM)})
        return len(images.sources) * (len(group.todo) + n_backbones)

    def _run_group(self, group: Group, images: ClassImages, advance: Advance) -> None:
        """All runs of the group; a failure is noted, and the other runs go on."""
        failures = self._outcome.failures
        names = [system.name for system, _ in group.todo]
        pictured: str | None = next((name for name in FOR_GALLERY if name in names), names[0])
        try:
            if group.dataset == RD:
                pictured = None
                if (reason := failures.get(f"{self._plan.dataset} {images.name}")) is not None:
                    raise DatasetError(reason)  # an image that no system can read
                stride = self._plan.settings.stride
                images = rotated(images, seed=group.image_seed, stride=stride, on_bad=self._on_bad)
            for system, seed in group.todo:
                try:
                    images = self._run_readable(images, system, seed, advance, with_picture=system.name == pictured)
                except ImageError:
                    raise
                except FlawmapError as error:
                    where = system.name if isinstance(error, BackboneError) else f"{system.name}, {images.name}"
                    failures[where] = str(error)
        except FlawmapError as error:
            failures[f"{group.dataset} {images.name}"] = str(error)
        finally:
            self._features = None

    def _run_readable(
        self, images: ClassImages, system: System, seed: int, advance: Advance, *, with_picture: bool
    ) -> ClassImages:
        """Run; if an image cannot be read, run without all such images. Returns the images used."""
        try:
            self._run(images, system, seed, advance, with_picture=with_picture)
        except ImageError:
            if self._on_bad is None:
                raise
            images = readable(images, self._on_bad)
            self._run(images, system, seed, advance, with_picture=with_picture)
        return images

    def _run(self, images: ClassImages, system: System, seed: int, advance: Advance, *, with_picture: bool) -> None:
        detectors = system.make(seed, self._plan.inputs[images.dataset])
        padims = [detector for detector in detectors if isinstance(detector, PaDiM)]
        shared = self._share_features(images, padims[0], advance) if len(padims) == len(detectors) else None
        started = time.perf_counter()
        good, anomalous = ImageGroup(is_anomalous=False), ImageGroup(is_anomalous=True)
        picture = self._picture(images.name)
        gallery = Gallery(images.test) if with_picture and not picture.exists() else None
        if shared is not None:
            models = SharedModels(padims, shared, advance)
            decision, predictions = models.held_out(), models.predictions(advance)
        else:
            [detector] = detectors
            decision, predictions = _fit(detector, images, advance), _score(detector, images, advance)
        for index, prediction in enumerate(predictions):
            mask = images.mask(index, detectors[0].preprocessing, prediction.placement)
            group = anomalous if images.test[index].is_anomalous else good
            group.add(prediction.pred_score, prediction.anomaly_map, mask)
            if gallery is not None:
                gallery.take(index, prediction)
        if gallery is not None:
            gallery.save(picture, f"{images.name}: {system.name}")
        run = Run(
            images.dataset,
            images.name,
            system.name,
            seed,
            run_figures(good, anomalous, decision),
            n_train=len(images.train),
            n_test=len(images.test),
            curves=run_curves(good, anomalous),
            seconds=round(time.perf_counter() - started, 2),
            data=images.digest,
            n_without_mask=anomalous.n_without_mask,
            n_skipped=images.n_skipped,
        )
        self._append(run)

    def _share_features(self, images: ClassImages, model: PaDiM, advance: Advance) -> SharedFeatures:
        """Features of a model's backbone; those of one backbone at a time are kept, or why there are none."""
        key = images, _backbone_key(model)
        if self._features is None or self._features[0] != key:
            self._features = None  # makes room first
            try:
                features = SharedFeatures(
                    images,
                    steady_backbone(model, len(images.sources)),
                    model.preprocessing,
                    folder=self._plan.output,
                    limit_bytes=int(min(self._plan.limit_gb * 1e9, shutil.disk_usage(self._plan.output).free / 2)),
                )
                features.compute(advance)
                self._features = key, features
            except BackboneError as error:
                self._features = key, error
        found = self._features[1]
        if isinstance(found, BackboneError):
            raise found
        return found

    def _append(self, run: Run) -> None:
        self._results.append(run)
        self._outcome.n_done += 1

    def _picture(self, category: str) -> Path:
        return self._plan.output / "galleries" / f"{category}.jpg"


def _fit(detector: Detector, images: ClassImages, advance: Advance) -> Decision | None:
    """Fit any one detector, by the interface of all detectors; gives its held-out scores, if it has some."""
    detector.fit(list(images.train))
    advance(len(images.train))
    return detector.decision_


def _score(detector: Detector, images: ClassImages, advance: Advance) -> Iterator[Prediction]:
    """A prediction of every test image."""
    for prediction in detector.iter_predict([image.source for image in images.test]):
        yield prediction
        advance(1)
