"""All that explains an evaluation beyond average precision, of one data set and one class list.

Shapes: D detections, G objects, N images, K classes with background, B bins of scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from fastrcnn.evaluate.error_kinds import Errors, find_errors, similar_classes
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, chosen_rows, overlaps
from fastrcnn.evaluate.thresholds import Thresholds, best_thresholds
from fastrcnn.evaluate.voc import Matching, by_score, match
from fastrcnn.proposals.recall import SIZES

IOU = 0.5  # at which a detection may be given an object
BINS = 10  # of scores


def confusion_matrix(
    detections: DetectionRows, ground_truth: ObjectRows, thresholds: Float[np.ndarray, "K"]
) -> Int64[np.ndarray, "K K"]:
    """How many objects of class `row` were detected as class `column`, of what scores at least its class's threshold.

    Detections are taken by falling score over all classes, ties by image, then position. Each is given the object, of
    any class, that it overlaps most (of equal overlaps the first object) among those of its image that no earlier
    detection was given, if that IoU is at least 0.5. Without one it is a false positive; an object that is given to
    none is missed. Difficult objects can be given to any number: these are neither right nor wrong, and none is missed.
    That is not the matching of average precision, in which a detection sees its own class only: an object that a `cow`
    was given is not found by the `horse` that scores less. So the diagonal can be smaller than the right ones of AP.

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


@dataclass(frozen=True)
class ImageQuality:
    """What was right and wrong in each image, at the thresholds of the classes.

    Right and false are as average precision counts them; difficult objects and what lies on them do not count.
    """

    right: Int64[np.ndarray, "N"]  # detections
    false: Int64[np.ndarray, "N"]  # detections
    missed: Int64[np.ndarray, "N"]  # objects that no detection at the thresholds found

    @property
    def f1(self) -> Float64[np.ndarray, "N"]:
        """2 * right / (2 * right + false + missed); NaN where nothing is to be found and nothing was."""
        right = 2.0 * self.right
        total = right + self.false + self.missed
        return np.divide(right, total, out=np.full(len(total), np.nan), where=total > 0)

    def best(self, count: int) -> list[int]:
        """Images of the highest F1; of equal ones those with more right detections, then the first. At least one
        detection is right in each."""
        order = np.lexsort((-self.right, -self.f1))
        return [i for i in order.tolist() if self.right[i]][:count]

    def worst(self, count: int) -> list[int]:
        """Images of the lowest F1; of equal ones those with more that is wrong, then the first. At least one
        thing is wrong in each."""
        wrong = self.false + self.missed
        order = np.lexsort((-wrong, self.f1))
        return [i for i in order.tolist() if wrong[i]][:count]


def image_quality(matching: Matching, above: Bool[np.ndarray, "D"], image_count: int) -> ImageQuality:
    """`above` says which detections score at least their class's threshold; images are 0..image_count-1."""
    detections, ground_truth = matching.detections, matching.ground_truth
    shown = matching.order[above[matching.order]]
    is_right = matching.right[shown]
    missed = ~ground_truth.difficult
    missed[matching.object[shown[is_right]]] = False
    images = detections.images[shown[is_right]], detections.images[shown[~is_right]], ground_truth.images[missed]
    return ImageQuality(*(np.bincount(some, minlength=image_count) for some in images))


def most_confident_errors(errors: Errors, matching: Matching, count: int) -> list[int]:
    """The false detections of the highest scores, the best first; errors.kind and errors.about say what each is."""
    false = matching.order[errors.kind[matching.order] >= 0]
    return false[:count].tolist()


@dataclass(frozen=True)
class OfSize:
    """Objects of one size, difficult ones left out, and detections of that size, those on difficult ones left out.

    VOC has no sizes: these are COCO's, by area (proposals.recall).
    """

    objects: int
    found: int  # objects, by a detection of any score
    found_above: int  # objects, by a detection that scores at least its class's threshold
    detections: int  # that score at least that
    right: int  # of these

    @property
    def recall(self) -> float | None:
        """The share of objects found at any score; None without objects."""
        return self.found / self.objects if self.objects else None

    @property
    def recall_above(self) -> float | None:
        """The share found at the thresholds; None without objects."""
        return self.found_above / self.objects if self.objects else None

    @property
    def precision(self) -> float | None:
        """The share of detections at the thresholds that are right; None without detections."""
        return self.right / self.detections if self.detections else None


def by_size(matching: Matching, above: Bool[np.ndarray, "D"]) -> dict[str, OfSize]:
    """`above` says which detections score at least their class's threshold. A detection has the size of its own box."""
    ground_truth = matching.ground_truth
    areas, object_areas = _areas(matching.detections.boxes), _areas(ground_truth.boxes)
    counts = np.zeros(len(above), bool)
    counts[matching.order] = True
    result = {}
    for name, (low, high) in SIZES.items():
        objects = (object_areas >= low) & (object_areas < high) & ~ground_truth.difficult
        of_size = (areas >= low) & (areas < high) & counts & above
        found, found_above = (
            int(objects[matching.object[rows]].sum()) for rows in (matching.right, matching.right & above)
        )
        right = int((of_size & matching.right).sum())
        result[name] = OfSize(int(objects.sum()), found, found_above, int(of_size.sum()), right)
    return result


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n"]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


@dataclass(frozen=True)
class Reliability:
    """Is a score a probability? Of the detections that score 0.8, four of five should be right.

    Detections in bins of equal width from score 0 to 1; the upper edge belongs to the next bin, 1 to the last. Right is
    what average precision counts as right, so a second detection of an object is wrong however sure it may be.
    Detections on difficult objects are left out.
    """

    count: Int64[np.ndarray, "B"]
    mean_score: Float64[np.ndarray, "B"]  # NaN in an empty bin
    share_right: Float64[np.ndarray, "B"]  # NaN in an empty bin

    @property
    def calibration_error(self) -> float | None:
        """How far the share of right ones in a bin lies from its mean score, on average; None without detections.

        The expected calibration error of Guo et al. 2017 (arXiv 1706.04599, section 2).
        """
        gap = np.nan_to_num(np.abs(self.mean_score - self.share_right))
        return float((gap * self.count).sum() / self.count.sum()) if self.count.any() else None


def reliability(matching: Matching) -> Reliability:
    """How often detections of each score are right."""
    scores = matching.detections.scores[matching.order].astype(np.float64)
    bins = np.clip(scores * BINS, 0, BINS - 1).astype(np.int64)
    count = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights, BINS) for weights in (scores, matching.right[matching.order]))
    mean_score, share_right = (np.divide(s, count, out=np.full(BINS, np.nan), where=count > 0) for s in sums)
    return Reliability(count, mean_score, share_right)


@dataclass(frozen=True)
class Analysis:
    """The parts."""

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
    thresholds = best_thresholds(matching, class_count)
    limits = thresholds.scores(score_threshold)
    above = detections.scores >= limits[detections.classes]
    return Analysis(
        matching,
        thresholds,
        above,
        confusion_matrix(detections, ground_truth, limits),
        find_errors(matching, class_count, metric, similar_classes(classes)),
        reliability(matching),
        by_size(matching, above),
        image_quality(matching, above, image_count),
    )
