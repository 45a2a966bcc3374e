"""Which class is taken for which, among the detections that score enough.

Detections are taken by falling score over all classes, ties by image, then position. Each is given the object, of any
class, that it overlaps most (of equal overlaps the first object) among those of its image that no earlier detection
was given, if that IoU is at least 0.5. Without one it is a false positive; an object that is given to none is missed.
Difficult objects can be given to any number of detections: these are neither right nor wrong, and none is missed.

That is not the matching of average precision, in which a detection sees its own class only: an object that a `cow`
was given is not found by the `horse` that scores less. So the diagonal can be smaller than the right detections of AP.

Shapes: D detections, G objects, K classes with background.
"""

import numpy as np
from jaxtyping import Float, Int64

from fastrcnn.evaluate.overlaps import overlaps
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, chosen_rows
from fastrcnn.evaluate.voc import by_score

IOU = 0.5


def confusion_matrix(
    detections: DetectionRows, ground_truth: ObjectRows, thresholds: Float[np.ndarray, "K"]
) -> Int64[np.ndarray, "K K"]:
    """How many objects of class `row` were detected as class `column`, of what scores at least its class's threshold.

    Row 0 counts false positives, column 0 missed objects; [0, 0] is 0. Row k >= 1 adds up to the objects of class k
    without difficult ones, column k to its detections without those on difficult objects.
    """
    detections = chosen_rows(detections, detections.scores >= thresholds[detections.classes])
    rank = np.empty(len(detections.scores), np.int64)
    rank[by_score(detections)] = np.arange(len(rank))
    pairs = overlaps(detections, ground_truth, IOU)
    order = np.argsort(rank[pairs.detections], kind="stable")  # of one detection they stay by falling IoU
    taken = np.zeros(len(ground_truth.classes), bool)
    given = np.full(len(rank), -1)
    for d, g in zip(pairs.detections[order].tolist(), pairs.objects[order].tolist(), strict=True):
        if given[d] < 0 and not taken[g]:
            given[d] = g
            taken[g] = not ground_truth.difficult[g]
    # Row -1 is what a detection without an object was given: background.
    classes, difficult = np.append(ground_truth.classes, 0), np.append(ground_truth.difficult, False)
    counted = ~difficult[given]
    matrix = np.zeros((len(thresholds), len(thresholds)), np.int64)
    np.add.at(matrix, (classes[given[counted]], detections.classes[counted]), 1)
    missed = ~taken & ~ground_truth.difficult
    matrix[:, 0] = np.bincount(ground_truth.classes[missed], minlength=len(thresholds))
    return matrix
