"""Time and memory of every system, also against the number of good images it is fitted on.

Weights and images are random: neither time nor memory depends on them. Trained systems do a single step, on a few
images if their size does not depend on the number of images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawmap.benchmark.paper.systems import System
from flawmap.benchmark.timing import interleaved
from flawmap.detectors import ITAE, SPADE, VAE, GANomaly
from flawmap.errors import ParameterError
from flawmap.export import export_model
from flawmap.images import Preprocessing
from flawmap.runtime import Inspector

GROWING = ("SPADE", "PaDiM-R18-Rd100")
"""Systems measured at several numbers of good images: one that stores all images, and one that does not."""
STEADY, FEW = (VAE, GANomaly, ITAE), 8
"""Systems whose time and memory do not depend on the number of good images, and the number they are fitted on."""
INPUT = {"resize": 256, "crop": 224}
ROUNDS = 2


def measure_footprint(system: System, *, n_images: int) -> dict[str, float | None]:
    """Median seconds of one image, from array to map and score, and gigabytes of the model's file.

    Seconds are those of the exported graph, or of `predict` for a detector that cannot be exported.
    """
    detectors = system.make(0, dict(INPUT))
    if len(detectors) != 1:
        raise ParameterError(f"{system.name} is several models; time and memory are measured of one")
    [model] = detectors
    model.calibrate = None  # what a fit takes is not measured
    n_needed = min(n_images, FEW) if isinstance(model, STEADY) else n_images
    model.fit(_images(n_needed, model.preprocessing))
    batch = np.stack(_images(1, model.preprocessing))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.flawmap")
        model.save(path)
        gigabytes = path.stat().st_size / 1e9
        if isinstance(model, SPADE):  # its gallery is no part of a graph
            latency = interleaved({"predict": lambda: model.predict(batch)}, rounds=1)["predict"]
        else:
            inspector = Inspector(export_model(model, Path(folder, "export")))
            latency = interleaved({"graph": lambda: inspector.score_batch(batch)}, rounds=ROUNDS)["graph"]
    return {"seconds": latency.p50 / 1000, "gigabytes": gigabytes}


def _images(n_images: int, preprocessing: Preprocessing) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*preprocessing.resize, 3), np.uint8) for _ in range(n_images)]
