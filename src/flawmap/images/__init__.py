"""Images: found, decoded, made ready for a model."""

from flawmap.images.masks import (
    ClassMask,
    DefectMasks,
    Mask,
    MaskFrame,
    MaskSource,
    Saturation,
    inspect_mask,
    read_mask,
)
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, read_image
from flawmap.images.source import SUFFIXES, ImageCollection, ImageInput, collect
from flawmap.images.stream import LEARNT, Loaded, digest, load_image, stream
from flawmap.images.video import FrameReader, VideoFrame

__all__ = [
    "LEARNT",
    "SUFFIXES",
    "ClassMask",
    "DefectMasks",
    "FrameReader",
    "ImageCollection",
    "ImageInput",
    "ImageSource",
    "Loaded",
    "Mask",
    "MaskFrame",
    "MaskSource",
    "Preprocessing",
    "Saturation",
    "VideoFrame",
    "collect",
    "digest",
    "inspect_mask",
    "load_image",
    "read_image",
    "read_mask",
    "stream",
]
