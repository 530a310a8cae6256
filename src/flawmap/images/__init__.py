"""Images: found, decoded, made ready for a model."""

from flawmap.images.formats import SUFFIXES, describe_passed_over
from flawmap.images.masks import ClassMask, MaskFrame, MaskSource, read_mask
from flawmap.images.pages import ImagePage, first_page
from flawmap.images.photo import Photo
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, read_image, read_photo
from flawmap.images.source import ImageCollection, ImageInput, collect, named_source
from flawmap.images.stream import Loaded, digest, load_image, stream
from flawmap.images.video import FrameReader, VideoFrame

__all__ = [
    "SUFFIXES",
    "ClassMask",
    "FrameReader",
    "ImageCollection",
    "ImageInput",
    "ImagePage",
    "ImageSource",
    "Loaded",
    "MaskFrame",
    "MaskSource",
    "Photo",
    "Preprocessing",
    "VideoFrame",
    "collect",
    "describe_passed_over",
    "digest",
    "first_page",
    "load_image",
    "named_source",
    "read_image",
    "read_mask",
    "read_photo",
    "stream",
]
