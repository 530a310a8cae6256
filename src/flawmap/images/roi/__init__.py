"""Regions of interest: drawn on a photo, read, and laid on the model's input; nothing outside is inspected."""

from flawmap.images.roi.drawing import Drawing
from flawmap.images.roi.placing import RoiPreprocessing, place_roi
from flawmap.images.roi.reading import read_roi
from flawmap.images.roi.record import RoiRecord

__all__ = ["Drawing", "RoiPreprocessing", "RoiRecord", "place_roi", "read_roi"]
