"""metadata.json, the file beside an exported graph. People and programs edit its decision; the rest describes it.

Reading trusts nothing: its version, every field, and, by a digest, that nobody changed what people do not edit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from flawmap.decision import MOST, PIXEL_RATES, Decision, GoodPhotos
from flawmap.errors import ModelFileError, ParameterError
from flawmap.images import Preprocessing
from flawmap.images.alignment import AlignmentRecord
from flawmap.images.roi import RoiRecord
from flawmap.options import GraphDtype, GraphFormat, Precision
from flawmap.prediction import Size

FORMAT_VERSION = 2
METADATA_FILE = "metadata.json"
ALIGNMENT_FILE = "alignment.safetensors"
EDITED = (
    "threshold", "false_alarm_rate", "confidence", "false_alarm_bound_95", "pixel_threshold", "pixel_false_alarm_rate"
)  # fmt: skip
"""What people and programs change in the decision: the digest leaves it out."""

Rate = Annotated[float, Field(gt=0, lt=1)]
Distance = Annotated[float, Field(ge=0, le=MOST)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

FILES: dict[GraphFormat, tuple[str, ...]] = {
    "openvino": ("model.xml", "model.bin"),
    "onnx": ("model.onnx", "model.onnx.data"),
}
"""Files of a graph; the first is the one to open. Only large graphs have model.onnx.data."""
EXPORT_FILES = (*(name for files in FILES.values() for name in files), ALIGNMENT_FILE)
"""Files that an export may have beside its metadata."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_quantiles(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) not in (0, len(PIXEL_RATES)):
        raise ValueError(f"{len(values)} values for {len(PIXEL_RATES)} rates")
    return values


class DecisionMetadata(_Record):
    """The editable part: a threshold is a number, or null to follow from its false-alarm rate.

    Attributes:
        threshold: images with higher scores are anomalous.
        false_alarm_rate: share of good images above it; `threshold` follows from it if that is null.
        confidence: with which that rate holds; null if it holds on average.
        false_alarm_bound_95: upper bound of that share at 95 % confidence, for those who read the file; reading ignores
            it, because it follows from the scores.
        pixel_threshold: pixels with higher map values are anomalous.
        pixel_false_alarm_rate: share of good images' pixels above it.
        leave_one_out_scores: held-out image scores of the good images.
        pixel_quantiles: map values that falling shares of good images' pixels exceed (`flawmap.decision.PIXEL_RATES`);
            empty of an image-level detector, whose pixel_threshold is null.
        group_sizes: images in the group of each score; null if every image stands alone.
    """

    threshold: float | None
    false_alarm_rate: Rate | None
    confidence: Rate | None = None
    false_alarm_bound_95: float | None = None
    pixel_threshold: float | None
    pixel_false_alarm_rate: Rate | None
    leave_one_out_scores: tuple[Distance, ...] = Field(min_length=1)
    pixel_quantiles: Annotated[tuple[Distance, ...], AfterValidator(_check_quantiles)]
    group_sizes: tuple[Annotated[float, Field(ge=1, le=1e9)], ...] | None = None

    @model_validator(mode="after")
    def _decides(self) -> Self:
        for name in ("threshold", "pixel_threshold"):
            rate = "false_alarm_rate" if name == "threshold" else "pixel_false_alarm_rate"
            if getattr(self, name) is None and getattr(self, rate) is None:
                raise ValueError(f"{name} and {rate} are both null; give one of them")
        if self.group_sizes is not None and len(self.group_sizes) != len(self.leave_one_out_scores):
            raise ValueError(f"{len(self.group_sizes)} group_sizes for {len(self.leave_one_out_scores)} scores")
        return self

    @classmethod
    def of(cls, decision: Decision) -> Self:
        """The editable form of a fitted model's decision."""
        return cls(
            threshold=decision.threshold,
            false_alarm_rate=decision.false_alarm_rate,
            confidence=decision.confidence,
            false_alarm_bound_95=decision.bound(),
            pixel_threshold=decision.pixel_threshold if decision.localises else decision.pixel_value,
            pixel_false_alarm_rate=decision.pixel_false_alarm_rate if decision.pixel_value is None else None,
            leave_one_out_scores=tuple(decision.scores.tolist()),
            pixel_quantiles=tuple(decision.pixel_quantiles.tolist()),
            group_sizes=None if decision.group_sizes is None else tuple(decision.group_sizes.tolist()),
        )

    def to_decision(self) -> Decision:
        """The decision that this describes. A rate is guaranteed only if the threshold is the one it leads to."""
        decision = Decision(
            np.array(self.leave_one_out_scores, np.float32),
            np.array(self.pixel_quantiles, np.float32),
            group_sizes=None if self.group_sizes is None else np.array(self.group_sizes, np.float32),
        )
        if self.pixel_false_alarm_rate is not None and decision.localises:
            decision = decision.at_pixel_rate(self.pixel_false_alarm_rate)
        if self.pixel_threshold is not None and self.pixel_threshold != decision.pixel_threshold:
            decision = replace(decision, pixel_value=self.pixel_threshold)
        if self.false_alarm_rate is not None:
            rate, confidence = self.false_alarm_rate, self.confidence
            decision = decision.at_rate(rate) if confidence is None else decision.certified(rate, confidence)
        if self.threshold is not None and self.threshold != decision.threshold:
            decision = decision.at_value(self.threshold)
        return decision


