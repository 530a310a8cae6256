"""What a detector that trains a network is to do: its paper's numbers, the ones in force, and which cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flawmap.detectors.detector import check_number, check_seed
from flawmap.errors import ParameterError
from flawmap.images import check_cache
from flawmap.prediction import Size

if TYPE_CHECKING:
    from flawmap.detectors.trained.detector import TrainedDetector

__all__ = ["Paper", "Plan", "check_parameters"]

MAX_WIDTH = 4096
MAX_SIDE = 4096
LEAST_BATCH = 2
"""Batch normalisation learns from the spread within a batch."""


@dataclass(frozen=True)
class Paper:
    """What a paper trains with.

    Attributes:
        resize, crop: preprocessing.
        width: what the network's size follows from; each detector says of what.
        epochs, batch_size, learning_rate: of its optimiser.
        epoch_images: images of an epoch, if that is not all of them once.
        repeats: times that an epoch goes through all images.
    """

    resize: int
    crop: int | None
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    epoch_images: int | None = None
    repeats: int = 1

    def epoch_steps(self, n_images: int, batch_size: int) -> int:
        """Steps of an epoch."""
        return math.ceil((self.epoch_images or self.repeats * n_images) / batch_size)


@dataclass(frozen=True)
class Plan:
    """What is trained: sizes and numbers, with nothing left to be chosen."""

    width: int
    input_size: Size
    batch_size: int
    learning_rate: float
    epoch_steps: int
    seed: int
    device: torch.device


def check_parameters(model: TrainedDetector[Any]) -> None:
    """ParameterError for values that cannot be meant."""
    if model.calibrate not in ("holdout", None):
        raise ParameterError(
            f"calibrate must be 'holdout' or None, got {model.calibrate!r}: leaving an image out would mean to "
            f"train {type(model).__name__} once for each"
        )
    if max(model.preprocessing.input_size) > MAX_SIDE:
        raise ParameterError(
            f"{type(model).__name__} takes images of up to {MAX_SIDE} pixels a side, got "
            f"{model.preprocessing.input_size}; give a smaller resize or crop"
        )
    if not 0 < model.false_alarm_rate < 1:
        raise ParameterError(f"false_alarm_rate must lie between 0 and 1, got {model.false_alarm_rate}")
    check_cache(model.cache_mb)
    if model.checkpoint is not None:
        folder = Path(model.checkpoint).expanduser().absolute().parent
        if not folder.is_dir() or Path(model.checkpoint).expanduser().is_dir():
            raise ParameterError(f"checkpoint must name a file in a folder that is there, got {model.checkpoint}")
    if model.precision not in ("float32", "bfloat16"):
        raise ParameterError(f"precision must be 'float32' or 'bfloat16', got {model.precision!r}")
    if model.learning_rate is not None and not 0 < model.learning_rate < math.inf:
        raise ParameterError(f"learning_rate must be a positive number, got {model.learning_rate}")
    check_seed(model.seed)
    if model.width is not None:
        check_number("width", model.width, most=MAX_WIDTH)
    if model.batch_size is not None:
        check_number("batch_size", model.batch_size, least=LEAST_BATCH, most=2**16)
