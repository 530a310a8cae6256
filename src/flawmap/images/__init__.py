"""Images: found, decoded, made ready for a model."""

from flawmap.images.masks import ClassMask, MaskFrame, MaskSource, read_mask
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, Photo, read_image, read_photo
from flawmap.images.source import SUFFIXES, ImageCollection, ImageInput, collect
from flawmap.images.stream import Loaded, digest, load_image, stream
from flawmap.images.video import FrameReader, VideoFrame

__all__ = [
    "SUFFIXES",
    "ClassMask",
    "FrameReader",
    "ImageCollection",
    "ImageInput",
    "ImageSource",
    "Loaded",
    "MaskFrame",
    "MaskSource",
    "Photo",
    "Preprocessing",
    "VideoFrame",
    "collect",
    "digest",
    "load_image",
    "read_image",
    "read_mask",
    "read_photo",
    "stream",
]
