"""Average precision by the rules of the PASCAL VOC development kit, as a pure function of arrays.

The rules of VOCdevkit's VOCevaldet.m: detections of a class are taken by falling score; each looks only at the object
of its image and class that it overlaps most (of equal overlaps, the first object). Below the IoU threshold it is false.
On a difficult object it is neither right nor wrong. On an object that an earlier detection has taken it is false.
Half-open boxes make the IoU equal to the kit's +1 arithmetic on inclusive ones.

The kit leaves equal scores to the sort. Here they go by image index, then by position in the arrays.

Shapes: D detections, M of them that count, G objects, K classes with background.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, overlaps


@dataclass(frozen=True)
class Matching:
    """What becomes of the detections. What is right in an image depends on that image alone."""

    detections: DetectionRows
    ground_truth: ObjectRows
    order: Int64[np.ndarray, "M"]  # those that count, all but those on difficult objects: by falling score
    right: Bool[np.ndarray, "D"]
    object: Int64[np.ndarray, "D"]  # of its class that it overlaps most; -1 where that is below the IoU threshold


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
    `area` the area under the curve made non-increasing (VOC 2010 and later). Raises FastRCNNError for a class outside
    1..K-1 and an impossible threshold or metric.
    """
    if metric not in ("11point", "area"):
        raise FastRCNNError(f"metric is {metric!r}; it must be 11point or area")
    matching = match(detections, ground_truth, class_count, iou_threshold)
    objects = np.bincount(ground_truth.classes[~ground_truth.difficult], minlength=class_count)
    counts = np.bincount(detections.classes, minlength=class_count)
    hits = cumulated_hits(detections.classes[matching.order], matching.right[matching.order], class_count)
    hits = [column if n else column[:0] for column, n in zip(hits, objects, strict=True)]
    precision = [column / np.arange(1, len(column) + 1) for column in hits]
    recall = [column / max(n, 1) for column, n in zip(hits, objects, strict=True)]
    return VOCResult(metric, average_precisions(hits, objects, metric), objects, counts, precision, recall)


def match(
    detections: DetectionRows, ground_truth: ObjectRows, class_count: int, iou_threshold: float = 0.5
) -> Matching:
    """Which detections are right. Those on difficult objects do not count: they move neither precision nor recall.

    Raises FastRCNNError as evaluate does.
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
    best, _ = overlaps(detections, ground_truth, iou_threshold, one_class=True).best(len(detections.scores))
    order = by_score(detections)
    order = order[~np.append(ground_truth.difficult, False)[best[order]]]  # [-1] of those without an object
    hits = order[best[order] >= 0]
    _, first = np.unique(best[hits], return_index=True)  # of each object, the hit of highest score
    right = np.zeros(len(best), dtype=bool)
    right[hits[first]] = True
    return Matching(detections, ground_truth, order, right, best)


def by_score(detections: DetectionRows) -> Int64[np.ndarray, "D"]:
    """The detections in the order in which they are taken."""
    return np.lexsort((detections.images, -detections.scores))  # the last key first; stable


def cumulated_hits(
    classes: Int[np.ndarray, "n"], right: Bool[np.ndarray, "n"], class_count: int
) -> list[Int64[np.ndarray, "_"]]:
    """For each of K classes, how many of its first 1, 2, ... detections are right; they come by falling score."""
    small = np.min_scalar_type(class_count)  # numpy sorts integers of 8 and 16 bits by radix, in linear time
    by_class = np.argsort(classes.astype(small), kind="stable")
    ends = np.cumsum(np.bincount(classes, minlength=class_count))[:-1]
    return [np.cumsum(right[members]) for members in np.split(by_class, ends)]


def average_precisions(
    hits: list[Int64[np.ndarray, "_"]], objects: Int64[np.ndarray, "K"], metric: str
) -> Float64[np.ndarray, "K"]:
    """AP of each class from cumulated_hits; NaN for a class without objects."""
    ap = [_average_precision(column, int(n), metric) if n else np.nan for column, n in zip(hits, objects, strict=True)]
    return np.array(ap, np.float64)


def _average_precision(true_positives: Int64[np.ndarray, "n"], objects: int, metric: str) -> float:
    """AP of one class from its cumulative counts of right detections."""
    precision = true_positives / np.arange(1, len(true_positives) + 1)
    best_after = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # precision 0 where recall ends
    if metric == "11point":
        # Recall >= k / 10 in whole numbers: steps of 0.1 in floating point put 0.3, 0.6 and 0.7 out of reach of a
        # recall that is exactly that.
        reached = np.searchsorted(true_positives * 10, np.arange(11) * objects)
        return float(best_after[reached].sum() / 11)
    steps = np.flatnonzero(np.diff(true_positives, prepend=0))  # recall grows by 1 / objects at each
    return float(best_after[steps].sum() / objects)
