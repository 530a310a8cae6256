"""A trained network as the tensors and the document of a model file, and back."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flawmap.decision import FALSE_ALARM_RATE, PIXEL_RATES, Decision
from flawmap.errors import ModelFileError, ParameterError
from flawmap.model_file import DecisionRecord, ModelFile, PreprocessingRecord, TrainedDocument, TrainingSummary
from flawmap.training import TrainingRecord

if TYPE_CHECKING:
    from flawmap.detectors.trained import TrainedDetector

__all__ = ["change_decision", "describe_model", "pack", "unpack"]

NETWORK = "network."

Model = TypeVar("Model", bound="TrainedDetector[Any]")


def change_decision(
    decision: Decision, *, false_alarm_rate: float | None, value: float | None, pixel_false_alarm_rate: float | None
) -> Decision:
    """Decide by another promised rate, or by a score, for which nothing is promised."""
    if false_alarm_rate is not None and value is not None:
        raise ParameterError("give either false_alarm_rate or value")
    if false_alarm_rate is not None:
        decision = decision.at_rate(false_alarm_rate)
    if value is not None:
        decision = decision.at_value(value)
    if pixel_false_alarm_rate is not None:
        decision = decision.at_pixel_rate(pixel_false_alarm_rate)
    return decision


def describe_model(model: TrainedDetector[Any]) -> TrainedDocument:
    """The document of a fitted model's file."""
    _ = model.scorer_  # raises if there is none
    preprocessing, record, decision = model.preprocessing, model.record_, model.decision_
    return TrainedDocument(
        detector=model.kind,
        width=model.width or model.paper.width,
        preprocessing=PreprocessingRecord(
            resize=preprocessing.resize, crop=preprocessing.crop, aspect=preprocessing.aspect
        ),
        seed=model.seed,
        n_images=model.n_images_,
        training=TrainingSummary(
            epochs=model.epochs or model.paper.epochs,
            batch_size=model.batch_size or model.paper.batch_size,
            learning_rate=model.learning_rate or model.paper.learning_rate,
            budget=model.budget,
            patience=model.patience,
            precision=model.precision,
            steps=record.steps,
            minutes=round(record.seconds / 60, 3),
            stopped=record.stopped,
            final_loss=record.final_loss,
        ),
        usual_score=model.usual_score_,
        decision=None
        if decision is None
        else DecisionRecord(
            method="holdout",
            grouped=decision.group_sizes is not None,
            n_scores=len(decision.scores),
            threshold=decision.threshold,
            false_alarm_rate=decision.false_alarm_rate,
            pixel_false_alarm_rate=decision.pixel_false_alarm_rate,
        ),
        versions={name: version(name) for name in ("flawmap", "numpy", "pillow", "timm", "torch")},
    )


def pack(scorer: nn.Module, decision: Decision | None) -> dict[str, Tensor]:
    """The tensors of a model by their names in the file."""
    tensors = {f"{NETWORK}{name}": value for name, value in _weights(scorer).items()}
    if decision is not None:
        tensors["calibration.scores"] = torch.from_numpy(decision.scores)
        if decision.localises:
            tensors["calibration.pixel_quantiles"] = torch.from_numpy(decision.pixel_quantiles)
        if decision.group_sizes is not None:
            tensors["calibration.group_sizes"] = torch.from_numpy(decision.group_sizes)
    return tensors


def unpack(kind: type[Model], file: ModelFile[TrainedDocument], device: torch.device) -> Model:
    """The model of an opened file. Raises ModelFileError."""
    document, training, decided = file.document, file.document.training, file.document.decision
    model = kind(
        resize=document.preprocessing.resize,
        crop=document.preprocessing.crop,
        aspect=document.preprocessing.aspect,
        width=document.width,
        seed=document.seed,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        budget=training.budget,
        patience=training.patience,
        device=device,
        precision=training.precision,
        calibrate="holdout" if decided else None,
        false_alarm_rate=(decided.false_alarm_rate if decided else None) or FALSE_ALARM_RATE,
    )
    try:  # shapes alone first: a hostile file shall not claim memory
        blank = model.blank_scorer(document.n_images, device="meta")
    except (ParameterError, RuntimeError, OverflowError) as error:
        raise ModelFileError(
            f"{file.path}: no whole flawmap model file: {error}; fit again or take a backup"
        ) from error
    expected = {f"{NETWORK}{name}": tuple(value.shape) for name, value in _weights(blank).items()}
    tensors = file.read(expected | _decision_shapes(decided, localises=kind.localises), device)
    scorer = model.blank_scorer(document.n_images)
    scorer.load_state_dict(
        {name.removeprefix(NETWORK): value for name, value in tensors.items() if name.startswith(NETWORK)}, strict=False
    )
    model.restore(
        scorer.to(device).eval(),
        n_images=document.n_images,
        record=TrainingRecord(
            steps=training.steps,
            seconds=60 * training.minutes,
            losses=[training.final_loss],
            stopped=training.stopped,
        ),
        usual_score=document.usual_score,
        decision=_restore_decision(file, tensors),
    )
    return model


def _weights(scorer: nn.Module) -> dict[str, Tensor]:
    """What the scores follow from: not the counters of normalisation layers."""
    return {name: value for name, value in scorer.state_dict().items() if not name.endswith("num_batches_tracked")}


def _decision_shapes(record: DecisionRecord | None, *, localises: bool) -> dict[str, tuple[int, ...]]:
    if record is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {"calibration.scores": (record.n_scores,)}
    if localises:
        shapes["calibration.pixel_quantiles"] = (len(PIXEL_RATES),)
    if record.grouped:
        shapes["calibration.group_sizes"] = (record.n_scores,)
    return shapes


def _restore_decision(file: ModelFile[TrainedDocument], tensors: dict[str, Tensor]) -> Decision | None:
    record = file.document.decision
    if record is None:
        return None
    arrays = {name: value.cpu().numpy() for name, value in tensors.items() if name.startswith("calibration.")}
    sizes = arrays.get("calibration.group_sizes")
    if sizes is not None and (sizes < 1).any():
        raise ModelFileError(f"{file.path}: no whole flawmap model file: empty groups; fit again or take a backup")
    return Decision(
        arrays["calibration.scores"],
        arrays.get("calibration.pixel_quantiles", np.zeros(0, np.float32)),
        record.threshold,
        record.false_alarm_rate,
        record.pixel_false_alarm_rate,
        sizes,
    )
