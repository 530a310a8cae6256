"""What the detectors that train a network share: one fit, one calibration, one kind of model file."""

from __future__ import annotations

import copy
import math
import os
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from flawmap.backbones import NETWORKS, pick_device
from flawmap.detectors.batches import Batch, batch_size
from flawmap.detectors.calibration import HeldOutScores
from flawmap.detectors.detector import Detector
from flawmap.detectors.document import Record, Stored
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.parameters import CacheMegabytes, GroupRule, whole_number
from flawmap.detectors.trained.images import TrainingImages
from flawmap.detectors.trained.training import Schedule, Trainee, TrainingRecord, train
from flawmap.errors import ParameterError, TrainingError, TrainingSetError
from flawmap.model_file import Streamed
from flawmap.options import FactorDtype, Precision
from flawmap.prediction import Size

MAX_WIDTH = 4096
MAX_SIDE = 4096
LEAST_BATCH = 2
"""Batch normalisation learns from the spread within a batch."""
SHOWN = 32
"""Training images whose scores set the colours of a model that was not calibrated."""
NETWORK = "network."

Scorer = TypeVar("Scorer", bound=nn.Module)


class TrainingSummary(Record):
    """What a training came to.

    Attributes:
        steps, minutes: what was done. stopped: what ended it.
        final_loss: mean training loss of the last whole epoch.
    """

    steps: int = Field(ge=0)
    minutes: float = Field(ge=0)
    stopped: Literal["schedule", "budget", "plateau"]
    final_loss: float


class LearntRecord(Record):
    """What the document keeps: how the training went, and the median score of some training images."""

    training: TrainingSummary
    usual_score: float = Field(ge=0)


def _check_checkpoint(path: str | os.PathLike[str] | None) -> str | os.PathLike[str] | None:
    if path is not None:
        file = Path(path).expanduser()
        try:
            may_be = file.absolute().parent.is_dir() and not file.is_dir()
        except OSError:  # a name that is too long
            may_be = False
        if not may_be:
            raise ValueError(f"checkpoint must name a file in a folder that is there, got {path}")
    return path


