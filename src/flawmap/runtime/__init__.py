"""Runs exported models with numpy, Pillow and OpenVINO or ONNX Runtime; imports no torch."""

from flawmap.runtime.inspector import Inspector
from flawmap.runtime.metadata import METADATA_FILE, Metadata

__all__ = ["METADATA_FILE", "Inspector", "Metadata"]
