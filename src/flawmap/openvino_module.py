"""OpenVINO, imported so that it stays silent."""

from __future__ import annotations

import sys
from typing import Any, cast

from flawmap.errors import MissingDependencyError

TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:  # noqa: ANN401 (a module)
    """The openvino module, imported without the package by which it would report its use over the network.

    Raises MissingDependencyError.
    """
    modules = cast(dict[str, Any], sys.modules)
    before = {TELEMETRY: modules[TELEMETRY]} if TELEMETRY in modules else {}
    modules[TELEMETRY] = None  # openvino then does without
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs OpenVINO, which cannot be imported ({error}): pip install openvino"
        ) from error
    finally:
        del modules[TELEMETRY]
        modules.update(before)
    return openvino


def has_bfloat16(device: str = "CPU") -> bool:
    """Whether an OpenVINO device computes in bfloat16 of its own. Raises MissingDependencyError."""
    return "BF16" in import_openvino().Core().get_property(device, "OPTIMIZATION_CAPABILITIES")
