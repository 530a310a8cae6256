"""PaDiM as a detector: its parameters, what it learns, what its model file keeps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from flawmap.backbones import plain_torch
from flawmap.decision import TOP_SHARE
from flawmap.detectors.anomaly_map import cells_of
from flawmap.detectors.batches import batch_size, in_batches
from flawmap.detectors.calibration import HeldOutScores
from flawmap.detectors.document import Document, Record, Stored
from flawmap.detectors.feature_detector import FeatureDetector
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.padim.embedding import Hierarchy, Level, build_hierarchy, project_hierarchy
from flawmap.detectors.padim.fit import choose_channels, learn, reduced_hierarchy
from flawmap.detectors.padim.gaussian.factor import Factor, covariance_at, mean_at, typical_distance
from flawmap.detectors.padim.gaussian.moments import Regularization
from flawmap.detectors.padim.graph import PaDiMHead
from flawmap.detectors.padim.leave_one_out import REFIT_BELOW
from flawmap.detectors.padim.pooling import in_blocks
from flawmap.detectors.parameters import CacheMegabytes, GroupRule, whole_number
from flawmap.errors import ParameterError
from flawmap.images import ImageInput, collect, stream
from flawmap.images.alignment import COLOURS, GREY, AlignmentRecord, pictures
from flawmap.model_file import Streamed, is_finite
from flawmap.options import Alignment, Calibration, FactorDtype, PrecisionChoice

MAX_LAYERS = 5
MAX_CHANNELS = MAX_LAYERS * 65536
"""Highest index of a channel that a model file may name."""
KNOWN = "alignment.known"
"""Tensor (cells,) of the coarsest level: 1 where enough good images show a cell."""
COMPONENTS = "pca.components"
"""Tensor (channels, n_features) of a model reduced by principal components."""
SCORES = {"max": 0.0, "top": TOP_SHARE}
"""Parts of a map whose mean is its score."""
_PAPER_IMAGES: dict[str, Any] = {
    **{"resize": 256, "crop": 224, "reading": "whole"},
    **{"score": "max", "align": "none", "regularization": 0.01},
}


class RegularizationRecord(Record):
    """What the covariances were regularised by."""

    ridge: float = Field(ge=0)
    sharing: float = Field(ge=0, le=1)


class LearntRecord(Record):
    """What the document keeps of a PaDiM: the channels are indices into the concatenated layers."""

    channels: tuple[Annotated[int, Field(ge=0, le=MAX_CHANNELS)], ...] = Field(min_length=1, max_length=65536)
    regularization: RegularizationRecord
    alignment: AlignmentRecord | None = None


def _check_regularization(value: object) -> object:
    Regularization.of(value)
    return tuple(value) if isinstance(value, list) else value


def _check_score(value: object) -> object:
    if isinstance(value, str) and value in SCORES:
        return value
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(f"must be 'max', 'top' or a share from 0 to 1, got {value!r}")


def _check_channels(value: object) -> object:
    if value is None:
        return None
    channels = np.asarray(value)
    if channels.ndim != 1 or channels.dtype.kind not in "iu" or channels.min(initial=0) < 0:
        raise ValueError(f"must be a list of integers from 0, got {value!r}")
    return channels.tolist()


class PaDiM(FeatureDetector):
    """Learns one Gaussian per patch position from good images; scores new ones by their Mahalanobis distance.

    Source: Defard et al. 2020, arXiv 2011.08785.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> good = rng.normal(128, 20, (8, 64, 64, 3)).clip(0, 255).astype(np.uint8)
        >>> model = PaDiM(resize=64, layers=["blocks.1"], n_features=4).fit(good)
        >>> bad = good[0].copy()
        >>> bad[20:40, 20:40] = 255
        >>> prediction = model.predict(bad)
        >>> prediction.pred_label, prediction.anomaly_map.shape
        (1, (64, 64))

    Attributes after `fit`, beside those of every detector:
        factor_: the Gaussians. channels_: (d,) indices into the concatenated layers.
        regularization_: what the covariances were regularised by. shapes_: channels and grid (h, w) of each layer.
    """

    name = "padim"
    presets: ClassVar = {
        "padim-r18-rd100": {"backbone": "resnet18", "n_features": 100, **_PAPER_IMAGES},
        "padim-wr50-rd550": {"backbone": "wide_resnet50_2", "n_features": 550, **_PAPER_IMAGES},
        # The paper reads the outputs of its stages 2, 4 and 5 and states no reduction: all 344 channels are kept.
        "padim-effnet-b5": {
            "backbone": "efficientnet_b5",
            "layers": ("blocks.1", "blocks.3", "blocks.4"),
            "n_features": None,
            **_PAPER_IMAGES,
        },
        # Of no paper: block 8 of 12 alone, of patches of 14 pixels (32 x 32 of them, 384 channels).
        "padim-dinov2-s": {"backbone": "vit_small_patch14_dinov2", "layers": ("blocks.8",), "resize": 448},
    }
    before: ClassVar = {**FeatureDetector.before, "score": "max", "align": "none"}
    factor_dtypes = get_args(FactorDtype)
    calibrations = get_args(Calibration)

    n_features: Annotated[
        int | None,
        whole_number(),
        Field(description="Channels drawn at random from the concatenated layers; None: all."),
    ] = None
    reduction: Annotated[
        Literal["random", "pca"],
        Field(description='"random" draws channels; "pca" computes that many principal components, in one more pass.'),
    ] = "random"
    channels: Annotated[
        Any,
        BeforeValidator(_check_channels),
        Field(description="Indices into the concatenated layers, in place of a draw."),
    ] = None
    regularization: Annotated[
        Literal["auto", "likelihood", "paper"] | float | tuple[float, float],
        BeforeValidator(_check_regularization),
        Field(
            description='Covariance regularization: "likelihood" by leave-one-out likelihood; "auto" by pasted defects '
            'too; "paper" adds 0.01 to every variance; a number adds that; (a, eps) also shrinks towards the mean '
            "covariance of all patches, by a."
        ),
    ] = "auto"
    precision: Annotated[
        PrecisionChoice,
        Field(description='Of the backbone. "bfloat16" is twice as fast where the processor has it; "auto": there.'),
    ] = "float32"
    blocks: Annotated[
        Literal[1, 2, 4],
        Field(
            description="Side of the blocks of coarsest cells that share a covariance: 1, 2 or 4. There are "
            "1, 4 or 16 times fewer covariances; each position keeps its mean."
        ),
    ] = 1
    score: Annotated[
        Literal["max", "top"] | float,
        BeforeValidator(_check_score),
        Field(
            description='An image\'s score: "max", the highest value of its anomaly map (the paper); "top", the mean '
            "of the highest 0.2 %; or of another share from 0 to 1."
        ),
    ] = "top"
    align: Annotated[
        Alignment,
        Field(
            description='Whether parts are turned and shifted to lie alike: "none", "shift", "rigid", "similarity"; '
            '"auto" takes what helps on the good images.'
        ),
    ] = "auto"
    groups: Annotated[
        GroupRule,
        Field(
            description='Images that are left out together: "auto" by the data set, or else near-duplicates and bursts '
            "that are found; a regular expression on the path, whose first group (or match) names the group; "
            '"folder"; or a function of the path. None: every image stands alone.'
        ),
    ] = "auto"
    refit_below: Annotated[
        int,
        whole_number(least=0),
        Field(description="Good images below which each is left out by a refit, and not by the closed form."),
    ] = REFIT_BELOW
    cache_mb: Annotated[
        CacheMegabytes, Field(description="Memory for images and their embeddings between the two passes of a fit.")
    ] = 448

    @plain_torch()
    def distances(self, images: ImageInput, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Patch distances (N, h, w) on the finest layer's grid, before up-sampling and smoothing (equation 2)."""
        backbone, head = self.backbone_, PaDiMHead(self.factor_, self.preprocessing.input_size)
        loaded = stream(collect(images).items, self.preprocessing, workers=self.workers)
        with torch.inference_mode():
            maps = [
                head.distances(backbone.features(batch.pixels)).cpu().numpy()
                for batch in in_batches(loaded, self._step if batch_size is None else batch_size)
            ]
        return np.concatenate(maps) if maps else np.empty((0, *self.factor_.hierarchy.grid), np.float32)

    def gaussian(self, row: int, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (d,) and regularised covariance (d, d) of a patch of the finest grid, in the order of `channels_`.

        Of a model reduced by principal components, in theirs.
        """
        self._check_fitted()
        height, width = self.factor_.hierarchy.grid
        if not (0 <= row < height and 0 <= column < width):
            raise ParameterError(f"the grid has {height} x {width} patches, got ({row}, {column})")
        position = row * width + column
        return mean_at(self.factor_, position).numpy(), covariance_at(self.factor_, position).numpy()

    def _learn(self, good: GoodImages) -> HeldOutScores | None:
        backbone = self._load_backbone(
            self.layers, n_images=good.at_least, most_layers=MAX_LAYERS, precision=self.precision
        )
        input_size = self.preprocessing.input_size
        n_total = sum(n for n, _ in self.shapes_)
        channels = choose_channels(n_total, self.reduction, self.n_features, self.channels, self.seed)
        features: Iterable[Sequence[Tensor]] = ()
        if self.reduction == "pca":
            size = good.batch_size or batch_size(input_size)
            features = (backbone.features(batch.pixels) for batch in good.look_ahead(size))
        hierarchy = self._inspected(
            reduced_hierarchy(self.shapes_, channels, self.reduction, self.n_features, features)
        )
        if self.aligner_ is not None and any(side % n for side, n in zip(input_size, hierarchy.grid, strict=True)):
            raise ParameterError(
                f"alignment needs an input of whole cells of {hierarchy.grid}, got {input_size}; choose a resize that "
                f"is a multiple of 32, or align='none'"
            )
        learnt = learn(
            good,
            backbone,
            hierarchy.to(backbone.device),
            input_size,
            regularization=Regularization.of(self.regularization),
            calibrate=self.calibrate,
            refit_below=self.refit_below,
            top_share=self._asked_share,
            trial_seed=self.seed if self.regularization == "auto" else None,
        )
        self._backbone, self.channels_ = backbone, channels
        self.factor_, self.regularization_ = learnt.factor, learnt.regularization
        return learnt.held_out

    @property
    def _asked_share(self) -> float:
        return SCORES[self.score] if isinstance(self.score, str) else float(self.score)

    def _head(self, *, for_graph: bool = False) -> nn.Module:
        size = self.preprocessing.input_size
        return PaDiMHead(self.factor_, size, top_share=self.top_share_, for_graph=for_graph, roi=self.roi_)

    def _prepare(self) -> None:
        super()._prepare()
        self.top_share_ = self._asked_share * self.factor_.inspected

    def _inspected(self, hierarchy: Hierarchy) -> Hierarchy:
        """The hierarchy with its blocks and the positions that are inspected.

        Raises ParameterError for less than one of the latter, or for grids that the blocks do not fill.
        """
        hierarchy = hierarchy if self.blocks == 1 else in_blocks(hierarchy, self.blocks)
        if self.roi_ is None:
            return hierarchy
        height, width = (n / cells for n, cells in zip(self.roi_.shape, hierarchy.grid, strict=True))
        if np.count_nonzero(self.roi_) < height * width:
            name = os.fspath(self.roi) if isinstance(self.roi, (str, os.PathLike)) else "roi"
            raise ParameterError(
                f"{name}: the region has {np.count_nonzero(self.roi_)} pixels of the model's input, less than "
                f"one patch of {height:g} x {width:g}. Draw a larger one, or choose a larger resize (--resize)"
            )
        cells = cells_of(self.roi_, hierarchy.grid)
        return replace(hierarchy, inspected=torch.from_numpy(cells.ravel()))

    def _head_bytes(self) -> int:
        return sum(part.nbytes for part in (*self.factor_.own, *self.factor_.cross))

    def _usual_scale(self) -> tuple[float, float]:
        """1.5 to 8 times a typical good patch's distance."""
        typical = typical_distance(self.factor_, regularization=self.regularization_, count=self.n_images_)
        return 1.5 * typical, 8 * typical

    def _image_cache(self) -> float:
        return self.cache_mb if self.calibrate else 0.0

    def _document(self, dtype: FactorDtype) -> Document:
        document = super()._document(dtype)
        if self.blocks > 1:
            return document
        known = {name: value for name, value in document.parameters.items() if name != "blocks"}
        return document.model_copy(update={"parameters": known})  # as files were before there were blocks

    def _learnt(self) -> dict[str, Any]:
        regularization = self.regularization_
        return LearntRecord(
            channels=tuple(self.channels_.tolist()),
            regularization=RegularizationRecord(ridge=regularization.ridge, sharing=regularization.sharing),
            alignment=None if self.aligner_ is None else AlignmentRecord.of(self.aligner_),
        ).model_dump(mode="json")

    def _tensors(self, dtype: FactorDtype) -> dict[str, Tensor | Streamed]:
        factor = self.factor_
        tensors: dict[str, Tensor | Streamed] = {}
        if self.aligner_ is not None and factor.known is not None:
            tensors |= {name: torch.from_numpy(picture) for name, picture in pictures(self.aligner_).items()}
            tensors[KNOWN] = factor.known
        if factor.hierarchy.projection is not None:
            tensors[COMPONENTS] = factor.hierarchy.projection.components
        for i, level in enumerate(factor.hierarchy.levels):
            name = self._level_name(level, self.backbone_.layers)
            tensors[f"{name}.mean"], tensors[f"{name}.own"] = factor.mean[i], _as_stored(factor.own[i], dtype)
            if level.n_coarser:
                tensors[f"{name}.cross"] = _as_stored(factor.cross[i], dtype)
        return tensors

    def _unpack(self, stored: Stored) -> None:
        learnt = stored.learnt(LearntRecord)
        record = stored.document.backbone
        layers = () if record is None else record.layers
        channels = np.array(learnt.channels, np.int64)
        hierarchy = self._inspected(self._described_hierarchy(channels))
        shapes = self._expected_shapes(hierarchy, layers)
        if learnt.alignment is not None:
            shapes |= {**learnt.alignment.shapes, KNOWN: (hierarchy.levels[0].n_cells,)}
            if not hierarchy.is_nested or any(
                side % n for side, n in zip(self.preprocessing.input_size, hierarchy.grid, strict=True)
            ):
                raise ParameterError("an aligned model's grids do not nest")
        tensors = stored.read(shapes)
        if learnt.alignment is not None:
            grey, colours = (tensors[name].cpu().numpy() for name in (GREY, COLOURS))
            self.aligner_ = learnt.alignment.restore(grey, colours, self.preprocessing.resize)
        names = [self._level_name(level, layers) for level in hierarchy.levels]
        if hierarchy.projection is not None:
            hierarchy = replace(hierarchy, projection=replace(hierarchy.projection, components=tensors[COMPONENTS]))
        coarsest = hierarchy.covariances.levels[0]
        no_cross = torch.empty(coarsest.n_cells, coarsest.n_channels, 0, device=stored.device)
        self.factor_ = Factor(
            hierarchy.to(stored.device),
            mean=[tensors[f"{name}.mean"] for name in names],
            cross=[no_cross, *(tensors[f"{name}.cross"] for name in names[1:])],
            own=[tensors[f"{name}.own"] for name in names],
            known=tensors.get(KNOWN),
        )
        self.channels_ = channels
        self.regularization_ = Regularization(learnt.regularization.ridge, learnt.regularization.sharing)

    def _described_hierarchy(self, channels: NDArray[np.int64]) -> Hierarchy:
        """The hierarchy of a file's layers and channels; ParameterError if they contradict each other."""
        if not 1 <= len(self.shapes_) <= MAX_LAYERS:
            raise ParameterError(f"there are {len(self.shapes_)} layers")
        grids, n_channels = [grid for _, grid in self.shapes_], [n for n, _ in self.shapes_]
        if np.any(np.diff(channels) <= 0):
            raise ParameterError("channels are not ascending")
        if self.reduction == "random":
            return build_hierarchy(grids, n_channels, channels)
        n_total, n_features = sum(n_channels), self.n_features or 0
        if not 1 <= n_features <= n_total or len(channels) != n_total:
            raise ParameterError(f"{n_features} principal components of {len(channels)} of {n_total} channels")
        return project_hierarchy(grids, torch.empty(n_total, n_features, device="meta"))

    def _expected_shapes(self, hierarchy: Hierarchy, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of a model file's tensors."""
        shapes: dict[str, tuple[int, ...]] = {}
        if hierarchy.projection is not None:
            shapes[COMPONENTS] = tuple(hierarchy.projection.components.shape)
        for level, shared in zip(hierarchy.levels, hierarchy.covariances.levels, strict=True):
            name = self._level_name(level, layers)
            shapes[f"{name}.mean"] = (level.n_positions, level.n_channels)
            shapes[f"{name}.own"] = (shared.n_cells, level.n_channels, level.n_channels)
            if level.n_coarser:
                shapes[f"{name}.cross"] = (shared.n_cells, level.n_channels, level.n_coarser)
        return shapes

    def _level_name(self, level: Level, layers: Sequence[str]) -> str:
        return layers[level.layer] if self.reduction == "random" else "pca"


def _as_stored(factor: Tensor, dtype: FactorDtype) -> Tensor:
    stored: Tensor = factor.to(getattr(torch, dtype))
    if not is_finite(stored):
        raise ParameterError("the factors hold numbers beyond float16; save with dtype='bfloat16'")
    return stored