class TrainedDetector(Detector, Generic[Scorer]):
    """Trains a network on good images alone; scores new ones by it. Each subclass follows one paper.

    If `resize` is given and `crop` is not, nothing is cropped. A training runs in mixed precision on a GPU. Leaving one
    image out would need a training for each, so one group of four is held out for calibration.

    Attributes after `fit`, beside those of every detector:
        record_: what the training came to. usual_score_: median score of some training images.

    Example:
        >>> from flawmap import VAE
        >>> VAE().epoch_steps(n_images=320)
        313
    """

    name = ""
    reads_whole = True
    calibrations = ("holdout",)
    trains_on_whole: ClassVar[bool] = False
    """Whether the training crops images itself."""
    epoch_images: ClassVar[int | None] = None
    """Images of an epoch; None for all of them, `repeats` times."""
    repeats: ClassVar[int] = 1

    width: Annotated[int, whole_number(most=MAX_WIDTH), Field(description="Size of the network.")] = 64
    epochs: Annotated[int, whole_number(), Field(description="Epochs of the training, at most.")] = 100
    batch_size: Annotated[
        int, whole_number(least=LEAST_BATCH, most=2**16), Field(description="Images a step of the training.")
    ] = 32
    learning_rate: Annotated[float, Field(gt=0, lt=math.inf, description="Learning rate of the training.")] = 1e-4
    budget: Annotated[
        float | None, Field(description="Minutes that the training may last; it then ends wherever it is.")
    ] = None
    steps: Annotated[
        int | None,
        whole_number(),
        Field(description="Steps that the training may do: the same steps give the same weights."),
    ] = None
    patience: Annotated[
        int | None, whole_number(), Field(description="Epochs without a lower mean loss that end the training.")
    ] = None
    precision: Annotated[Precision, Field(description='"bfloat16" trains in mixed precision on the CPU too.')] = (
        "float32"
    )
    calibrate = "holdout"
    groups: Annotated[
        GroupRule,
        Field(
            description='Images that are held out together: "auto" by the data set, and exact copies; a regular '
            'expression, "folder", or a function. None: every image stands alone.'
        ),
    ] = "auto"
    checkpoint: Annotated[
        str | os.PathLike[str] | None,
        AfterValidator(_check_checkpoint),
        Field(exclude=True, description="File that keeps the training after every epoch, and from which it goes on."),
    ] = None
    cache_mb: Annotated[
        CacheMegabytes, Field(description="Memory for good images; the others are read again at each step.")
    ] = 1024

    def __init__(self, **parameters: Any) -> None:  # noqa: ANN401 (typed by the class's annotations)
        super().__init__(**parameters)
        if "resize" in self._given and "crop" not in self._given:
            self.crop = None

    @abstractmethod
    def build_scorer(self, input_size: Size, n_images: int) -> Scorer:
        """The network that scores, untrained, for what `n_images` images were learnt.

        Raises ParameterError for sizes it cannot have.
        """

    @abstractmethod
    def _trainee(self, scorer: Scorer, images: TrainingImages, device: torch.device) -> Trainee:
        """The scorer's network with what it learns from and by."""

    def _options(self, device: torch.device) -> dict[str, Any]:
        """What every training needs to know."""
        names = ("learning_rate", "batch_size", "seed")
        return {"device": device, **{name: getattr(self, name) for name in names}}

    def _complete(self, scorer: Scorer, images: TrainingImages, device: torch.device) -> None:
        """Learn what is not trained, from the images that were learnt."""

    @property
    def scorer_(self) -> Scorer:
        """The network: images (B, H, W, 3) uint8 at the input size to maps, where there are any, and scores."""
        self._check_fitted()
        return self._scorer

    def network(self, *, for_graph: bool = False) -> nn.Module:
        """The network that was trained."""
        return copy.deepcopy(self.scorer_).cpu() if for_graph else self.scorer_

    def epoch_steps(self, n_images: int) -> int:
        """Steps of an epoch of so many images."""
        return math.ceil((self.epoch_images or self.repeats * n_images) / self.batch_size)

    def _check(self) -> None:
        """Refuse what cannot be before anything is read."""
        super()._check()
        if max(self.preprocessing.input_size) > MAX_SIDE:
            raise ParameterError(
                f"{type(self).__name__} needs images of up to {MAX_SIDE} pixels a side, got "
                f"{self.preprocessing.input_size}; give a smaller resize or crop"
            )
        self._schedule(1)
        self._blank_scorer(2, device="meta")

    def _learn(self, good: GoodImages) -> HeldOutScores | None:
        """Read, train, calibrate. Raises TrainingSetError for fewer than two images, TrainingError for a breakdown."""
        device, window = pick_device(self.device), self.preprocessing.window
        for _ in good.first(batch_size(self.preprocessing.resize), "Reading"):
            pass
        _check_images(good)
        scorer = self._blank_scorer(len(good.learnt)).to(device)
        images = TrainingImages(good, good.learnt, None if self.trains_on_whole else window)
        record = self._train(scorer, images, good.digest, device, good)
        self._complete(scorer.eval(), TrainingImages(good, good.learnt, window), device)
        shown = TrainingImages(good, good.learnt[:SHOWN], window).batches(self._scored_at_once())
        usual_score = float(np.median(np.concatenate([self._run(scorer, pixels)[1] for pixels in shown])))
        held_out = self._calibrate(scorer, good) if self.calibrate else None
        self._scorer, self.record_, self.usual_score_ = scorer, record, usual_score
        return held_out

    def _calibrate(self, scorer: Scorer, good: GoodImages) -> HeldOutScores:
        """Scores of the images that were held out."""
        result, window = HeldOutScores(), self.preprocessing.window
        numbers = {index: number for number, group in enumerate(good.groups(held_out=True)) for index in group}
        with good.progress("Calibrating", len(numbers)) as advance:
            for batch in good.again(sorted(numbers), self._scored_at_once()):
                maps, scores = self._run(scorer, batch.pixels[:, window[0], window[1]])
                for i, (index, image) in enumerate(zip(batch.indices, batch.images, strict=True)):
                    if maps is None:
                        result.add(index, float(scores[i]), group=numbers[index])
                    else:
                        result.add_map(index, maps[i], image.placement, group=numbers[index])
                advance(len(batch.images))
        return result

    def _train(
        self, scorer: Scorer, images: TrainingImages, digest: str, device: torch.device, good: GoodImages
    ) -> TrainingRecord:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            trainee = self._trainee(scorer, images, device)
        settings: dict[str, Any] = {
            "detector": self.name,
            "width": self.width,
            "input_size": list(self.preprocessing.input_size),
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "precision": self.precision,
            "images": digest,
        }
        return train(
            trainee,
            self._schedule(self.epoch_steps(len(images))),
            device=device,
            precision=self.precision,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint).expanduser(),
            settings=settings,
            report=good.progress,
        )

    def _score(self, batch: Batch) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        maps, scores = self._run(self.scorer_, batch.pixels)
        return (None, scores) if maps is None else (maps, None)

    @torch.inference_mode()
    def _run(self, scorer: Scorer, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Maps (B, H, W), if there are any, and scores (B,)."""
        device = next(scorer.parameters()).device
        with NETWORKS:
            outputs: tuple[Tensor, ...] = scorer(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        *maps, scores = (output.cpu().numpy() for output in outputs)
        if maps and self.roi_ is not None:
            maps = [maps[0] * self.roi_]
            scores = maps[0].max(axis=(1, 2))
        if not all(np.isfinite(values).all() for values in (*maps, scores)):  # NaN would pass for good
            without = "" if self.checkpoint is None else f", and delete {self.checkpoint} first"
            raise TrainingError(
                f"the trained network's scores are not finite: the training broke down. Train again, with a lower "
                f"learning rate{without}"
            )
        return (maps[0] if maps else None), scores

    def _usual_scale(self) -> tuple[float, float]:
        """1 to 4 times the median score of some training images."""
        return self.usual_score_, 4 * self.usual_score_

    def _image_cache(self) -> float:
        return self.cache_mb

    def _scored_at_once(self) -> int:
        return max(1, batch_size(self.preprocessing.input_size) // 4)

    def _schedule(self, epoch_steps: int) -> Schedule:
        return Schedule(self.epochs, epoch_steps, self.budget, self.steps, self.patience)

    def _blank_scorer(self, n_images: int, *, device: str = "cpu") -> Scorer:
        """An untrained scorer of the shapes of a model that learnt so many images; on "meta" it has nothing else."""
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):  # the caller's generator is left alone
                torch.manual_seed(self.seed)
                return self.build_scorer(self.preprocessing.input_size, n_images)
        except (RuntimeError, OverflowError) as error:  # shapes that torch cannot make
            raise ParameterError(f"{self.name} cannot be built ({error})") from error

    def _learnt(self) -> dict[str, Any]:
        record = self.record_
        return LearntRecord(
            training=TrainingSummary(
                steps=record.steps,
                minutes=round(record.seconds / 60, 3),
                stopped=record.stopped,
                final_loss=record.final_loss,
            ),
            usual_score=self.usual_score_,
        ).model_dump(mode="json")

    def _tensors(self, dtype: FactorDtype) -> dict[str, Tensor | Streamed]:  # noqa: ARG002 (there are no factors)
        return {f"{NETWORK}{name}": value for name, value in _weights(self._scorer).items()}

    def _unpack(self, stored: Stored) -> None:
        learnt, n_images = stored.learnt(LearntRecord), stored.document.n_images
        blank = self._blank_scorer(n_images, device="meta")  # shapes alone first: a hostile file shall not claim memory
        tensors = stored.read({f"{NETWORK}{name}": tuple(value.shape) for name, value in _weights(blank).items()})
        scorer = self._blank_scorer(n_images)
        weights = {name.removeprefix(NETWORK): value for name, value in tensors.items() if name.startswith(NETWORK)}
        scorer.load_state_dict(weights, strict=False)
        training = learnt.training
        self._scorer, self.usual_score_ = scorer.to(stored.device).eval(), learnt.usual_score
        self.record_ = TrainingRecord(
            steps=training.steps, seconds=60 * training.minutes, losses=[training.final_loss], stopped=training.stopped
        )


def _check_images(good: GoodImages) -> None:
    """TrainingSetError for images that cannot be read again, and for too few."""
    if (lost := len(good.names) - len(good.replay.again)) > 0:
        raise TrainingSetError(
            f"{lost} of {len(good.names)} images came from an iterator and did not fit into cache_mb; a training reads "
            f"them many times: give files or a list, or a larger cache_mb"
        )
    if len(good.learnt) < 2:
        raise TrainingSetError(
            f"a network learns from at least 2 good images, got {len(good.learnt)} usable; a few dozen are a good start"
        )


def _weights(scorer: nn.Module) -> dict[str, Tensor]:
    """What the scores follow from: not the counters of normalisation layers."""
    return {name: value for name, value in scorer.state_dict().items() if not name.endswith("num_batches_tracked")}
