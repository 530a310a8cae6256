"""Writes an export folder: a graph and metadata.json, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors.numpy import save_file

from flawmap.backbones import plain_torch
from flawmap.detectors import Detector
from flawmap.errors import ModelFileError, ParameterError, first_line
from flawmap.export.graph import GraphNetwork
from flawmap.export.onnx import write_onnx
from flawmap.export.openvino import write_openvino
from flawmap.files import expand_home
from flawmap.folders import replace_folder_atomically
from flawmap.images import Preprocessing
from flawmap.images.alignment import AlignmentRecord, pictures
from flawmap.images.roi import RoiRecord
from flawmap.options import GraphDtype, GraphFormat
from flawmap.runtime.graphs import JUDGEMENTS, OUTPUTS
from flawmap.runtime.metadata import (
    ALIGNMENT_FILE,
    EXPORT_FILES,
    METADATA_FILE,
    DecisionMetadata,
    GraphMetadata,
    Metadata,
)

WRITERS = {"openvino": write_openvino, "onnx": write_onnx}


@plain_torch()
def export_model(
    model: Detector,
    folder: str | os.PathLike[str],
    *,
    format: GraphFormat = "openvino",
    dtype: GraphDtype = "float32",
    resize_inside: bool = False,
) -> Path:
    """Write a fitted model as one graph, from uint8 images to anomaly maps and scores, and metadata.json beside it.

    Args:
        model: the fitted model.
        folder: a new folder, or one of an earlier export, which is replaced.
        format: "openvino" or "onnx".
        dtype: of the stored constants; "float16" halves the folder and moves map values by up to a hundredth. The
            graph computes in float32 either way.
        resize_inside: whether the graph takes images of any size and resizes them; else they come at `resize`.

    Returns the folder. Raises ParameterError for a folder that holds anything else, ModelFileError if it cannot be
    written, MissingDependencyError for a missing package, NotFittedError for a model that was not fitted.
    """
    target = expand_home(folder)
    _check(model, format, dtype, resize_inside)
    preprocessing = model.preprocessing
    plain = Preprocessing(
        preprocessing.resize, preprocessing.crop, preprocessing.aspect, preprocessing.bits, preprocessing.reading
    )
    outputs = OUTPUTS if model.localises else OUTPUTS[-1:]
    # the graph does not know where the padding of a letterbox lies, nor whether a part was found
    aligner = model.aligner_
    decision = None if model.aspect == "letterbox" or aligner is not None else model.decision_
    described = model.describe()
    described.get("backbone", {}).pop("weights_path", None)  # a path on this machine
    network = GraphNetwork(
        model.network(for_graph=True),
        preprocessing.window,
        decision,
        roi=model.roi_ if aligner is None else None,  # else the network leaves out what lies outside by itself
        top_share=model.top_share_,
    )
    try:
        _check_folder(target)
        with replace_folder_atomically(target, check=lambda: _check_folder(target)) as temporary:
            WRITERS[format](
                network,
                temporary,
                image_size=preprocessing.resize,
                outputs=outputs if decision is None else (*outputs, *JUDGEMENTS),
                half=dtype == "float16",
                resize_inside=resize_inside,
            )
            if aligner is not None:
                save_file(pictures(aligner), temporary / ALIGNMENT_FILE)
            files = {name: _digest(temporary / name) for name in EXPORT_FILES if (temporary / name).exists()}
            Metadata(
                decision=None if model.decision_ is None else DecisionMetadata.of(model.decision_),
                image_size=preprocessing.resize,
                map_size=preprocessing.input_size,
                preprocessing=plain,
                map_scale=model.map_scale,
                top_share=model.top_share_,
                graph=GraphMetadata(format=format, dtype=dtype, resize_inside=resize_inside, files=files),
                images=model.good_photos_,
                alignment=None if aligner is None else AlignmentRecord.of(aligner),
                roi=None if model.roi_ is None else RoiRecord.of(model.roi_),
                model=described,
            ).write(temporary)
    except OSError as error:
        raise ModelFileError(
            f"{target}: cannot be written ({first_line(error)}); check that the place exists, is writable and "
            f"has room. Nothing was changed"
        ) from error
    return target


def _digest(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(model: Detector, format: str, dtype: str, resize_inside: bool) -> None:
    """Raise before any work is done for what cannot be."""
    if not isinstance(model, Detector):
        raise ParameterError(f"expected a fitted detector, got {type(model).__name__}")
    for name, value, choices in (("format", format, tuple(WRITERS)), ("dtype", dtype, model.graph_dtypes)):
        if value not in choices:
            expected = " or ".join(map(repr, choices))
            raise ParameterError(f"{name} must be {expected} for {model.name}, got {value!r}")
    if resize_inside and model.aligner_ is not None:
        raise ParameterError(
            "the model aligns images before the graph sees them; the resize cannot be inside the graph"
        )
    if resize_inside and model.aspect == "letterbox":
        raise ParameterError("the resize of a letterbox depends on each image and cannot be inside the graph")


def _check_folder(folder: Path) -> None:
    """Raise ParameterError for what an export may not replace, OSError for what cannot be a folder."""
    known = {METADATA_FILE, *EXPORT_FILES}
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ParameterError(f"{folder} is a file or a link; name a new folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.exists() else []
    if others:
        raise ParameterError(
            f"{folder} holds other files than an export ({', '.join(others[:3])}), which would be lost; name a new "
            f"folder"
        )
