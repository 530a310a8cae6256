"""Anomaly maps of images by a fitted PaDiM, in whichever way is fastest for it on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flawmap.backbones import COMPILE_AFTER, NETWORKS, Backbone, CompiledNetwork
from flawmap.detectors import passes
from flawmap.detectors.padim.gaussian import Factor, squared_distances
from flawmap.detectors.padim.graph import ScoringNetwork
from flawmap.images import Loaded, Preprocessing
from flawmap.prediction import Size

__all__ = ["Scorer"]

MOST_BYTES = 256 * 2**20
"""Factors up to which one graph pays: it holds a copy of them, and the larger they are the less it saves."""


class Scorer:
    """Makes maps and scores of batches of images.

    On a CPU, once OpenVINO runs the backbone, one graph holds the distances and maps too: two libraries in turn would
    wait for each other's threads. It takes 0.6 to 0.9 of their time, for one image or eight. In bfloat16 only the
    backbone is rounded, as in the fit that the threshold comes from, so the distances stay with torch.
    """

    def __init__(self, backbone: Backbone, factor: Factor, input_size: Size) -> None:
        self.factor = factor
        self._backbone, self._input_size = backbone, input_size
        n_bytes = sum(part.nbytes for part in (*factor.own, *factor.cross))
        self._may_compile = (
            backbone.precision == "float32" and n_bytes <= MOST_BYTES and factor.hierarchy.projection is None
        )
        self._graph: CompiledNetwork | None = None
        self._n_seen = 0

    def __call__(self, batch: Sequence[Loaded]) -> tuple[Tensor, Tensor]:
        """Anomaly maps (B, H, W) and image scores (B,), on the CPU."""
        if self._may_compile and self._graph is None and self._is_worth_compiling(len(batch)):
            with NETWORKS:
                if self._may_compile and self._graph is None:
                    self._compile()
        self._n_seen += len(batch)
        if self._graph is None:
            return passes.map_batch(batch, self.distances(batch), self._input_size)
        maps = self._graph(passes.pixels_of(batch))[0]
        passes.check_finite([maps], batch)
        return passes.score_maps(batch, maps)

    def distances(self, batch: Sequence[Loaded]) -> Tensor:
        """Patch distances (B, h, w) on the finest grid."""
        columns = passes.embed(self._backbone, self.factor.hierarchy, batch)
        return squared_distances(self.factor, columns).sqrt_()

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph, which belongs to this process and is made anew in another."""
        return {**self.__dict__, "_graph": None}

    def _compile(self) -> None:
        network = ScoringNetwork(self._backbone.from_pixels, self.factor, Preprocessing(self._input_size))
        self._graph = self._backbone.compile(network, self._input_size)
        self._may_compile = self._graph is not None

    def _is_worth_compiling(self, n_images: int) -> bool:
        """Whether so many more images are to be scored by one graph: where the backbone is not compiled yet, it is."""
        if self._backbone.is_compiled(self._input_size):
            return self._n_seen + n_images > COMPILE_AFTER
        return self._backbone.is_worth_compiling(self._input_size, n_images)
