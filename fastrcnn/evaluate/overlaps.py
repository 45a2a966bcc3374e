"""Which detections overlap which objects, and how much: what every routine that scores starts from.

Shapes: D detections, G objects, P pairs of them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

from fastrcnn.evaluate.rows import DetectionRows, ObjectRows

CHUNK = 1 << 20  # pairs looked at at once: some 100 MB


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a detection and an object, by detection, then by falling IoU, then by object."""

    detections: Int64[np.ndarray, "P"]
    objects: Int64[np.ndarray, "P"]
    iou: Float64[np.ndarray, "P"]

    def where(self, chosen: Bool[np.ndarray, "P"]) -> "Overlaps":
        """Some of the pairs."""
        return Overlaps(self.detections[chosen], self.objects[chosen], self.iou[chosen])

    def best(self, count: int) -> tuple[Int64[np.ndarray, "D"], Float64[np.ndarray, "D"]]:
        """For each of `count` detections the object that it overlaps most (of equal ones the first) and their IoU; -1
        and 0 for a detection in no pair."""
        found, first = np.unique(self.detections, return_index=True)
        objects, iou = np.full(count, -1), np.zeros(count)
        objects[found], iou[found] = self.objects[first], self.iou[first]
        return objects, iou


def overlaps(detections: DetectionRows, ground_truth: ObjectRows, at_least: float, one_class: bool = False) -> Overlaps:
    """Every pair in one image, with `one_class` also of one class, whose IoU is `at_least` that; it must be above 0.

    Memory grows with the pairs found, not with D * G.
    """
    width = max(detections.classes.max(initial=0), ground_truth.classes.max(initial=0)) + 1
    key, object_key = (
        rows.images.astype(np.int64) * width + rows.classes if one_class else rows.images
        for rows in (detections, ground_truth)
    )
    by_key = np.argsort(object_key, kind="stable")
    sorted_key = object_key[by_key]
    start = np.searchsorted(sorted_key, key)
    size = np.searchsorted(sorted_key, key, side="right") - start
    rows = np.flatnonzero(size)  # detections that have something to overlap
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for some in np.split(rows, np.flatnonzero(np.diff(np.cumsum(size[rows]) // CHUNK)) + 1):
        first = np.repeat(some, size[some])
        rank = np.arange(len(first)) - np.repeat(np.cumsum(size[some]) - size[some], size[some])
        second = by_key[start[first] + rank]
        iou = _iou_by_row(detections.boxes[first], ground_truth.boxes[second])
        near = iou >= at_least
        parts.append((first[near], second[near], iou[near]))
    first, second, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((second, -iou, first))
    return Overlaps(first[order], second[order], iou[order])


def _iou_by_row(a: Real[np.ndarray, "n 4"], b: Real[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n"]:
    """IoU of row i of `a` with row i of `b`; empty boxes overlap nothing.

    In float64, so that whole pixels give the exact quotient's nearest number and IoU 0.5 is 0.5.
    """
    ax1, ay1, ax2, ay2 = a.T.astype(np.float64)
    bx1, by1, bx2, by2 = b.T.astype(np.float64)
    width = (np.minimum(ax2, bx2) - np.maximum(ax1, bx1)).clip(min=0)
    intersection = width * (np.minimum(ay2, by2) - np.maximum(ay1, by1)).clip(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)
