"""SPADE as a detector: its parameters, what it learns, what its model file keeps."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from flawmap.backbones import feature_levels, plain_torch, usual_layers
from flawmap.detectors.batches import Batch, batch_size, in_batches
from flawmap.detectors.calibration import HeldOutScores
from flawmap.detectors.document import Record, Stored
from flawmap.detectors.feature_detector import FeatureDetector
from flawmap.detectors.good_images import GoodImages
from flawmap.detectors.parameters import CacheMegabytes, whole_number
from flawmap.detectors.spade import search
from flawmap.detectors.spade.gallery import Gallery
from flawmap.detectors.spade.search import QUERY_IMAGES, Known, Layout, Sample, Variant
from flawmap.errors import ModelFileError, ParameterError, TrainingSetError
from flawmap.images import ImageInput, collect, stream
from flawmap.model_file import MAX_ROWS, ModelFile, Streamed
from flawmap.options import MIN_IMAGES, FactorDtype

MAX_LAYERS = 5
USUAL_NEIGHBORS: dict[Variant, int] = {"paper": 50, "port": 5}


class LearntRecord(Record):
    """What the document keeps.

    Attributes:
        layers: layers whose patches are compared. image_layer: layer that is pooled to find the nearest images.
        n_neighbors: nearest images that are compared with.
    """

    layers: tuple[str, ...] = Field(min_length=1, max_length=MAX_LAYERS)
    image_layer: str
    n_neighbors: int = Field(ge=1)


def _check_coreset(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"coreset must lie between 0 and 1, got {value}")
    return value


class SPADE(FeatureDetector):
    """Remembers good images; scores new ones by their distance to the most similar of these, image and patch alike.

    Source: Cohen & Hoshen 2020, arXiv 2005.02357. The image score is the mean distance of the pooled last features to
    those of the K nearest good images. The map is the distance of each patch to the nearest of all patches of these K
    images (kappa = 1), up-sampled and smoothed. The model holds the features of every good image: 5.6 MB each for Wide
    ResNet-50-2 at 224 x 224.

    Variant "paper" compares the layers' patches as one concatenated vector, by squared distances as in its equations,
    with K = 50; the coarser layers are repeated onto the finest grid, since the paper does not say how. "port" follows
    the public re-implementation: each layer is searched alone, by distances, the layers' maps are averaged, and K = 5.

    With `coreset`, the cells that are kept cover the others (greedy k-centre); gallery, file and patch search shrink by
    as much. It needs the distances between all cells of an image (under 10 ms at 14 x 14 cells) and raises the
    distances of patches whose nearest one is gone: maps of good images become less even.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> good = rng.normal(128, 20, (6, 64, 64, 3)).clip(0, 255).astype(np.uint8)
        >>> model = SPADE(resize=64, layers=["blocks.1"], image_layer="blocks.2").fit(good)
        >>> model.n_neighbors_, model.predict(255 - good[0] // 4).pred_label
        (6, 1)

    Attributes after `fit`, beside those of every detector:
        n_neighbors_: K.
    """

    name = "spade"
    presets: ClassVar = {
        # Cohen & Hoshen 2020, with 50 neighbours as for MVTec AD.
        "spade-wr50": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer1", "layer2", "layer3"),
            "image_layer": "layer4",
            "n_neighbors": 50,
            "variant": "paper",
            "resize": 256,
            "crop": 224,
            "reading": "whole",
        }
    }

    has_head = False
    takes_roi = False

    image_layer: Annotated[
        str | None, Field(description="Layer that is averaged over the image to find the nearest ones; None: the last.")
    ] = None
    n_neighbors: Annotated[
        int | None, whole_number(), Field(description="K; None: the variant's, or all good images if these are fewer.")
    ] = None
    variant: Annotated[Variant, Field(description='"paper", or "port": the public re-implementation.')] = "paper"
    coreset: Annotated[
        float | None,
        AfterValidator(_check_coreset),
        Field(description="Share of each image's coarsest cells to keep; None: all."),
    ] = None
    n_mapped: Annotated[
        int,
        whole_number(),
        Field(description="Good images, drawn at random, whose maps set the pixel threshold; each like a prediction."),
    ] = 50
    cache_mb: Annotated[
        CacheMegabytes,
        Field(
            description="Memory for the gallery. The rest is read from a file: a temporary one in TMPDIR after `fit`, "
            "the model file after `load`."
        ),
    ] = 1024

    @property
    def map_scale(self) -> tuple[float, float]:
        """Map values that pictures show as coolest, the median of good images, and as hottest.

        The pixel threshold is in the middle. A model that was not calibrated compares its first good image with the
        others and shows 1.5 to 8 times its median distance.
        """
        if self.decision_ is not None:
            typical = float(self.decision_.pixel_quantiles[0])  # PIXEL_RATES begin with a half
            return typical, max(2 * self.decision_.pixel_threshold - typical, 1.1 * typical)
        self._check_fitted()
        typical = search.typical_distance(self._layout, self._known, n_neighbors=self.n_neighbors_)
        return 1.5 * typical, 8 * typical

    @plain_torch()
    def distances(self, images: ImageInput, *, batch_size: int | None = None) -> list[NDArray[np.float32]]:
        """Patch distances (N, h, w) before up-sampling and smoothing: one array, or one per layer of variant "port"."""
        self._check_fitted()
        loaded = stream(collect(images).items, self.preprocessing, workers=self.workers)
        parts = [
            self._search(batch)[1] for batch in in_batches(loaded, self._step if batch_size is None else batch_size)
        ]
        return [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]

    def _learn(self, good: GoodImages) -> HeldOutScores | None:
        """Raises TrainingSetError for fewer than two images, ParameterError for fewer than `n_neighbors`.

        ModelFileError if the gallery outgrows both `cache_mb` and the disk.
        """
        if good.count is not None:
            self._count_neighbors(good.count)  # before the work, and again without the bad images
        input_size = self.preprocessing.input_size
        layers, image_layer = self._choose_layers()
        read = layers if image_layer in layers else (*layers, image_layer)
        backbone = self._load_backbone(read, n_images=good.at_least, most_layers=MAX_LAYERS + 1)
        layout = self._layout_of(layers, image_layer, backbone.layers)
        sample = Sample(self.n_mapped if self.calibrate else 0, self.seed)
        known = search.learn(
            backbone, layout, good.first(batch_size(input_size)), cache_mb=self.cache_mb, sample=sample
        )
        n_neighbors = self._count_neighbors(len(good.learnt))
        held_out = None
        if self.calibrate and len(good.learnt) >= MIN_IMAGES:
            with good.progress("Calibrating", len(sample.kept)) as advance:
                held_out = search.calibrate(
                    backbone, layout, known, sample, input_size, n_neighbors=n_neighbors, advance=advance
                )
        self._backbone, self._layout, self._known = backbone, layout, known
        self._layers, self._image_layer, self.n_neighbors_ = layers, image_layer, n_neighbors
        return held_out

    def _score(self, batch: Batch) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        scores, distances = self._search(batch)
        return search.mean_maps(distances, self.preprocessing.input_size), scores.cpu().numpy()

    def _search(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        return search.patch_distances(
            self.backbone_, self._layout, self._known, batch.pixels, n_neighbors=self.n_neighbors_
        )

    def _prepare(self) -> None:
        super()._prepare()
        self._step = QUERY_IMAGES

    def _learnt(self) -> dict[str, Any]:
        return LearntRecord(
            layers=self._layers, image_layer=self._image_layer, n_neighbors=self.n_neighbors_
        ).model_dump(mode="json")

    def _tensors(self, dtype: FactorDtype) -> dict[str, Tensor | Streamed]:  # noqa: ARG002 (there are no factors)
        """The gallery is read from the old file, if there is one, until the new one is whole."""
        known = self._known
        gallery = Streamed((len(known.gallery), known.gallery.n_values), known.gallery.rows())
        return {"pooled": known.pooled, "gallery": gallery}

    def _unpack(self, stored: Stored) -> None:
        """The gallery stays in the file."""
        learnt, file, n_images = stored.learnt(LearntRecord), stored.file, stored.document.n_images
        read = () if stored.document.backbone is None else stored.document.backbone.layers
        layers, image_layer = learnt.layers, learnt.image_layer
        if read != (layers if image_layer in layers else (*layers, image_layer)):
            raise ParameterError("the backbone's layers are not those that are compared")
        if learnt.n_neighbors > n_images:
            raise ParameterError("there are more neighbours than images")
        layout = self._layout_of(layers, image_layer, read)
        expected: dict[str, tuple[int, ...]] = {
            "pooled": (n_images, self.shapes_[layout.image_layer][0]),
            "gallery": (n_images, layout.n_values),
        }
        tensors = stored.read(expected, leave=("gallery",))
        if file.dtypes["gallery"] != "F32":
            raise ModelFileError(f"{file.path}: its gallery is of {file.dtypes['gallery']}, expected F32; fit again")
        self._layout, self._stored = layout, partial(self._open_gallery, tensors["pooled"], file)
        self._layers, self._image_layer, self.n_neighbors_ = layers, image_layer, learnt.n_neighbors

    def _open_gallery(self, pooled: Tensor, file: ModelFile) -> Known:
        return Known(pooled, Gallery.open(file, "gallery", cache_mb=self.cache_mb))

    def _make_ready(self) -> None:
        super()._make_ready()
        self._known = self._stored()  # last: a file stays open from here on

    def _layout_of(self, layers: tuple[str, ...], image_layer: str, read: tuple[str, ...]) -> Layout:
        """How images become rows of the gallery, of the layers that the backbone reads."""
        return Layout.of(self.shapes_, len(layers), read.index(image_layer), variant=self.variant, coreset=self.coreset)

    def _choose_layers(self) -> tuple[tuple[str, ...], str]:
        """The layers whose patches are compared, and the one that is pooled."""
        layers = usual_layers(self.backbone) if self.layers is None else self.layers
        if not 1 <= len(layers) <= MAX_LAYERS:
            raise ParameterError(f"layers must be one to {MAX_LAYERS} distinct names, got {list(layers)}")
        if self.image_layer is not None:
            return tuple(layers), self.image_layer
        last = (level for level in reversed(feature_levels(self.backbone)) if level not in ("bn1", "bn2"))
        return tuple(layers), next(last)

    def _count_neighbors(self, n_images: int) -> int:
        """K; raises for too few good images, and for more than a gallery has room for."""
        if n_images < 2:
            raise TrainingSetError(
                f"SPADE compares with similar images and needs at least 2 good images, got {n_images} usable; "
                f"a few dozen are a good start"
            )
        if n_images > MAX_ROWS:
            raise TrainingSetError(
                f"SPADE keeps a gallery of at most {MAX_ROWS} images, got {n_images}; give fewer, or use PaDiM"
            )
        if self.n_neighbors is None:
            return min(USUAL_NEIGHBORS[self.variant], n_images)
        if self.n_neighbors > n_images:
            raise ParameterError(
                f"n_neighbors={self.n_neighbors} is more than the {n_images} good images; lower it, or leave it out"
            )
        return self.n_neighbors
