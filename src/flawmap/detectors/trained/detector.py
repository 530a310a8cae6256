"""What the detectors that train a network have in common: one fit, one calibration, one kind of model file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawmap.backbones import NETWORKS, Runtime, pick_device
from flawmap.datasets import training_images
from flawmap.decision import FALSE_ALARM_RATE, PIXEL_RATES, Decision, PixelHistogram, judge
from flawmap.detectors import passes
from flawmap.detectors.detector import OnBad
from flawmap.detectors.presets import preset_arguments
from flawmap.detectors.trained import file as trained_file
from flawmap.detectors.trained.images import ReplayedImages, Split, crop, split_images
from flawmap.detectors.trained.pixels import GoodImages
from flawmap.detectors.trained.plan import Paper, Plan, check_parameters
from flawmap.detectors.trained.training import Schedule, Trainee, TrainingRecord, train
from flawmap.errors import NotFittedError, ParameterError, TrainingError
from flawmap.images import ImageInput, ImageSource, Loaded, Preprocessing, Replay, collect, stream
from flawmap.model_file import ModelFile, TrainedDocument
from flawmap.prediction import Prediction, Size
from flawmap.progress import Progress, report_progress

__all__ = ["TrainedDetector"]

SHOWN = 32
"""Training images whose scores set the colours of a model that was not calibrated."""

Scorer = TypeVar("Scorer", bound=nn.Module)


class TrainedDetector(ABC, Generic[Scorer]):
    """Trains a network on good images alone; scores new ones by it. Each subclass follows one paper.

    Arguments that are None are the paper's.

    Args:
        resize: the whole image is resized to this size, an int or (height, width).
        crop: centre crop after that, an int or (height, width); what it cuts off is not inspected. If `resize` is given
            and `crop` is not, nothing is cropped.
        aspect: "squash" fills `resize`; "letterbox" keeps the proportions and pads.
        width: size of the network, for quick ones; the detector says of what.
        seed: fixes the first weights, the order of the images and every random number.
        epochs, batch_size, learning_rate: of the training.
        budget: minutes that the training may take; it then ends wherever it is.
        steps: steps that the training may take, to repeat what a budget came to: the same steps, the same weights.
        patience: epochs without a lower mean loss (on training images) that end the training; None: never.
        device: "auto" takes a GPU where there is one, and trains there in mixed precision.
        precision: "bfloat16" trains in mixed precision on the CPU too.
        calibrate: "holdout" learns from three quarters of the good images and scores the rest, for a threshold that
            keeps its promise; None learns from all and leaves scores without a decision. (Leaving one image out would
            mean to train once for each.)
        false_alarm_rate: share of good images that may be flagged.
        groups: what belongs together, and is held out together; see `PaDiM`.
        checkpoint: a file that keeps the training after every epoch; if it exists, the training goes on from it.
        cache_mb: memory for good images; those beyond it are read from their files again at each step.
        workers: threads that read images; None for one per processor, at most eight.

    Attributes after `fit`:
        n_images_: number of good images learnt from. record_: what the training came to.
        decision_: scores of the images held out, and thresholds; None if not calibrated, or if none were held out.
        outliers_: names of held-out images that look unlike the others.
        copies_: names of good images that equal an earlier one. The last two are not saved.
    """

    kind: ClassVar[Literal["vae", "patch-svdd", "ganomaly", "itae"]]
    paper: ClassVar[Paper]
    localises: ClassVar[bool]
    trains_on_whole: ClassVar[bool] = False
    """Whether the training crops images itself."""

    def __init__(
        self,
        *,
        resize: int | Size | None = None,
        crop: int | Size | None = None,
        aspect: Literal["squash", "letterbox"] = "squash",
        width: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        budget: float | None = None,
        steps: int | None = None,
        patience: int | None = None,
        device: torch.device | str = "auto",
        precision: Literal["float32", "bfloat16"] = "float32",
        calibrate: Literal["holdout"] | None = "holdout",
        false_alarm_rate: float = FALSE_ALARM_RATE,
        groups: str | Callable[[str], Hashable] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        cache_mb: float = 1024,
        workers: int | None = None,
    ) -> None:
        self.resize = resize
        self.crop = crop
        self.aspect = aspect
        self.width = width
        self.seed = seed
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.budget = budget
        self.steps = steps
        self.patience = patience
        self.device = device
        self.precision = precision
        self.calibrate = calibrate
        self.false_alarm_rate = false_alarm_rate
        self.groups = groups
        self.checkpoint = checkpoint
        self.cache_mb = cache_mb
        self.workers = workers
        self.decision_: Decision | None = None
        self.outliers_: tuple[str, ...] = ()
        self.copies_: tuple[str, ...] = ()
        self._scorer: Scorer | None = None

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:  # noqa: ANN401 (the arguments of __init__)
        """A detector as its paper trains it; `changes` are further arguments, such as `budget`."""
        return cls(**{**preset_arguments(cls.kind, preset), **changes})

    @classmethod
    @abstractmethod
    def build_scorer(cls, width: int, input_size: Size, n_images: int) -> Scorer:
        """The network that scores, untrained, for what `n_images` images were learnt; refuses sizes it cannot take.

        Raises ParameterError.
        """

    @abstractmethod
    def _trainee(self, scorer: Scorer, images: GoodImages, plan: Plan) -> Trainee:
        """The scorer's network with what it learns from and by."""

    def _complete(self, scorer: Scorer, images: ReplayedImages, device: torch.device) -> None:
        """Learn what is not trained, from the images that were learnt."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        if self.resize is None:
            crop = self.paper.crop if self.crop is None else self.crop
            return Preprocessing.of(self.paper.resize, crop, self.aspect)
        return Preprocessing.of(self.resize, self.crop, self.aspect)

    def fit(self, images: ImageInput, *, progress: Progress = False, on_bad: OnBad | None = None) -> Self:
        """Learn from good images: read, train, calibrate. The arguments are those of `PaDiM.fit`.

        Raises TrainingSetError for fewer than two images, TrainingError for a training that breaks down.
        """
        preprocessing = self.preprocessing
        device = pick_device(self.device)
        self.blank_scorer(2, device="meta")  # refuses what cannot be before anything is read
        collection = collect(training_images(images) if isinstance(images, (str, os.PathLike)) else images)
        whole = Preprocessing(preprocessing.resize, None, preprocessing.aspect)
        replay = Replay(collection.items, whole, cache_mb=self.cache_mb, on_bad=on_bad, workers=self.workers)
        split = split_images(
            replay,
            collection.count,
            hold_out=self.calibrate is not None,
            groups=self.groups,
            seed=self.seed,
            progress=progress,
        )
        n_images = len(split.learnt)
        batch_size = self.batch_size or self.paper.batch_size
        plan = Plan(
            self.width or self.paper.width,
            preprocessing.input_size,
            batch_size,
            self.learning_rate or self.paper.learning_rate,
            self.paper.epoch_steps(n_images, batch_size),
            self.seed,
            device,
        )
        window = None if self.trains_on_whole else preprocessing
        scorer = self.blank_scorer(n_images).to(device)
        record = self._train(scorer, ReplayedImages(replay, split.learnt, window), plan, split, progress)
        self._complete(scorer.eval(), ReplayedImages(replay, split.learnt, preprocessing), device)
        self._scorer, self.n_images_, self.record_ = scorer, n_images, record
        self.usual_score_ = self._usual_score(ReplayedImages(replay, split.learnt[:SHOWN], preprocessing))
        self.copies_ = split.copies
        self._calibrate(replay, split, progress)
        return self

    def predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None
    ) -> Prediction | list[Prediction]:
        """Score one image (a Prediction) or many (a list in input order); input and `on_bad` as in `fit`."""
        collection = collect(images)
        predictions = list(self._predict(collection.items, on_bad, batch_size))
        return predictions[0] if collection.single and predictions else predictions

    def iter_predict(
        self, images: ImageInput, *, on_bad: OnBad | None = None, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """Score images one after the other, in input order, in bounded memory; input and `on_bad` as in `fit`."""
        return self._predict(collect(images).items, on_bad, batch_size)

    @property
    def scorer_(self) -> Scorer:
        """The network: images (B, H, W, 3) uint8 at the input size to maps, where there are any, and scores."""
        if self._scorer is None:
            raise NotFittedError(
                f"this {type(self).__name__} has learnt nothing yet; call fit(good_images), or flawmap.load(path)"
            )
        return self._scorer

    @property
    def threshold_(self) -> float:
        """Image scores above it are labelled anomalous."""
        return self._calibrated().threshold

    def set_threshold(
        self,
        *,
        false_alarm_rate: float | None = None,
        value: float | None = None,
        pixel_false_alarm_rate: float | None = None,
    ) -> Self:
        """Decide otherwise, without fitting again: by a promised rate, or by a score, for which nothing is promised."""
        self.decision_ = self._calibrated().changed(
            false_alarm_rate=false_alarm_rate, value=value, pixel_false_alarm_rate=pixel_false_alarm_rate
        )
        return self

    @property
    def map_scale(self) -> tuple[float, float] | None:
        """Map values shown as coolest and hottest, the same for every image; None for a detector without maps.

        They are `Decision.map_scale`; a model that was not calibrated shows 1 to 4 times the median score of what it
        has learnt.
        """
        if not self.localises:
            return None
        if self.decision_ is not None:
            return self.decision_.map_scale
        return self.usual_score_, 4 * self.usual_score_

    def describe(self) -> dict[str, object]:
        """What the model is and what it was fitted on, as plain JSON values."""
        return self._document().model_dump(mode="json")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file atomically."""
        ModelFile.write(path, self._document(), trained_file.pack(self.scorer_, self.decision_))

    @classmethod
    def from_file(
        cls,
        file: ModelFile[TrainedDocument],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "auto",
        runtime: Runtime = "auto",  # noqa: ARG003 (its networks are run by torch)
    ) -> Self:
        """The model of an opened file, which holds all its weights; ParameterError if others are given."""
        if weights is not None:
            raise ParameterError(f"{file.path}: holds the network that was trained, and takes no other weights")
        return trained_file.unpack(cls, file, pick_device(device))

    def blank_scorer(self, n_images: int, *, device: str = "cpu") -> Scorer:
        """An untrained scorer of the shapes of a model that learnt so many images; on "meta" it has nothing else.

        Raises ParameterError for parameters that cannot be.
        """
        check_parameters(self)
        self._schedule(1)  # refuses one that cannot be
        with torch.random.fork_rng(devices=[]), torch.device(device):  # the caller's generator is left alone
            torch.manual_seed(self.seed)
            return self.build_scorer(self.width or self.paper.width, self.preprocessing.input_size, n_images)

    def restore(
        self, scorer: Scorer, *, n_images: int, record: TrainingRecord, usual_score: float, decision: Decision | None
    ) -> None:
        """Become the fitted model that a file has kept."""
        self._scorer, self.n_images_, self.record_ = scorer, n_images, record
        self.usual_score_, self.decision_ = usual_score, decision

    def _document(self) -> TrainedDocument:
        return trained_file.describe_model(self)

    def _schedule(self, epoch_steps: int) -> Schedule:
        epochs = self.paper.epochs if self.epochs is None else self.epochs
        return Schedule(epochs, epoch_steps, self.budget, self.steps, self.patience)

    def _train(
        self, scorer: Scorer, images: ReplayedImages, plan: Plan, split: Split, progress: Progress
    ) -> TrainingRecord:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            trainee = self._trainee(scorer, images, plan)
        settings: dict[str, Any] = {
            "detector": self.kind,
            "width": plan.width,
            "input_size": list(plan.input_size),
            "batch_size": plan.batch_size,
            "learning_rate": plan.learning_rate,
            "seed": self.seed,
            "precision": self.precision,
            "images": split.digest,
        }
        return train(
            trainee,
            self._schedule(plan.epoch_steps),
            device=plan.device,
            precision=self.precision,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint).expanduser(),
            settings=settings,
            progress=progress,
        )

    def _usual_score(self, images: ReplayedImages) -> float:
        scores = [self._run(batch)[1] for batch in images.batches(self._predict_batch())]
        return float(np.median(np.concatenate(scores)))

    def _calibrate(self, replay: Replay, split: Split, progress: Progress) -> None:
        """Score the images that were held out."""
        self.decision_, self.outliers_ = None, ()
        places = [place for group in split.held_out for place in group]
        if not places:
            return
        sizes = np.repeat([len(group) for group in split.held_out], [len(group) for group in split.held_out])
        order = np.argsort(places)
        places, pixels, scores = [places[i] for i in order], PixelHistogram(), []
        loaded = (crop(image, self.preprocessing) for image in replay.second(places))
        with report_progress(progress, "Calibrating", len(places)) as advance:
            for batch in passes.batches(loaded, self._predict_batch()):
                for image, anomaly_map, score in self._score(batch):
                    if anomaly_map is not None:
                        top, left, bottom, right = image.placement.content
                        pixels.add(anomaly_map[top:bottom, left:right])
                    scores.append(score)
                advance(len(batch))
        decision = Decision(
            np.array(scores, np.float32),
            pixels.exceeded_by(PIXEL_RATES) if self.localises else np.zeros(0, np.float32),
            group_sizes=sizes[order].astype(np.float32) if sizes.max() > 1 else None,
        )
        self.decision_ = decision.at_rate(self.false_alarm_rate)
        self.outliers_ = tuple(replay.names[places[i]] for i in decision.outliers())

    def _calibrated(self) -> Decision:
        if self.decision_ is None:
            _ = self.scorer_
            raise NotFittedError(
                f"this {type(self).__name__} was not calibrated: fit it with calibrate='holdout' on at least 3 good "
                f"images"
            )
        return self.decision_

    def _predict_batch(self) -> int:
        return max(1, passes.batch_size(self.preprocessing.input_size) // 4)

    def _predict(
        self, items: Iterable[ImageSource], on_bad: OnBad | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        _ = self.scorer_
        loaded = stream(items, self.preprocessing, on_bad=on_bad, workers=self.workers)
        for batch in passes.batches(loaded, batch_size or self._predict_batch()):
            maps, scores = self._run(passes.pixels_of(batch))
            yield from judge(batch, maps, scores if maps is None else None, self.decision_)

    def _score(self, batch: Sequence[Loaded]) -> Iterator[tuple[Loaded, NDArray[np.float32] | None, float]]:
        """Each image with its map, where there is one, and its score; a map leaves the padding of a letterbox out."""
        maps, scores = self._run(np.stack([image.pixels for image in batch]))
        for number, image in enumerate(batch):
            if maps is None:
                yield image, None, float(scores[number])
                continue
            passes.blank_padding(torch.from_numpy(maps[number]), image.placement.content)
            yield image, maps[number], float(maps[number].max())

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Maps (B, H, W), if there are any, and scores (B,)."""
        scorer = self.scorer_
        device = next(scorer.parameters()).device
        with NETWORKS:
            outputs: tuple[Tensor, ...] = scorer(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        *maps, scores = (output.cpu().numpy() for output in outputs)
        if not all(np.isfinite(values).all() for values in (*maps, scores)):  # NaN would pass for good
            raise TrainingError(
                f"the trained network's scores are not finite: the training broke down. Train anew, with a lower "
                f"learning rate{self._without_checkpoint()}"
            )
        return (maps[0] if maps else None), scores

    def _without_checkpoint(self) -> str:
        """That a checkpoint of a training that broke down is to be deleted, where there may be one."""
        return "" if self.checkpoint is None else f", and delete {self.checkpoint} first"
