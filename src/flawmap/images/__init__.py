"""Images: found, decoded, made ready for a model; and the data sets flawmap knows."""

from flawmap.images.catalogue import open_dataset, training_images
from flawmap.images.dataset import Dataset, Sample
from flawmap.images.preprocessing import Preprocessing
from flawmap.images.read import ImageSource, read_image, read_mask
from flawmap.images.replay import Replay
from flawmap.images.source import ImageCollection, ImageInput, collect
from flawmap.images.stream import Loaded, stream

__all__ = [
    "Dataset",
    "ImageCollection",
    "ImageInput",
    "ImageSource",
    "Loaded",
    "Preprocessing",
    "Replay",
    "Sample",
    "collect",
    "open_dataset",
    "read_image",
    "read_mask",
    "stream",
    "training_images",
]
