"""Average precision by the rules of the PASCAL VOC development kit, as a pure function of arrays.

The rules of VOCdevkit's VOCevaldet.m: detections of a class are taken by falling score; each looks only at the object
of its image and class that it overlaps most (of equal overlaps, the first object). Below the IoU threshold it is false.
On a difficult object it is neither right nor wrong. On an object that an earlier detection has taken it is false.
Half-open boxes make the IoU equal to the kit's +1 arithmetic on inclusive ones.

The kit leaves equal scores to the sort. Here they go by image index, then by position in the arrays.

Shapes: D detections, G objects, K classes with background.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows


@dataclass(frozen=True)
class VOCResult:
    """Scores by class; every field but `metric` has K entries, of which entry 0 (background) says nothing."""

    metric: str  # 11point | area
    ap: Float64[np.ndarray, "K"]  # NaN for a class without objects (difficult ones do not count) and for background
    objects: Int64[np.ndarray, "K"]  # without difficult ones: the kit's npos
    detections: Int64[np.ndarray, "K"]  # all of them, also those on difficult objects
    precision: list[Float64[np.ndarray, "_"]]  # K curves by falling score, without detections on difficult objects
    recall: list[Float64[np.ndarray, "_"]]  # K, the same; empty for a class without objects

    @property
    def absent(self) -> Int64[np.ndarray, "_"]:
        """The classes (1..K-1) without objects: their AP is NaN and the mean leaves them out."""
        return np.flatnonzero(self.objects[1:] == 0) + 1

    @property
    def mean_ap(self) -> float:
        """Mean AP over the classes that have objects; NaN if none has."""
        present = self.ap[self.objects > 0]
        return float(present.mean()) if len(present) else float("nan")


def evaluate(
    detections: DetectionRows,
    ground_truth: ObjectRows,
    class_count: int,
    iou_threshold: float = 0.5,
    metric: str = "11point",
) -> VOCResult:
    """Precision, recall and average precision of each class.

    class_count is K. metric: `11point` is the mean of the best precision at recall >= 0, 0.1, ... 1 (VOC 2007 to 2009),
    `area` the area under the curve made non-increasing (VOC 2010 and later). Memory grows with D + G + K * N, not
    with D * G. Raises FastRCNNError for a class outside 1..K-1 and an impossible threshold or metric.
    """
    if metric not in ("11point", "area"):
        raise FastRCNNError(f"metric is {metric!r}; it must be 11point or area")
    order, right = match(detections, ground_truth, class_count, iou_threshold)
    objects = np.bincount(ground_truth.classes[~ground_truth.difficult], minlength=class_count)
    ap = np.full(class_count, np.nan)
    precision, recall = [], []
    counted = np.bincount(detections.classes[order], minlength=class_count)
    for k, hits in enumerate(np.split(right, np.cumsum(counted)[:-1])):
        true_positives = np.cumsum(hits) if objects[k] else np.empty(0, dtype=np.int64)
        precision.append(true_positives / np.arange(1, len(true_positives) + 1))
        recall.append(true_positives / max(objects[k], 1))
        if objects[k]:
            ap[k] = _average_precision(true_positives, precision[k], int(objects[k]), metric)
    counts = np.bincount(detections.classes, minlength=class_count)
    return VOCResult(metric, ap, objects, counts, precision, recall)


def match(
    detections: DetectionRows, ground_truth: ObjectRows, class_count: int, iou_threshold: float = 0.5
) -> tuple[Int64[np.ndarray, "M"], Bool[np.ndarray, "M"]]:
    """The rows of the M detections that count, by class, then by falling score, and which of them are right.

    Those on difficult objects do not count: they move neither precision nor recall. What is right in an image depends
    on that image alone. Raises FastRCNNError as evaluate does.
    """
    if not 0 < iou_threshold <= 1:
        raise FastRCNNError(f"iou_threshold is {iou_threshold}; it must be above 0 and at most 1")
    for what, classes in (("detection", detections.classes), ("object", ground_truth.classes)):
        outside = np.flatnonzero((classes < 1) | (classes >= class_count))
        if len(outside):
            raise FastRCNNError(
                f"{what} {outside[0] + 1} has class {classes[outside[0]]}; with {class_count} classes it must be in "
                f"1..{class_count - 1} (0 is background)"
            )

    best, overlap = _best_objects(detections, ground_truth, class_count)
    # lexsort takes the last key first and is stable: falling score, then image, then position in the arrays.
    order = np.lexsort((detections.images, -detections.scores))
    small = np.min_scalar_type(class_count)  # numpy sorts integers of 8 and 16 bits by radix, in linear time
    order = order[np.argsort(detections.classes[order].astype(small), kind="stable")]
    hits = order[overlap[order] >= iou_threshold]
    _, first = np.unique(best[hits], return_index=True)  # of each object, the hit of highest score
    right = np.zeros(len(order), dtype=bool)
    right[hits[first]] = True
    counted = np.ones(len(order), dtype=bool)
    counted[hits[ground_truth.difficult[best[hits]]]] = False
    order = order[counted[order]]
    return order, right[order]


def _best_objects(
    detections: DetectionRows, ground_truth: ObjectRows, class_count: int
) -> tuple[Int64[np.ndarray, "D"], Float64[np.ndarray, "D"]]:
    """For each detection the object of its image and class that it overlaps most, and their IoU.

    Where nothing overlaps, the IoU is 0 and the object means nothing.
    """
    # Objects of one image and class form a group. The loop runs over the rank of an object in its group: the first
    # objects of all groups at once, then the second ones. It ends with the largest group, some 40 in VOC.
    key = ground_truth.images * class_count + ground_truth.classes
    detection_key = detections.images * class_count + detections.classes
    members = np.argsort(key, kind="stable")
    size = np.bincount(key, minlength=detection_key.max(initial=-1) + 1)
    start = np.cumsum(size) - size
    best = np.zeros(len(detection_key), dtype=np.int64)
    overlap = np.zeros(len(detection_key))
    rows = np.flatnonzero(size[detection_key])
    for rank in range(size.max(initial=0)):
        rows = rows[size[detection_key[rows]] > rank]
        candidates = members[start[detection_key[rows]] + rank]
        iou = _iou_by_row(detections.boxes[rows], ground_truth.boxes[candidates])
        better = iou > overlap[rows]  # strict: of equal overlaps the first object stays, as in VOCevaldet.m
        best[rows[better]] = candidates[better]
        overlap[rows[better]] = iou[better]
    return best, overlap


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


def _average_precision(
    true_positives: Int64[np.ndarray, "n"], precision: Float64[np.ndarray, "n"], objects: int, metric: str
) -> float:
    """AP of one class from its cumulative counts of right detections and its precision."""
    best_after = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # precision 0 where recall ends
    if metric == "11point":
        # Recall >= k / 10 in whole numbers: steps of 0.1 in floating point put 0.3, 0.6 and 0.7 out of reach of a
        # recall that is exactly that.
        reached = np.searchsorted(true_positives * 10, np.arange(11) * objects)
        return float(best_after[reached].sum() / 11)
    steps = np.flatnonzero(np.diff(true_positives, prepend=0))  # recall grows by 1 / objects at each
    return float(best_after[steps].sum() / objects)
