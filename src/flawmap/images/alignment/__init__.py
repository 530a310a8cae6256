"""Alignment: a reference is learnt from good images, and every image is turned and shifted as it lies."""

from flawmap.images.alignment.aligner import AlignedPreprocessing, Aligner
from flawmap.images.alignment.choice import Sample, learn_aligner, spread
from flawmap.images.alignment.record import COLOURS, GREY, AlignmentRecord, pictures

__all__ = [
    "COLOURS",
    "GREY",
    "AlignedPreprocessing",
    "Aligner",
    "AlignmentRecord",
    "Sample",
    "learn_aligner",
    "pictures",
    "spread",
]
