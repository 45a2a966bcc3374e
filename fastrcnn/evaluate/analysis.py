"""All that explains an evaluation beyond average precision, of one data set and one class list."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from fastrcnn.evaluate.confusion import confusion_matrix
from fastrcnn.evaluate.error_kinds import Errors, find_errors, similar_classes
from fastrcnn.evaluate.image_quality import ImageQuality, image_quality
from fastrcnn.evaluate.reliability import Reliability, reliability
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.sizes import OfSize, by_size
from fastrcnn.evaluate.thresholds import Thresholds, best_thresholds
from fastrcnn.evaluate.voc import Matching, match


@dataclass(frozen=True)
class Analysis:
    """The parts, each as its module says it."""

    matching: Matching
    thresholds: Thresholds
    above: Bool[np.ndarray, "D"]  # detections that score at least their class's threshold
    confusion: Int64[np.ndarray, "K K"]  # of these
    errors: Errors
    reliability: Reliability
    sizes: dict[str, OfSize]
    images: ImageQuality

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """What results.json says of it; None for what cannot be said."""
        best = [asdict(found) if found else None for found in (*self.thresholds.best[1:], self.thresholds.overall)]
        costs = [None if np.isnan(cost) else cost for cost in self.errors.map_cost.tolist()]
        return {
            "score_thresholds": dict(zip(classes, best, strict=False)),
            "score_threshold_for_all": best[-1],
            "map_cost": dict(zip(self.errors.kinds, costs, strict=True)),
            "calibration_error": self.reliability.calibration_error,
        }


def analyse(
    detections: DetectionRows,
    ground_truth: ObjectRows,
    classes: Sequence[str],
    image_count: int,
    metric: str = "11point",
    score_threshold: float = 0.05,
) -> Analysis:
    """`metric` is that of average precision; a class without a threshold of its own has `score_threshold`.

    Raises FastRCNNError as voc.evaluate does.
    """
    class_count = len(classes) + 1
    matching = match(detections, ground_truth, class_count)
    thresholds = best_thresholds(detections, ground_truth, matching, class_count)
    limits = thresholds.scores(score_threshold)
    above = detections.scores >= limits[detections.classes]
    return Analysis(
        matching,
        thresholds,
        above,
        confusion_matrix(detections, ground_truth, limits),
        find_errors(detections, ground_truth, matching, class_count, metric, similar_classes(classes)),
        reliability(detections, matching),
        by_size(detections, ground_truth, matching, above),
        image_quality(detections, ground_truth, matching, above, image_count),
    )