class GraphMetadata(_Record):
    """The graph: `files` maps each of its files to the SHA-256 of its bytes."""

    format: GraphFormat
    dtype: GraphDtype
    resize_inside: bool
    files: dict[str, Digest]

    @model_validator(mode="after")
    def _known_files(self) -> Self:
        known = FILES[self.format]
        if known[0] not in self.files or not set(self.files) <= {*known, ALIGNMENT_FILE}:
            raise ValueError(f"expected the files {', '.join(known)}, got {', '.join(self.files) or 'none'}")
        return self


class Metadata(_Record):
    """The whole document.

    Attributes:
        decision: thresholds and held-out scores; None if the model was not calibrated.
        image_size: (height, width) of the graph's input images, before its crop.
        map_size: (height, width) of the anomaly maps it gives, the model's input size.
        preprocessing: what makes the model's input of an image of any size.
        map_scale: map values to show as coolest and hottest; None for a detector that makes no maps, whose graph has
            no output for them.
        graph: its files.
        top_share: part of a map whose mean is its score; 0 for its highest value.
        images: sizes and depth of the good images' photos; None in older exports.
        alignment: how images are aligned before the graph sees them, by the pictures of alignment.safetensors; or None.
        roi: what of the model's input is inspected, for `Inspector`; None for all. The graph's maps are 0 elsewhere.
        model: what was exported, for the record: class, backbone, layers, number of good images, versions.
        digest: `fingerprint` of the rest; None in format 1.
    """

    format_version: Literal[1, 2] = 2
    decision: DecisionMetadata | None
    image_size: Size
    map_size: Size
    preprocessing: Preprocessing
    map_scale: tuple[float, float] | None
    graph: GraphMetadata
    top_share: float = Field(default=0.0, ge=0, lt=1)
    images: GoodPhotos | None = None
    alignment: AlignmentRecord | None = None
    roi: RoiRecord | None = None
    model: dict[str, Any]
    digest: Digest | None = None

    @property
    def n_channels(self) -> int:
        """Channels of the graph's images: RGB, and of aligned ones what they show."""
        return 3 if self.alignment is None else 4

    @property
    def fitted_in(self) -> Precision:
        """The precision in which the model was fitted, on which its thresholds depend."""
        backbone = self.model.get("backbone")
        precision: Precision = backbone.get("precision", "float32") if isinstance(backbone, dict) else "float32"
        return precision

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = self.preprocessing
        Preprocessing.of(
            sizes.resize, sizes.crop, sizes.aspect, sizes.bits, sizes.reading
        )  # a ParameterError is a ValueError
        if self.image_size != sizes.resize or self.map_size != sizes.input_size:
            raise ValueError("image_size and map_size are not those of its preprocessing")
        if (self.alignment is not None) != (ALIGNMENT_FILE in self.graph.files):
            raise ValueError(f"alignment and {ALIGNMENT_FILE} are there together, or neither")
        if self.roi is not None:
            self.roi.mask(sizes.input_size)
        if self.graph.resize_inside and self.alignment is not None:
            raise ValueError("a graph does not align")
        if self.graph.resize_inside and sizes.aspect == "letterbox":
            raise ValueError("a graph does not letterbox")
        if self.decision is not None and bool(self.decision.pixel_quantiles) != (self.map_scale is not None):
            raise ValueError("map_scale and pixel_quantiles disagree on whether there are maps")
        if self.fitted_in not in get_args(Precision):
            raise ValueError(f"model.backbone.precision must be float32 or bfloat16, got {self.fitted_in!r}")
        return self

    def write(self, folder: Path) -> None:
        """Write metadata.json into a folder. Raises OSError."""
        document = json.loads(self.model_dump_json()) | {"format_version": FORMAT_VERSION}
        document["digest"] = fingerprint(document)
        text = json.dumps(document, indent=2, allow_nan=False)
        (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Self:
        """The metadata that a file's bytes say; the path is for messages. Raises ModelFileError."""
        document = _load_json(content, path)
        try:
            metadata = cls.model_validate(document)
            if metadata.decision is not None:
                metadata.decision.to_decision()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise ModelFileError(f"{path}: is wrong at '{where}': {first['msg']}; mend it or export again") from error
        except ParameterError as error:
            raise ModelFileError(f"{path}: is wrong at 'decision': {error}; mend it or export again") from error
        if metadata.digest != (None if metadata.format_version == 1 else fingerprint(document)):
            raise ModelFileError(
                f"{path}: its digest is wrong: more was changed than thresholds and rates of its decision; mend it or "
                f"export again"
            )
        return metadata


def fingerprint(document: dict[str, Any]) -> str:
    """SHA-256 of a document of metadata, without its digest and without what people edit: thresholds and rates.

    Neither the order of names nor how a number is written counts: programs that edit the file may change both.
    """
    fields = {name: value for name, value in document.items() if name != "digest"}
    if isinstance(decision := fields["decision"], dict):
        fields["decision"] = {name: value for name, value in decision.items() if name not in EDITED}
    text = json.dumps(_plain(fields), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """The value with whole numbers as integers, however they were written."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _load_json(content: bytes, path: Path) -> Any:  # noqa: ANN401 (JSON)
    """What the bytes say, of a version that this program reads."""
    try:
        document = json.loads(content.decode("utf-8"))
        _plain(document)  # nested no deeper than it can be read again
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not JSON ({error}); mend it or export again") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: was written by a newer flawmap (format {version}; this one reads up to {FORMAT_VERSION}); "
            f"upgrade flawmap, or export again"
        )
    return document
