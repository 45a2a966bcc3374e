"""What is found of small, medium and large objects. VOC has no sizes: these are COCO's, by area (proposals.recall)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import Matching
from fastrcnn.proposals.recall import SIZES


@dataclass(frozen=True)
class OfSize:
    """Objects of one size, difficult ones left out, and detections of that size, those on difficult ones left out."""

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


def by_size(
    detections: DetectionRows, ground_truth: ObjectRows, matching: Matching, above: Bool[np.ndarray, "D"]
) -> dict[str, OfSize]:
    """`above` says which detections score at least their class's threshold. A detection has the size of its own box."""
    areas, object_areas = _areas(detections.boxes), _areas(ground_truth.boxes)
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
