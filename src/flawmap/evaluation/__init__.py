"""How well a detector separates good images from anomalous ones, and where: the figures of the paper's tables."""

from flawmap.evaluation.evaluate import LabelledScores, evaluate, evaluate_classes, labelled_scores
from flawmap.evaluation.figures import ClassMean, Evaluation, Figures, mean_figures

__all__ = [
    "ClassMean",
    "Evaluation",
    "Figures",
    "LabelledScores",
    "evaluate",
    "evaluate_classes",
    "labelled_scores",
    "mean_figures",
]
