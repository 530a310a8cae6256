"""Alignment: a reference is learnt from good images, and every image is turned and shifted as it lies."""

from flawmap.images.alignment.aligner import AlignedPreprocessing, Aligner
from flawmap.images.alignment.choice import MOST_IMAGES, Sample, learn_aligner
from flawmap.images.alignment.record import COLOURS, GREY, AlignmentRecord, pictures

__all__ = [
    "COLOURS",
    "GREY",
    "MOST_IMAGES",
    "AlignedPreprocessing",
    "Aligner",
    "AlignmentRecord",
    "Sample",
    "learn_aligner",
    "pictures",
]
