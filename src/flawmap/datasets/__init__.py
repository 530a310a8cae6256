"""The data sets flawmap knows: their layouts on disk, their published numbers, and a check of both."""

from flawmap.datasets.catalogue import LAYOUTS, find_classes, find_layout, open_dataset, training_data, training_images
from flawmap.datasets.check import ClassReport, Problem, Report, check_dataset
from flawmap.datasets.dataset import GOOD, Dataset, Sample
from flawmap.datasets.layout import Counts, Layout
from flawmap.datasets.rd_mvtec_ad import RdImage, rd_images, write_rd_mvtec_ad

__all__ = [
    "GOOD",
    "LAYOUTS",
    "ClassReport",
    "Counts",
    "Dataset",
    "Layout",
    "Problem",
    "RdImage",
    "Report",
    "Sample",
    "check_dataset",
    "find_classes",
    "find_layout",
    "open_dataset",
    "rd_images",
    "training_data",
    "training_images",
    "write_rd_mvtec_ad",
]
