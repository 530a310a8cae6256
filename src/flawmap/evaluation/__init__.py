"""How well a detector tells good images from anomalous ones, and where: the figures of the paper's tables."""

from flawmap.evaluation.class_mean import ClassMean, evaluate_classes, mean_figures
from flawmap.evaluation.evaluate import Evaluation, Figures, evaluate, labelled_scores

__all__ = [
    "ClassMean",
    "Evaluation",
    "Figures",
    "evaluate",
    "evaluate_classes",
    "labelled_scores",
    "mean_figures",
]
