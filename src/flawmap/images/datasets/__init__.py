"""The data sets flawmap knows: their layouts on disk, their published numbers, and a check of both."""

from flawmap.images.datasets.catalogue import LAYOUTS, find_classes, find_layout, open_dataset, training_images
from flawmap.images.datasets.dataset import GOOD, Dataset, Sample
from flawmap.images.datasets.layout import Counts, Layout

__all__ = [
    "GOOD",
    "LAYOUTS",
    "Counts",
    "Dataset",
    "Layout",
    "Sample",
    "find_classes",
    "find_layout",
    "open_dataset",
    "training_images",
]
