"""`flawmap export`: write a model as a graph that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from flawmap.cli import options
from flawmap.cli.console import guarded, note, print_json, say
from flawmap.cli.options import option
from flawmap.options import GraphDtype, GraphFormat


@guarded
def export(
    model: options.Model,
    output: Annotated[Path, option("Folder to write; an earlier export is replaced.", "DIR", "--output", "-o")],
    format: Annotated[GraphFormat, option("Format of the graph.")] = "openvino",
    dtype: Annotated[GraphDtype, option("Type of stored constants; float16 halves the files.")] = "float32",
    resize: Annotated[
        bool, option("Include the resize: the graph accepts images of any size.", None, "--resize")
    ] = False,
    weights: options.Weights = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write MODEL as one graph, from uint8 images to anomaly map and score, with metadata.json beside it.

    It runs without torch: by `flawmap.Inspector` in Python, or by OpenVINO or ONNX Runtime in any language.
    """
    from flawmap import export_model, load

    detector = load(model, weights=weights, device="cpu", runtime="torch")
    folder = export_model(detector, output, format=format, dtype=dtype, resize_inside=resize)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if as_json:
        print_json({"output": str(folder), "format": format, "dtype": dtype, "files": files})
    elif not quiet:
        megabytes = sum(files.values()) / 1e6
        say(f"Wrote {folder}: {', '.join(files)}; {megabytes:.0f} MB.")
        if detector.decision_ is None:
            note("this model is not calibrated: the export gives scores, but no labels.")
