"""Which images went well, which badly, and which wrong detections are the most confident.

An image is judged by its F1 at the thresholds of the classes: 2 * right / (2 * right + false + missed), with what
average precision counts as right and false; difficult objects and what lies on them do not count.

Shapes: D detections, G objects, N images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fastrcnn.evaluate.error_kinds import Errors
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import Matching


@dataclass(frozen=True)
class ImageQuality:
    """What was right and wrong in each image, at the thresholds."""

    right: Int64[np.ndarray, "N"]  # detections
    false: Int64[np.ndarray, "N"]  # detections
    missed: Int64[np.ndarray, "N"]  # objects that no detection at the thresholds found

    @property
    def f1(self) -> Float64[np.ndarray, "N"]:
        """NaN for an image with nothing to find in which nothing was found."""
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


def image_quality(
    detections: DetectionRows,
    ground_truth: ObjectRows,
    matching: Matching,
    above: Bool[np.ndarray, "D"],
    image_count: int,
) -> ImageQuality:
    """`above` says which detections score at least their class's threshold; images are 0..image_count-1."""
    shown = matching.order[above[matching.order]]
    is_right = matching.right[shown]
    missed = ~ground_truth.difficult
    missed[matching.object[shown[is_right]]] = False
    right, false, left = (
        np.bincount(images, minlength=image_count)
        for images in (
            detections.images[shown[is_right]],
            detections.images[shown[~is_right]],
            ground_truth.images[missed],
        )
    )
    return ImageQuality(right, false, left)


def most_confident_errors(errors: Errors, matching: Matching, count: int) -> list[int]:
    """The false detections of the highest scores, the best first; errors.kind and errors.about say what each is."""
    false = matching.order[errors.kind[matching.order] >= 0]
    return false[:count].tolist()
