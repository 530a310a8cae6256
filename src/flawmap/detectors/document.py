"""The JSON document of a model file, formats 2 and 3: what a detector is, what it was fitted on, what it decides by."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from flawmap.backbones import Backbone, Claim, load_backbone
from flawmap.decision import PIXEL_FALSE_ALARM_RATE, PIXEL_RATES, Decision, GoodPhotos
from flawmap.detectors.format_1 import upgrade
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.parameters import Seed, explain
from flawmap.errors import WeightsError
from flawmap.images import Preprocessing
from flawmap.images.roi import RoiRecord
from flawmap.model_file import MAX_ROWS, ModelFile, damaged
from flawmap.options import (
    MAX_BITS,
    MAX_LAYERS,
    MAX_SIDE,
    MIN_BITS,
    Aspect,
    Calibration,
    FactorDtype,
    Precision,
    Runtime,
)
from flawmap.prediction import Size

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
FileSize = tuple[Side, Side]
PhotoSide = Annotated[int, Field(ge=1, le=2**31)]
MAX_SIZES = 16
"""Sizes of photos that a model file names."""
SCORES, PIXEL_QUANTILES, GROUP_SIZES = (f"calibration.{name}" for name in ("scores", "pixel_quantiles", "group_sizes"))


R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """A part of the document; unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneRecord(Record):
    """Which network, which of its layers, and which weights.

    Attributes:
        grids, n_channels: grid (h, w) and number of channels of each layer.
        sha256: fingerprint of the weights.
    """

    name: str = Field(min_length=1, max_length=200)
    layers: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    pretrained: bool
    seed: Seed
    weights: str | None
    weights_path: str | None
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    precision: Precision = "float32"
    grids: tuple[FileSize, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    n_channels: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(min_length=1, max_length=MAX_LAYERS)

    @classmethod
    def of(
        cls, backbone: Backbone, shapes: Sequence[tuple[int, Size]], *, pretrained: bool, seed: int
    ) -> BackboneRecord:
        """The record of a backbone whose layers have these channels and grids."""
        return cls(
            name=backbone.name,
            layers=backbone.layers,
            pretrained=pretrained,
            seed=seed,
            weights=backbone.weights,
            weights_path=backbone.weights_path,
            sha256=backbone.sha256,
            precision=backbone.precision,
            grids=tuple(grid for _, grid in shapes),
            n_channels=tuple(n for n, _ in shapes),
        )


class ImagesRecord(Record):
    """The good images of a fit, as far as later images are compared with them.

    Attributes:
        digests: of the model's input from each image (`flawmap.images.digest`), in the training order; of a larger fit,
            of the first `MAX_ROWS` alone.
        sizes: distinct sizes (height, width) of the photos, most frequent first, at most `MAX_SIZES`.
        bits: of a sample of the photos; None if they differ, and in older files.
    """

    digests: tuple[Annotated[str, Field(pattern="^[0-9a-f]{32}$")], ...] = Field(max_length=MAX_ROWS)
    sizes: tuple[tuple[PhotoSide, PhotoSide], ...] = Field(max_length=MAX_SIZES)
    bits: int | None = Field(default=None, ge=MIN_BITS, le=MAX_BITS)

    @classmethod
    def of(cls, good: GoodImages) -> ImagesRecord:
        """The record of the images that a fit has read."""
        photos = good.photos
        return cls(digests=good.digests(MAX_ROWS), sizes=photos.sizes(MAX_SIZES), bits=photos.bits)

    @property
    def learnt(self) -> frozenset[bytes]:
        """The digests, to compare others with."""
        return frozenset(bytes.fromhex(digest) for digest in self.digests)

    def photos(self, aspect: Aspect) -> GoodPhotos:
        """What later images are compared with, by a model with this handling of proportions."""
        knows_all = 0 < len(self.sizes) < MAX_SIZES
        smallest = (min(size[0] for size in self.sizes), min(size[1] for size in self.sizes)) if knows_all else None
        return GoodPhotos(self.sizes if knows_all and aspect == "squash" else (), self.bits, smallest)


class DecisionRecord(Record):
    """What the model decides by; the scores themselves are a tensor."""

    method: Calibration
    grouped: bool
    n_scores: int = Field(ge=1)
    threshold: float
    false_alarm_rate: float | None = Field(gt=0, lt=1)
    confidence: float | None = Field(default=None, gt=0, lt=1)  # None if the rate holds on average
    pixel_false_alarm_rate: float | None = Field(gt=0, lt=1)  # None if there are no maps

    @classmethod
    def of(cls, decision: Decision, method: Calibration | None) -> DecisionRecord:
        """The record of a decision whose scores were held out by this method."""
        return cls(
            method=method or "leave-one-out",
            grouped=decision.group_sizes is not None,
            n_scores=len(decision.scores),
            threshold=decision.threshold,
            false_alarm_rate=decision.false_alarm_rate,
            confidence=decision.confidence,
            pixel_false_alarm_rate=decision.pixel_false_alarm_rate if decision.localises else None,
        )


class Document(Record):
    """The whole document.

    Attributes:
        detector: its name in the register.
        parameters: what the detector is made from; those that belong to a machine are not stored.
        resize: (height, width) of the canvas, where the parameter is a rule such as "long:768"; else None.
        roi: what of the model's input is inspected; None for all.
        backbone: None for a detector without one.
        learnt: what the detector keeps beside its tensors.
        factor_dtype: how factors are stored; they are float32 once read.
        n_images: number of good images it was fitted on.
        images: what is kept of them; None in files of format 2 and earlier.
        versions: libraries that wrote the file.
    """

    format_version: Literal[2, 3] = 3
    detector: str = Field(min_length=1, max_length=200)
    parameters: dict[str, Any]
    resize: FileSize | None = None
    roi: RoiRecord | None = None
    backbone: BackboneRecord | None
    learnt: dict[str, Any]
    factor_dtype: FactorDtype = "float32"
    n_images: int = Field(ge=2, le=10**7)
    images: ImagesRecord | None = None
    decision: DecisionRecord | None
    versions: dict[str, str]

    @model_validator(mode="after")
    def _has_size(self) -> Document:
        if isinstance(self.parameters.get("resize"), str) != (self.resize is not None):
            raise ValueError("resize is a rule without a size, or a size beside one")
        return self


def read_document(file: ModelFile) -> Document:
    """The checked document of an opened file; one of format 1 is converted. Raises ModelFileError."""
    content: Mapping[str, Any] = file.document
    try:
        if content.get("format_version") == 1:
            content = upgrade(content)
        return Document.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise damaged(file.path, f"its description is wrong at '{where}': {first['msg']}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(file.path, f"its description is wrong: {error}") from error


def library_versions(*others: str) -> dict[str, str]:
    """Versions of the libraries that shape a model."""
    return {name: version(name) for name in ("flawmap", "numpy", "pillow", "timm", "torch", *others)}


def decision_tensors(decision: Decision | None) -> dict[str, Tensor]:
    """A decision's tensors by their names in the file."""
    if decision is None:
        return {}
    tensors = {SCORES: torch.from_numpy(decision.scores)}
    if decision.localises:
        tensors[PIXEL_QUANTILES] = torch.from_numpy(decision.pixel_quantiles)
    if decision.group_sizes is not None:
        tensors[GROUP_SIZES] = torch.from_numpy(decision.group_sizes)
    return tensors


def decision_shapes(record: DecisionRecord | None, *, localises: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a decision's tensors; `localises` if the detector makes maps."""
    if record is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {SCORES: (record.n_scores,)}
    if localises:
        shapes[PIXEL_QUANTILES] = (len(PIXEL_RATES),)
    if record.grouped:
        shapes[GROUP_SIZES] = (record.n_scores,)
    return shapes


def restore_decision(
    path: str | os.PathLike[str], record: DecisionRecord | None, tensors: Mapping[str, Tensor]
) -> Decision | None:
    """The decision of a model file, given its tensors. Raises ModelFileError."""
    if record is None:
        return None
    arrays = {name: value.cpu().numpy() for name, value in tensors.items() if name.startswith("calibration.")}
    sizes = arrays.get(GROUP_SIZES)
    if sizes is not None and (sizes < 1).any():
        raise damaged(path, "it holds empty groups")
    return Decision(
        arrays[SCORES],
        arrays.get(PIXEL_QUANTILES, np.zeros(0, np.float32)),
        record.threshold,
        record.false_alarm_rate,
        record.pixel_false_alarm_rate or PIXEL_FALSE_ALARM_RATE,
        group_sizes=sizes,
        confidence=record.confidence,
    )


def read_decision(file: ModelFile, document: Document, *, localises: bool) -> Decision | None:
    """The decision of an opened file, of which nothing else is read. Raises ModelFileError."""
    wanted = decision_shapes(document.decision, localises=localises)
    if wrong := sorted(name for name, shape in wanted.items() if file.shapes.get(name) != shape):
        raise damaged(
            file.path, f"tensor '{wrong[0]}' has shape {file.shapes.get(wrong[0])}, expected {wanted[wrong[0]]}"
        )
    tensors = file.read(file.shapes, torch.device("cpu"), leave=file.shapes.keys() - wanted.keys())
    file.check()
    return restore_decision(file.path, document.decision, tensors)


def describe_document(document: Document, decision: Decision | None) -> dict[str, Any]:
    """A document as plain JSON values on one level: parameters, with what was learnt in their place.

    Its decision also has the number of groups, and the upper bound of the false-alarm rate at 95 % confidence.
    """
    content = document.model_dump(mode="json")
    if decision is not None:
        content["decision"] |= {"n_groups": decision.n_groups, "false_alarm_bound_95": decision.bound()}
    images = content.pop("images")
    content["photo_sizes"], content["photo_bits"] = (images or {}).get("sizes"), (images or {}).get("bits")
    parameters, learnt = content.pop("parameters"), content.pop("learnt")
    if content["backbone"] is None:
        del content["backbone"]
    else:
        content |= {name: content["backbone"].pop(name) for name in ("grids", "n_channels")}
    rule, size = parameters.pop("resize"), content.pop("resize")
    sizes = Preprocessing.of(size or rule, parameters.pop("crop"), parameters.pop("aspect"))
    preprocessing = {"resize": list(sizes.resize), "crop": sizes.crop and list(sizes.crop), "aspect": sizes.aspect}
    if size is not None:
        preprocessing["resize_rule"] = rule
    if document.roi is not None:
        content["roi"] = document.roi.summary(sizes.input_size)
    return {**parameters, **learnt, **content, "preprocessing": preprocessing}


@dataclass(frozen=True, eq=False)
class Stored:
    """What a detector restores itself from.

    Attributes:
        file: the opened model file.
        document: its checked document.
        device: where tensors are read to.
        localises: whether the detector makes maps.
        tensors: those that were read.
    """

    file: ModelFile
    document: Document
    device: torch.device
    localises: bool
    tensors: dict[str, Tensor]

    def learnt(self, kind: type[R]) -> R:
        """What the document keeps, checked. Raises ModelFileError."""
        try:
            return kind.model_validate(self.document.learnt)
        except ValidationError as error:
            raise damaged(self.file.path, f"its description is wrong at 'learnt': {explain(error)}") from error

    def read(self, shapes: Mapping[str, tuple[int, ...]], *, leave: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """The tensors of these names and shapes, float32, which must be all there are. Raises ModelFileError."""
        expected = {**shapes, **decision_shapes(self.document.decision, localises=self.localises)}
        self.tensors.update(self.file.read(expected, self.device, leave=leave))
        return self.tensors


def matching_backbone(
    stored: Stored, weights: str | os.PathLike[str] | None, runtime: Runtime, claim: Claim
) -> Backbone:
    """The backbone with the very weights the model was fitted with; others would give wrong scores in silence.

    Raises ParameterError if the network does not give what the file claims, WeightsError if the weights are not found.
    """
    record = stored.document.backbone
    if record is None:
        raise damaged(stored.file.path, "its description names no backbone")
    candidates: list[str | os.PathLike[str] | None] = [weights]
    if weights is None and record.weights_path is not None:
        # never the recorded path itself: whoever made the file would choose what is opened here
        beside = stored.file.path.parent / Path(record.weights_path).name
        candidates = [*([beside] if os.path.isfile(beside) else []), None]  # noqa: PTH113 (too long?)
    problem = ""
    for candidate in candidates:
        try:
            backbone = load_backbone(
                record.name,
                layers=record.layers,
                pretrained=record.pretrained,
                weights=candidate,
                seed=record.seed,
                device=stored.device,
                runtime=runtime,
                precision=record.precision,
                n_images=stored.document.n_images,
                most_layers=len(record.layers),
                claim=claim,
            )
        except WeightsError as error:
            problem = str(error)
            continue
        if backbone.sha256 == record.sha256:
            return backbone
        problem = f"those found ({backbone.weights or 'random, of another torch version'}) are others"
    where = "" if record.weights_path is None else f" (it was {record.weights_path})"
    raise WeightsError(
        f"{stored.file.path}: was fitted with the {record.name} weights of '{record.weights or 'a random draw'}' "
        f"(SHA-256 of its layers {record.sha256[:12]}...), which are needed again: {problem}. Give that file"
        f"{where} with --weights PATH, put it beside the model, or fit again"
    )
