"""The training loop of the detectors that learn a network: seeded, resumable, bounded by a schedule and by time.

Step k of a training always sees the same images and the same random numbers: they follow from the seed and from k
alone. So a training that was killed and goes on from its checkpoint gives the weights of one that was not, and a
training that ran out of time is the beginning of a longer one: the same number of steps gives the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from flawmap.errors import ParameterError, TrainingError
from flawmap.files import replace_atomically
from flawmap.progress import report_progress
from flawmap.tensor_file import TensorFile

CHECKPOINT_SECONDS = 120.0
"""Longest time between two checkpoints, where an epoch takes longer."""
MOST_MINUTES = 10**7
LEAST_GAIN = 1e-3
"""Share by which an epoch's mean loss must fall below the best one to count as better."""
CHECKPOINT_VERSION = 2
"""Of a checkpoint. Version 1 had no checksum."""

Mixed = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a loss is computed, in 16 bits where that was asked for."""
Stopped = Literal["schedule", "budget", "plateau"]
Report = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


class Trainee(Protocol):
    """What is trained: networks with their optimisers, one step at a time."""

    @property
    def network(self) -> nn.Module:
        """Everything that has weights."""
        ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """One for each loss."""
        ...

    def step(self, number: int, mixed: Mixed) -> Tensor:
        """Do one step, numbered from 0, and give its loss; computed within `mixed()`, differentiated outside of it."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long to train.

    Attributes:
        epochs: epochs at most.
        epoch_steps: steps of an epoch.
        minutes: time at most, over all resumptions; the training then ends within an epoch. None for no limit.
        steps: steps at most, to repeat what a limit in minutes came to; None for no limit.
        patience: epochs without a better mean loss after which there is no more to learn; None to train on.
    """

    epochs: int
    epoch_steps: int
    minutes: float | None = None
    steps: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "epoch_steps", "steps", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ParameterError(f"{name} must be a number from 1, got {value!r}")
        is_time = isinstance(self.minutes, (int, float)) and 0 < self.minutes <= MOST_MINUTES
        if self.minutes is not None and not is_time:
            raise ParameterError(
                f"the budget must be a positive number of minutes up to {MOST_MINUTES}, got {self.minutes!r}"
            )

    @property
    def last_step(self) -> int:
        """Steps at most."""
        return min(self.epochs * self.epoch_steps, self.steps or self.epochs * self.epoch_steps)

    def ended(self, record: TrainingRecord) -> Stopped | None:
        """Why a training that has come so far is over; None if it goes on."""
        if record.steps >= self.last_step:
            return "schedule"
        if self.minutes is not None and record.seconds >= 60 * self.minutes:
            return "budget"
        if self.patience is not None and _epochs_without_gain(record.losses) >= self.patience:
            return "plateau"
        return None


@dataclass
class TrainingRecord:
    """What a training has come to.

    Attributes:
        steps: steps done.
        seconds: time they took.
        losses: mean loss of each whole epoch.
        pending: losses of the steps of an epoch that is not whole.
        stopped: what ended it: its schedule, its time, or a loss that falls no more.
    """

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    stopped: Stopped = "schedule"

    def add(self, loss: float, epoch_steps: int) -> None:
        """Take note of one more step."""
        self.steps += 1
        self.pending.append(loss)
        if len(self.pending) == epoch_steps:
            self.losses.append(math.fsum(self.pending) / epoch_steps)
            self.pending = []

    @property
    def final_loss(self) -> float:
        """Mean loss of the last whole epoch, or of what there was of the first."""
        return self.losses[-1] if self.losses else math.fsum(self.pending) / max(1, len(self.pending))


class Shuffle:
    """An endless order of images: each pass through all of them is shuffled anew, by the seed and the pass's number."""

    def __init__(self, n_images: int, seed: int) -> None:
        self._n_images, self._seed = n_images, seed
        self._orders: dict[int, NDArray[np.int64]] = {}

    def batch(self, step: int, size: int) -> list[int]:
        """Numbers of the images of a step; a batch larger than the set holds some of them again."""
        return [self._at(place) for place in range(step * size, (step + 1) * size)]

    def _at(self, place: int) -> int:
        number, within = divmod(place, self._n_images)
        if number not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old >= number - 1}
            self._orders[number] = np.random.default_rng([self._seed, 0, number]).permutation(self._n_images)
        return int(self._orders[number][within])


