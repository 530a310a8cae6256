"""What detectors on the features of a frozen backbone share: its parameters, its weights, the way it runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from flawmap.backbones import (
    DEFAULT_BACKBONE,
    NETWORKS,
    Backbone,
    Claim,
    CompiledNetwork,
    FeatureNetwork,
    NormalisedNetwork,
    load_backbone,
)
from flawmap.detectors.batches import Batch, check_finite
from flawmap.detectors.detector import Detector
from flawmap.detectors.document import BackboneRecord, Stored, matching_backbone
from flawmap.detectors.parameters import LayerNames, WeightsPath
from flawmap.errors import NotFittedError, ParameterError
from flawmap.options import PrecisionChoice, Runtime
from flawmap.prediction import Size

MAX_POSITIONS = 2**22
"""Finest grid that a model file may ask for."""


class FeatureDetector(Detector):
    """A detector on the feature maps of a frozen backbone.

    Attributes after `fit`:
        shapes_: channels and grid (h, w) of each layer.

    Example:
        >>> from flawmap import MahalanobisAD
        >>> MahalanobisAD(layers=["blocks.1"]).parameters.backbone
        'efficientnet_lite0'
    """

    name = ""
    has_head: ClassVar[bool] = True
    """Whether it scores by a network, the backbone and a head."""
    most_graph_bytes: ClassVar[int] = 256 * 2**20
    """Constants of a head up to which one graph pays: it holds a copy of them, and saves less the larger they are."""

    backbone: Annotated[str, Field(description="A name of `flawmap.backbones.CATALOGUE` or any timm name.")] = (
        DEFAULT_BACKBONE
    )
    layers: Annotated[LayerNames, Field(description="Module names; None: the backbone's usual ones.")] = None
    pretrained: Annotated[bool, Field(description="False: random weights, by `seed`.")] = True
    weights: Annotated[
        WeightsPath, Field(description="A weights file, or `hf-hub:REPO`; None: found on this machine.")
    ] = None
    runtime: Annotated[
        Runtime,
        Field(
            exclude=True,
            description='"torch", or "openvino" on the CPU. "auto": torch on a GPU and for float32 models of 32 '
            "images and fewer, else OpenVINO.",
        ),
    ] = "auto"

    def __init__(self, **parameters: Any) -> None:  # noqa: ANN401 (typed by the class's annotations)
        super().__init__(**parameters)
        self._backbone: Backbone | None = None
        self.shapes_: list[tuple[int, Size]] = []
        self._graph: CompiledNetwork | None = None
        self._may_compile = False

    @property
    def backbone_(self) -> Backbone:
        """The frozen network, its weights and its normalisation."""
        if self._backbone is None:
            self._check_fitted()
            raise NotFittedError(f"this {type(self).__name__} has no backbone yet; call fit(good_images)")
        return self._backbone

    def network(self, *, for_graph: bool = False) -> nn.Module:
        """From images to maps and scores: the backbone and the detector's head."""
        backbone = self.backbone_
        if not for_graph:
            return FeatureNetwork(backbone.from_pixels, self._head(), masked=self.aligner_ is not None)
        frozen = copy.deepcopy(backbone.network).cpu().to(memory_format=torch.contiguous_format)
        features = NormalisedNetwork(frozen, backbone.mean.cpu(), backbone.std.cpu())
        return FeatureNetwork(features, self._head(for_graph=True), masked=self.aligner_ is not None)

    def _head(self, *, for_graph: bool = False) -> nn.Module:  # noqa: ARG002 (for those that have one)
        """Feature maps (B, C, h, w) of each layer to anomaly maps, if any, and scores; see `network`.

        A head may also have `maps`, which leaves out the scores. Those of an image that does not show everything, as
        aligned images, follow from more than its map.
        """
        raise ParameterError(f"{self.name} has no network that a graph format could hold, and cannot be exported")

    def _load_backbone(
        self, layers: Sequence[str] | None, *, n_images: int, most_layers: int, precision: PrecisionChoice = "float32"
    ) -> Backbone:
        """The backbone for a fit on so many images; sets `shapes_`."""
        own = {name: getattr(self, name) for name in ("pretrained", "weights", "seed", "device", "runtime")}
        options: dict[str, Any] = {"precision": precision, "n_images": n_images, "most_layers": most_layers, **own}
        size = self.preprocessing.input_size
        backbone = load_backbone(self.backbone, layers=layers, input_size=size, **options)
        self.shapes_ = backbone.shapes(size)
        return backbone

    def _score(self, batch: Batch) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """By one compiled graph; or the backbone as `fit` ran it, and then the head by torch.

        One graph makes two libraries wait for each other's threads less: it needs 0.6 to 0.9 of their time. In bfloat16
        only the backbone is rounded, as in the fit that the threshold is from, so torch computes the head.
        """
        if self._may_compile:
            self._compile()
        if self._graph is not None:
            outputs = self._graph(batch.pixels)
        else:
            head = self._network = self._network or self._head().eval()
            features = self.backbone_.features(batch.pixels)
            shown = batch.pixels[..., 3:].squeeze(-1) if self.aligner_ is not None else None
            given = (features,) if shown is None else (features, torch.from_numpy(shown.copy()))
            maps_alone = getattr(head, "maps", None)
            with torch.inference_mode():
                if shown is None and maps_alone is not None:
                    return maps_alone(*given).cpu().numpy(), None
                outputs = list(head(*given))
        *maps, scores = (output.cpu().numpy() for output in outputs)
        if not maps:
            return None, scores
        return maps[0], None if self.aligner_ is None else scores

    def _compile(self) -> None:
        with NETWORKS:
            if self._may_compile and self._input is not None:
                backbone, size = self.backbone_, self._input.input_size
                network = FeatureNetwork(
                    backbone.from_pixels, self._head(for_graph=True), masked=self.aligner_ is not None
                )
                self._graph = backbone.policy.compile(network, size, backbone.name)
                self._may_compile = False

    def _prepare(self) -> None:
        super()._prepare()
        policy = self.backbone_.policy
        pays = self.has_head and policy.compiles and policy.precision == "float32"
        self._graph, self._may_compile = None, pays and self._head_bytes() <= self.most_graph_bytes

    def _make_ready(self) -> None:
        self._compile()
        if self._graph is None:
            self.backbone_.compile_for(self.preprocessing.input_size)
            if self.has_head:
                self._network = self._head().eval()

    def _head_bytes(self) -> int:
        """Memory of the head's constants."""
        return 0

    def _backbone_record(self) -> BackboneRecord:
        return BackboneRecord.of(self.backbone_, self.shapes_, pretrained=self.pretrained, seed=self.seed)

    def _restore(self, stored: Stored) -> None:
        """The file's tensors first, checked against its description; then the backbone with its very weights."""
        record = stored.document.backbone
        if record is None or not len(record.grids) == len(record.n_channels) == len(record.layers):
            raise ParameterError("layers, grids and channel counts differ in number")
        input_size = self.preprocessing.input_size
        if any(math.prod(grid) > min(MAX_POSITIONS, math.prod(input_size)) for grid in record.grids):
            raise ParameterError("a grid is finer than the images")
        self.shapes_ = list(zip(record.n_channels, record.grids, strict=True))
        self._unpack(stored)
        self._backbone = matching_backbone(stored, self.weights, self.runtime, Claim(input_size, self.shapes_))

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph, which belongs to this process and is made anew in another."""
        compiles = self._may_compile or self._graph is not None
        return {**self.__dict__, "_graph": None, "_may_compile": compiles}


def feature_maps(backbone: Backbone, batch: Batch) -> list[Tensor]:
    """Feature maps (B, C, h, w) of each layer, finite. Raises TrainingSetError."""
    maps = backbone.features(batch.pixels)
    check_finite(maps, batch)
    return maps
