"""Model files: one safetensors file whose metadata holds a versioned JSON document; written atomically, never pickled.

Reading trusts nothing: the header's length, the document's version and fields, and every tensor's name, shape, dtype
and values are checked before anything is used, and no code of the file is run.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeGuard

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypeVar

from flawmap.errors import ModelFileError
from flawmap.files import replace_atomically
from flawmap.tensor_stream import Streamed, write_tensors

__all__ = [
    "FORMAT_VERSION",
    "WHOLE_IMAGE",
    "BackboneRecord",
    "DecisionRecord",
    "Document",
    "MahalanobisADDocument",
    "ModelFile",
    "PreprocessingRecord",
    "RegularizationRecord",
    "SpadeDocument",
    "TrainedDocument",
    "TrainingSummary",
    "is_finite",
]

FORMAT_VERSION = 1
DOCUMENT_KEY = "flawmap"
DTYPES = ("F32", "F16", "BF16")
"""Numbers that a file may hold; all become float32 when read."""
MAX_HEADER_BYTES = 8 * 2**20
MAX_SIDE = 16384
MAX_LAYERS = 64

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
FileSize = tuple[Side, Side]
FactorDtype = Literal["float32", "bfloat16", "float16"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class BackboneRecord(_Record):
    """Which network, which of its layers, and which weights."""

    name: str = Field(min_length=1, max_length=200)
    layers: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    pretrained: bool
    seed: int
    weights: str | None
    weights_path: str | None
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    precision: Literal["float32", "bfloat16"] = "float32"


class PreprocessingRecord(_Record):
    """How an image becomes the model's input; sizes are (height, width)."""

    resize: FileSize
    crop: FileSize | None
    aspect: Literal["squash", "letterbox"]


class RegularizationRecord(_Record):
    """How the covariances were regularised, and whether that was given or chosen ("auto")."""

    ridge: float = Field(ge=0)
    sharing: float = Field(ge=0, le=1)
    chosen: Literal["given", "auto"]


class DecisionRecord(_Record):
    """What the model decides by; the scores themselves are a tensor."""

    method: Literal["leave-one-out", "holdout"]
    grouped: bool
    n_scores: int = Field(ge=1)
    threshold: float
    false_alarm_rate: float | None = Field(gt=0, lt=1)
    pixel_false_alarm_rate: float | None = Field(gt=0, lt=1)  # None if there are no maps


class Document(_Record):
    """The JSON document of a model file.

    Attributes:
        grids, n_channels: grid (h, w) and channels of each layer.
        channels: indices into the concatenated layers.
        reduction: "pca" if principal components of those channels, n_features of them, are the embedding.
        n_images: number of good images it was fitted on.
        factor_dtype: how the factors are stored; they are float32 once read.
        versions: libraries that wrote the file.
    """

    format_version: Literal[1] = 1
    detector: Literal["padim"]
    backbone: BackboneRecord
    preprocessing: PreprocessingRecord
    grids: tuple[FileSize, ...] = Field(min_length=1, max_length=5)
    n_channels: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(min_length=1, max_length=5)
    channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=65536)
    n_features: int | None
    reduction: Literal["random", "pca"] = "random"
    seed: int
    regularization: RegularizationRecord
    n_images: int = Field(ge=2)
    decision: DecisionRecord | None
    factor_dtype: FactorDtype = "float32"
    versions: dict[str, str]


