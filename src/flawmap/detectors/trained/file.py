"""A trained network as the tensors and the document of a model file, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from flawmap.decision import FALSE_ALARM_RATE, Decision
from flawmap.detectors.decision_file import decision_record, decision_shapes, decision_tensors, restore_decision
from flawmap.detectors.model_backbone import library_versions, preprocessing_record
from flawmap.detectors.trained.training import TrainingRecord
from flawmap.errors import ModelFileError, ParameterError
from flawmap.model_file import ModelFile, TrainedDocument, TrainingSummary

if TYPE_CHECKING:
    from flawmap.detectors.trained.detector import TrainedDetector

__all__ = ["describe_model", "pack", "unpack"]

NETWORK = "network."

Model = TypeVar("Model", bound="TrainedDetector[Any]")


def describe_model(model: TrainedDetector[Any]) -> TrainedDocument:
    """The document of a fitted model's file."""
    _ = model.scorer_  # raises if there is none
    record = model.record_
    return TrainedDocument(
        detector=model.kind,
        width=model.width or model.paper.width,
        preprocessing=preprocessing_record(model.preprocessing),
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
        decision=decision_record(model.decision_, "holdout"),
        versions=library_versions(),
    )


def pack(scorer: nn.Module, decision: Decision | None) -> dict[str, Tensor]:
    """The tensors of a model by their names in the file."""
    tensors = {f"{NETWORK}{name}": value for name, value in _weights(scorer).items()}
    return tensors | decision_tensors(decision)


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
    tensors = file.read(expected | decision_shapes(decided, localises=kind.localises), device)
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
        decision=restore_decision(file, tensors),
    )
    return model


def _weights(scorer: nn.Module) -> dict[str, Tensor]:
    """What the scores follow from: not the counters of normalisation layers."""
    return {name: value for name, value in scorer.state_dict().items() if not name.endswith("num_batches_tracked")}
