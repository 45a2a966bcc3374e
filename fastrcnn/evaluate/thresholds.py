"""F1 against the score threshold, and the threshold of each class at which it is best.

At threshold t those detections count that score at least t, matched as in average precision: F1 is the harmonic mean of
precision and recall, 2 * right / (detections + objects). Detections on difficult objects count nowhere.

Shapes: D detections, G objects, K classes with background, T thresholds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from fastrcnn.evaluate.voc import Matching

GRID = np.linspace(0, 1, 101)  # thresholds at which the curves are given


@dataclass(frozen=True)
class BestThreshold:
    """The score that detections must have, and what they are worth then on the set where it was measured."""

    score: float  # a float32, that of the lowest detection that counts
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of K classes; entry 0 (background) says nothing."""

    best: list[BestThreshold | None]  # K; None for a class of which no object was found: without objects or detections
    overall: BestThreshold | None  # one for all classes, by the counts of all classes that have objects
    f1: Float64[np.ndarray, "K T"]  # at GRID; NaN for a class without objects
    overall_f1: Float64[np.ndarray, "T"]  # NaN without objects

    def scores(self, otherwise: float) -> Float64[np.ndarray, "K"]:
        """The threshold of each class; `otherwise` for a class without."""
        return np.array([best.score if best else otherwise for best in self.best])


def best_thresholds(matching: Matching, class_count: int) -> Thresholds:
    """The thresholds of best F1. Of equal F1 the highest threshold is taken, which shows the fewest detections."""
    detections, ground_truth = matching.detections, matching.ground_truth
    objects = np.bincount(ground_truth.classes[~ground_truth.difficult], minlength=class_count)
    order = matching.order[objects[detections.classes[matching.order]] > 0]
    scores, right = detections.scores[order], matching.right[order]
    by_class = np.argsort(detections.classes[order], kind="stable")
    ends = np.cumsum(np.bincount(detections.classes[order], minlength=class_count))[:-1]
    parts = [(scores[rows], right[rows], int(n)) for rows, n in zip(np.split(by_class, ends), objects, strict=True)]
    everything = (scores, right, int(objects.sum()))
    curves = np.array([_at_grid(*part) for part in parts])
    return Thresholds([_best(*part) for part in parts], _best(*everything), curves, _at_grid(*everything))


def _best(scores: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], objects: int) -> BestThreshold | None:
    """From detections by falling score."""
    hits = np.cumsum(right)
    if not len(hits) or not hits[-1]:
        return None
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # equal scores count together
    f1 = _f1(hits[ends], ends + 1, objects)
    end = ends[np.argmax(f1)]  # the first of equal ones: the highest threshold
    return BestThreshold(float(scores[end]), float(hits[end] / (end + 1)), float(hits[end] / objects), float(f1.max()))


def _at_grid(scores: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], objects: int) -> Float64[np.ndarray, "T"]:
    if not objects:
        return np.full(len(GRID), np.nan)
    counted = len(scores) - np.searchsorted(scores[::-1], GRID.astype(scores.dtype))  # those that score at least that
    return _f1(np.append(0, np.cumsum(right))[counted], counted, objects)


def _f1(right: Int64[np.ndarray, "n"], detections: Int64[np.ndarray, "n"], objects: int) -> Float64[np.ndarray, "n"]:
    return 2 * right / (detections + objects)