def random_numbers(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step."""
    return np.random.default_rng([seed, 1, step])


def torch_numbers(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, for torch, on the CPU."""
    number = np.random.default_rng([seed, 2, step]).integers(2**62)
    return torch.Generator().manual_seed(int(number))


def train(
    trainee: Trainee,
    schedule: Schedule,
    *,
    device: torch.device,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> TrainingRecord:
    """Train until the schedule, its time or the loss says stop; the weights are then those of the last step.

    Args:
        trainee: its network is left in evaluation mode.
        schedule: how long.
        device: where it trains. On a GPU losses are computed in mixed precision (bfloat16) where it has that.
        precision: "bfloat16" for mixed precision on the CPU too.
        checkpoint: a file written after every epoch, and every two minutes of a long one; if it exists, the training
            goes on from it. None keeps none.
        settings: what a checkpoint must have been written with, as plain JSON values.
        report: shows progress: a context, by description and total, that gives a function to call with what was done:
            steps, or seconds of a budget. None shows none.

    Raises TrainingError if the loss is no longer finite, if the checkpoint cannot be written, or if the one there is
    belongs to another training; the last good checkpoint stays in each case.
    """
    keeper = None if checkpoint is None else _Checkpoint(checkpoint, dict(settings or {}))
    record = TrainingRecord() if keeper is None else keeper.resume(trainee, schedule)
    total = schedule.last_step if schedule.minutes is None else math.ceil(60 * schedule.minutes)
    trainee.network.train()
    with (report or partial(report_progress, False))("Training", total) as advance:
        told, saved, started = 0, record.seconds, time.monotonic() - record.seconds
        while (stopped := schedule.ended(record)) is None:
            loss = float(trainee.step(record.steps, lambda: _mixed(device, precision)))
            if not math.isfinite(loss):
                raise _diverged(record.steps, keeper)
            record.add(loss, schedule.epoch_steps)
            record.seconds = time.monotonic() - started
            done = record.steps if schedule.minutes is None else min(total, int(record.seconds))
            if done > told:
                advance(done - told)
                told = done
            if keeper is not None and (not record.pending or record.seconds - saved > CHECKPOINT_SECONDS):
                keeper.write(trainee, record)
                saved = record.seconds
    record.stopped = stopped
    if keeper is not None and record.pending:
        keeper.write(trainee, record)
    if not _all_finite(trainee.network):
        raise _diverged(record.steps - 1, keeper)
    trainee.network.eval()
    return record


def _mixed(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    half = torch.cuda.is_bf16_supported() if device.type == "cuda" else precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext()


def _epochs_without_gain(losses: Sequence[float]) -> int:
    best, since = math.inf, 0
    for loss in losses:
        if loss < best - LEAST_GAIN * abs(best) or best == math.inf:
            best, since = loss, 0
        else:
            since += 1
    return since


def _all_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def _diverged(step: int, keeper: _Checkpoint | None) -> TrainingError:
    kept = "" if keeper is None or not keeper.path.exists() else f" The checkpoint before it is kept: {keeper.path}."
    return TrainingError(
        f"the training broke down at step {step + 1}: its loss or its weights are no longer finite.{kept} "
        f"Look at the images for ones that are all of one colour, or train with a lower learning rate"
    )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a checkpoint's document and of its tensors, by their names."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Checkpoint:
    """A file that holds a training half-way: weights, the optimisers' moments, and how far it is."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))

    def write(self, trainee: Trainee, record: TrainingRecord) -> None:
        """Write it, whole or not at all."""
        if not _all_finite(trainee.network):
            raise _diverged(record.steps - 1, self)
        document = {"version": CHECKPOINT_VERSION, "settings": self._settings, "record": asdict(record)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(trainee).items()}
        text = json.dumps(document, allow_nan=False)
        try:
            with replace_atomically(self.path) as temporary:
                save_file(tensors, temporary, {"training": text, "sha256": _checksum(text, tensors)})
        except (OSError, SafetensorError) as error:
            kept = "The one before is whole; make room" if self.path.exists() else "Make room"
            raise TrainingError(
                f"{self.path}: the checkpoint of step {record.steps} cannot be written "
                f"({getattr(error, 'strerror', None) or error}). {kept} and run the same again to go on"
            ) from error

    def resume(self, trainee: Trainee, schedule: Schedule) -> TrainingRecord:
        """Put the trainee where the file says, if there is one."""
        if not self.path.exists():
            return TrainingRecord()
        try:
            file = TensorFile(self.path)
            text = file.metadata["training"]
            document = json.loads(text)
            if document["version"] not in (1, CHECKPOINT_VERSION):
                raise self._refused(f"is of format {document['version']}, this flawmap reads {CHECKPOINT_VERSION}")
            self._check_settings(document["settings"])
            record = _checked_record(TrainingRecord(**document["record"]), schedule.epoch_steps)
            tensors = {name: entry.tensor(file.read(name)) for name, entry in file.entries.items()}
            checksum = file.metadata.get("sha256")
            if checksum != (None if document["version"] == 1 else _checksum(text, tensors)):
                raise ValueError("its checksum is wrong")
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise TrainingError(
                f"{self.path}: is no whole checkpoint of a training; name another file to keep it in, or delete this "
                f"one if nothing else needs it"
            ) from error
        if record.steps > schedule.last_step:
            raise self._refused(f"is at step {record.steps}, beyond the {schedule.last_step} that were asked for")
        self._restore(trainee, tensors, record)
        return record

    def _check_settings(self, found: object) -> None:
        if found == self._settings:
            return
        known = found if isinstance(found, dict) else {}
        names = [name for name in self._settings if known.get(name) != self._settings[name]]
        what = ", ".join(f"{name}: {known.get(name)!r} there, {self._settings[name]!r} here" for name in names[:3])
        raise self._refused(f"is of another training ({what or 'with other settings'})")

    def _restore(self, trainee: Trainee, tensors: dict[str, Tensor], record: TrainingRecord) -> None:
        weights = {name.removeprefix(NETWORK): value for name, value in tensors.items() if name.startswith(NETWORK)}
        kinds = {name: (value.shape, value.dtype) for name, value in weights.items()}
        if kinds != {name: (value.shape, value.dtype) for name, value in trainee.network.state_dict().items()}:
            raise self._refused("holds the weights of another network")
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise self._refused("holds numbers that are not finite")
        states = [_state_of(number, optimizer, tensors) for number, optimizer in enumerate(trainee.optimizers)]
        n_used = sum(len(values) for state in states for values in state.values())
        if n_used + len(weights) != len(tensors) or (record.steps and not all(states)):
            raise self._refused("does not hold what its optimisers need to go on")
        trainee.network.load_state_dict(weights)
        for optimizer, state in zip(trainee.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _refused(self, what: str) -> TrainingError:
        return TrainingError(f"{self.path}: {what}; delete it to train anew, or name another checkpoint")


NETWORK, OPTIMIZER = "network/", "optimizer"


def _checked_record(record: TrainingRecord, epoch_steps: int) -> TrainingRecord:
    """The record of a file; ValueError if it contradicts itself."""
    values = (record.steps, record.seconds, *record.losses, *record.pending)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError("numbers that are none")
    whole, part = divmod(record.steps, epoch_steps)
    if record.steps < 0 or record.seconds < 0 or (len(record.losses), len(record.pending)) != (whole, part):
        raise ValueError("as many losses as steps were expected")
    return record


def _state_of(
    number: int, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """What Adam has kept of each parameter that has had a gradient, where that is whole."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, parameter in enumerate(parameters):
        shapes = {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
        kept = {key: tensors.get(f"{OPTIMIZER}{number}/{place}/{key}") for key in shapes}
        found = {key: value for key, value in kept.items() if value is not None and tuple(value.shape) == shapes[key]}
        if len(found) == len(shapes):
            state[place] = found
    return state


def _tensors(trainee: Trainee) -> dict[str, Tensor]:
    """Everything a training needs to go on, by name."""
    tensors = {f"{NETWORK}{name}": value for name, value in trainee.network.state_dict().items()}
    for number, optimizer in enumerate(trainee.optimizers):
        for place, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{OPTIMIZER}{number}/{place}/{key}": value for key, value in values.items()}
    return tensors