class TrainingSummary(_Record):
    """How a network was trained, and what that came to.

    Attributes:
        epochs: those that were asked for. budget, patience: limits, if there were any.
        steps, minutes: what was done. stopped: what ended it.
        final_loss: mean training loss of the last whole epoch.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    budget: float | None = Field(gt=0)
    patience: int | None = Field(ge=1)
    precision: Literal["float32", "bfloat16"]
    steps: int = Field(ge=0)
    minutes: float = Field(ge=0)
    stopped: Literal["schedule", "budget", "plateau"]
    final_loss: float


class TrainedDocument(_Record):
    """The JSON document of a detector that trained a network, all of whose weights are in the file.

    Attributes:
        width: what the network's size follows from. n_images: number of good images it learnt from.
        usual_score: median score of some of them. versions: libraries that wrote the file.
    """

    format_version: Literal[1] = 1
    detector: Literal["vae", "patch-svdd", "ganomaly", "itae"]
    width: int = Field(ge=1, le=4096)
    preprocessing: PreprocessingRecord
    seed: int
    n_images: int = Field(ge=2, le=10**7)
    training: TrainingSummary
    usual_score: float = Field(ge=0)
    decision: DecisionRecord | None
    versions: dict[str, str]


class _FeatureDocument(_Record):
    """What the documents of the detectors on feature maps or pooled features have in common.

    Attributes:
        grids, n_channels: grid (h, w) and channels of each layer.
        n_images: number of good images it was fitted on.
        versions: libraries that wrote the file.
    """

    format_version: Literal[1] = 1
    backbone: BackboneRecord
    preprocessing: PreprocessingRecord
    grids: tuple[FileSize, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    n_channels: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(min_length=1, max_length=MAX_LAYERS)
    seed: int
    n_images: int = Field(ge=2)
    decision: DecisionRecord | None
    versions: dict[str, str]


class SpadeDocument(_FeatureDocument):
    """The JSON document of a SPADE model: `grids` and `n_channels` are of `layers` and then of the image layer.

    Attributes:
        layers: layers whose patches are compared. image_layer: layer that is pooled to find the nearest images.
        n_neighbors: nearest images. coreset: share of each image's coarsest cells that is kept; None for all.
        n_mapped: good images whose maps set the pixel threshold.
    """

    detector: Literal["spade"]
    variant: Literal["paper", "port"]
    layers: tuple[str, ...] = Field(min_length=1, max_length=5)
    image_layer: str
    n_neighbors: int = Field(ge=1)
    coreset: float | None = Field(gt=0, le=1)
    n_mapped: int = Field(ge=1)


class MahalanobisADDocument(_FeatureDocument):
    """The JSON document of a MahalanobisAD model; `shrinkage` is the Ledoit-Wolf coefficient of each level."""

    detector: Literal["mahalanobis-ad"]
    shrinkage: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1, max_length=MAX_LAYERS)


AnyDocument = Document | SpadeDocument | MahalanobisADDocument | TrainedDocument
DOCUMENTS: dict[str, type[AnyDocument]] = {
    "padim": Document,
    "spade": SpadeDocument,
    "mahalanobis-ad": MahalanobisADDocument,
    "vae": TrainedDocument,
    "patch-svdd": TrainedDocument,
    "ganomaly": TrainedDocument,
    "itae": TrainedDocument,
}
"""Documents by the detector that they describe."""
WHOLE_IMAGE = frozenset({"mahalanobis-ad", "ganomaly", "itae"})
"""Detectors that judge whole images and localise nothing."""
D = TypeVar("D", bound=AnyDocument, default=Document)


class ModelFile(Generic[D]):
    """An opened model file: its checked document, and its tensors once their expected shapes are known.

    Attributes:
        path: where it lies.
        document: what it says of itself, of the type that its detector has.
        shapes, dtypes: shape of each tensor, and its type as safetensors calls it.
        starts: its first byte in the file; to be trusted once `read` has checked the shapes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        header, data, size = self._read_header()
        self.document: D = self._read_document(header)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.starts: dict[str, int] = {}
        end = data
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
                raise self._damaged(f"tensor '{name}' is not of {', '.join(DTYPES)}")
            shape, offsets = entry.get("shape"), entry.get("data_offsets")
            if not (_are_numbers(shape) and _are_numbers(offsets) and len(offsets) == 2):
                raise self._damaged(f"tensor '{name}' has no shape, or no place in the file")
            self.shapes[name], self.dtypes[name] = tuple(shape), entry["dtype"]
            self.starts[name], end = data + offsets[0], max(end, data + offsets[1])
        if size < end:  # more is refused by `read`
            raise self._damaged(f"it ends after {size} bytes of {end}")

    @staticmethod
    def write(
        path: str | os.PathLike[str],
        document: AnyDocument,
        tensors: Mapping[str, Tensor],
        streamed: Mapping[str, Streamed] | None = None,
    ) -> None:
        """Write a model file atomically: whole or not at all. The same document and tensors give the same bytes.

        Tensors that are `streamed` never lie in memory as a whole.
        """
        text = json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        try:
            with replace_atomically(path) as temporary:
                write_tensors(temporary, tensors, streamed or {}, {DOCUMENT_KEY: text})
        except OSError as error:
            raise ModelFileError(
                f"{path}: cannot be written ({_reason(error)}); check that the folder exists, is writable and has "
                f"room. Nothing was changed"
            ) from error

    def read(
        self, expected: Mapping[str, tuple[int, ...]], device: torch.device, *, leave: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """The tensors, which must be just the `expected` ones, finite; those to `leave` are not read yet."""
        if self.shapes != dict(expected):
            wrong = sorted(set(self.shapes.items()) ^ set(expected.items()))[0][0]
            raise self._damaged(
                f"tensor '{wrong}' has shape {self.shapes.get(wrong)}, its description asks for {expected.get(wrong)}"
            )
        tensors = {}
        try:
            with safe_open(self.path, framework="pt", device=str(device)) as file:
                for name in (name for name in expected if name not in leave):
                    # a copy: what is mapped would change, or end the process, with a file that is overwritten in place
                    tensors[name] = file.get_tensor(name).to(torch.float32, copy=True)
        except (OSError, SafetensorError) as error:
            raise self._damaged(_reason(error)) from error
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise self._damaged(f"tensor '{name}' holds NaN or infinite values")
        return tensors

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        """The safetensors header, 8 bytes of length and then JSON, checked; its end in the file; the file's size."""
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as stream:
                start = stream.read(8)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                    raise self._damaged(f"its header claims {length} bytes of the file's {size}")
                header = json.loads(stream.read(length))
        except FileNotFoundError as error:
            raise ModelFileError(f"{self.path}: no such model file; `flawmap fit` makes one") from error
        except IsADirectoryError as error:
            raise ModelFileError(
                f"{self.path}: is a folder, not a model file of `flawmap fit`; an export is for `flawmap predict` and "
                f"`Inspector`"
            ) from error
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read ({_reason(error)})") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        return header, 8 + length, size

    def _read_document(self, header: dict[str, Any]) -> Any:  # noqa: ANN401 (the type that its detector has)
        metadata = header.get("__metadata__")
        text = metadata.get(DOCUMENT_KEY) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise ModelFileError(f"{self.path}: a safetensors file, but no flawmap model; `flawmap fit` makes one")
        try:
            content = json.loads(text)
            version = content.get("format_version") if isinstance(content, dict) else None
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise ModelFileError(
                    f"{self.path}: was written by a newer flawmap (format {version}; this one reads up to "
                    f"{FORMAT_VERSION}); upgrade flawmap, or fit again"
                )
            detector = content.get("detector") if isinstance(content, dict) else None
            kind = DOCUMENTS.get(detector, Document) if isinstance(detector, str) else Document
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise self._damaged(f"its description is wrong at '{where}': {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged("its description is not JSON") from error

    def _damaged(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: no whole flawmap model file: {reason}; fit again or take a backup")


def _are_numbers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, without a copy: the extremes are finite, and NaN would be one."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax())
