"""`flawmap export`: write a model as a graph that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flawmap.cli.console import JsonOption, QuietOption, WeightsOption, guarded, messages, print_json
from flawmap.options import GraphDtype, GraphFormat


@guarded
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of `flawmap fit`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; an earlier export is replaced.")
    ],
    format: Annotated[GraphFormat, typer.Option("--format", help="Format of the graph.")] = "openvino",
    dtype: Annotated[
        GraphDtype, typer.Option("--dtype", help="Type of stored constants; float16 halves the files.")
    ] = "float32",
    resize: Annotated[
        bool, typer.Option("--resize", help="Include the resize: the graph accepts images of any size.")
    ] = False,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
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
        messages.print(f"Wrote {escape(str(folder))}: {', '.join(files)}; {megabytes:.0f} MB.")
        if detector.decision_ is None:
            messages.print("[yellow]note:[/] this model is not calibrated: the export gives scores, but no labels.")
