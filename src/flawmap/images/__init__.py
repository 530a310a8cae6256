"""Images: found, decoded, made ready for a model."""

from flawmap.images.formats import SUFFIXES, describe_passed_over, describe_results
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
from flawmap.images.pages import ImagePage, first_page
from flawmap.images.photo import Photo
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, read_image, read_photo
from flawmap.images.source import ImageCollection, ImageInput, collect, named_source
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
    "ImagePage",
    "ImageSource",
    "Loaded",
    "Mask",
    "MaskFrame",
    "MaskSource",
    "Photo",
    "Preprocessing",
    "Saturation",
    "VideoFrame",
    "collect",
    "describe_passed_over",
    "describe_results",
    "digest",
    "first_page",
    "inspect_mask",
    "load_image",
    "named_source",
    "read_image",
    "read_mask",
    "read_photo",
    "stream",
]
