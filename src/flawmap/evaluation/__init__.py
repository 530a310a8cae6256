"""How well a detector separates good images from anomalous ones, and where: the figures of the paper's tables."""

from flawmap.evaluation.evaluate import (
    ClassMean,
    Evaluation,
    Figures,
    evaluate,
    evaluate_classes,
    labelled_scores,
    mean_figures,
)

__all__ = ["ClassMean", "Evaluation", "Figures", "evaluate", "evaluate_classes", "labelled_scores", "mean_figures"]
