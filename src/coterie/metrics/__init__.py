"""What is measured of trained peers: accuracy, likelihood, calibration and similarity of embeddings."""

from coterie.metrics.accuracy import CohortScores, CohortTally, Measured, Scores, Tally, topk_correct
from coterie.metrics.agreement import Diversity, diversity
from coterie.metrics.calibration import CalibrationBins, brier_score, calibration_bins
from coterie.metrics.similarity import (
    ClassSimilarity,
    CrossSimilarity,
    SimilarityTally,
    class_similarity,
    cross_similarity,
)

__all__ = [
    "CalibrationBins",
    "ClassSimilarity",
    "CohortScores",
    "CohortTally",
    "CrossSimilarity",
    "Diversity",
    "Measured",
    "Scores",
    "SimilarityTally",
    "Tally",
    "brier_score",
    "calibration_bins",
    "class_similarity",
    "cross_similarity",
    "diversity",
    "topk_correct",
]
