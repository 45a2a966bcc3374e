"""Is a score a probability? Of the detections that score 0.8, four of five should be right.

Right is what average precision counts as right, so a second detection of an object is wrong however sure it may be.
Detections on difficult objects are left out. The expected calibration error is that of Guo et al. 2017 (arXiv
1706.04599, section 2): the mean, over the detections, of how far the share of right ones in a bin lies from its mean
score.

Shapes: D detections, B bins.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from fastrcnn.evaluate.rows import DetectionRows
from fastrcnn.evaluate.voc import Matching

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Detections in bins of equal width from score 0 to 1; the upper edge belongs to the next bin, 1 to the last."""

    count: Int64[np.ndarray, "B"]
    mean_score: Float64[np.ndarray, "B"]  # NaN in an empty bin
    share_right: Float64[np.ndarray, "B"]  # NaN in an empty bin

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error; None without detections."""
        gap = np.nan_to_num(np.abs(self.mean_score - self.share_right))
        return float((gap * self.count).sum() / self.count.sum()) if self.count.any() else None


def reliability(detections: DetectionRows, matching: Matching) -> Reliability:
    """How often detections of each score are right."""
    scores = detections.scores[matching.order].astype(np.float64)
    bins = np.clip(scores * BINS, 0, BINS - 1).astype(np.int64)
    count = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights, BINS) for weights in (scores, matching.right[matching.order]))
    mean_score, share_right = (np.divide(s, count, out=np.full(BINS, np.nan), where=count > 0) for s in sums)
    return Reliability(count, mean_score, share_right)
