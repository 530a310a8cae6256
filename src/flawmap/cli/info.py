"""`flawmap info`: the content of a model file."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from flawmap.cli import options
from flawmap.cli.console import guarded, literal, print_json


@guarded
def info(model: options.Model, as_json: options.Json = False) -> None:
    """Show the detector of a MODEL, its settings and its training images."""
    from flawmap.detectors import describe_file

    described = describe_file(model)  # which says what is wrong with the path
    content: dict[str, Any] = {"path": str(model), "bytes": model.stat().st_size, **described}
    if "channels" in content:  # of PaDiM alone
        content["n_channels_used"] = len(content["channels"])
    if as_json:
        print_json(content)
        return
    content.pop("channels", None)
    table = Table("", "", show_header=False, title=literal(str(model)))
    for name, value in content.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                table.add_row(f"{name}.{key}", _shown(inner))
        else:
            table.add_row(name, _shown(value))
    Console().print(table)


def _shown(value: object) -> str:
    return literal(value if isinstance(value, str) else json.dumps(value))
