"""How many objects the proposals cover: the ceil above every detector that uses them.

An object is covered at a threshold when one proposal has that IoU with it. Difficult objects are left out, as in
average precision; how many there are is reported apart.

Shapes: G objects, P proposals, K classes with background, T thresholds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Real

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.boxes import area, iou

# Areas in square image pixels: the bounds of COCO's small, medium and large objects (pycocotools, Params.areaRng).
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}


@dataclass(frozen=True)
class Recall:
    """The best proposal of every object that is not difficult, and what follows from it."""

    thresholds: tuple[float, ...]  # T
    best_iou: Float64[np.ndarray, "G"]
    classes: Int64[np.ndarray, "G"]
    areas: Float64[np.ndarray, "G"]  # square image pixels
    difficult: int  # objects left out

    def overall(self) -> Float64[np.ndarray, "T"]:
        """Shares of covered objects; NaN without objects."""
        return self._of(np.ones(len(self.best_iou), dtype=bool))

    def average(self) -> float:
        """Average recall (Hosang et al. 2015, arXiv 1502.05082, section 3.4): the mean of the shares at all IoU from
        0.5 to 1, which is twice the mean of what the best IoU exceeds 0.5 by; NaN without objects."""
        return float(2 * np.maximum(self.best_iou - 0.5, 0).mean()) if len(self.best_iou) else np.nan

    def by_class(self, class_count: int) -> Float64[np.ndarray, "K T"]:
        """The same of each class; NaN for one without objects."""
        return np.array([self._of(self.classes == k) for k in range(class_count)])

    def by_size(self) -> dict[str, Float64[np.ndarray, "T"]]:
        """The same of `small`, `medium` and `large` objects; NaN for a size without objects."""
        return {name: self._of(self.of_size(name)) for name in SIZES}

    def of_size(self, name: str) -> Bool[np.ndarray, "G"]:
        """Which objects are `small`, `medium` or `large`."""
        low, high = SIZES[name]
        return (self.areas >= low) & (self.areas < high)

    def _of(self, chosen: Bool[np.ndarray, "G"]) -> Float64[np.ndarray, "T"]:
        if not chosen.any():
            return np.full(len(self.thresholds), np.nan)
        return np.array([(self.best_iou[chosen] >= threshold).mean() for threshold in self.thresholds])


class Covering:
    """Recall of the objects of images by their proposals, image by image, for who passes over them anyway."""

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.7)) -> None:
        self.boxes = 0  # proposals of all images
        self._thresholds, self._difficult = tuple(thresholds), 0
        self._classes = [np.empty(0, dtype=np.int64)]
        # Small tensors would lie between the large ones that are freed, and keep their memory.
        self._best: list[float] = []
        self._areas: list[float] = []

    def add(self, record: ImageRecord, proposals: Real[np.ndarray, "_ 4"]) -> list[float]:
        """Add an image; proposals in image pixels, half open. Returns what best_iou does."""
        best = best_iou(record, proposals)
        self.boxes += len(proposals)
        self.add_best(record, best)
        return best

    def add_best(self, record: ImageRecord, best: Sequence[float]) -> None:
        """Add an image by what best_iou has returned for it."""
        self._best += best
        self._classes.append(record.classes[~record.difficult])
        self._areas += area(_objects(record)).tolist()
        self._difficult += int(record.difficult.sum())

    def recall(self) -> Recall:
        """Of all that was added."""
        columns = np.array(self._best), np.concatenate(self._classes), np.array(self._areas)
        return Recall(self._thresholds, *columns, self._difficult)


def best_iou(record: ImageRecord, proposals: Real[np.ndarray, "_ 4"]) -> list[float]:
    """The best IoU of each object not difficult with proposals in image pixels, half open."""
    objects = _objects(record)
    rows = torch.from_numpy(np.asarray(proposals, dtype=np.float64))
    return iou(rows, objects).amax(dim=0).tolist() if len(rows) else [0.0] * len(objects)


def _objects(record: ImageRecord) -> Float64[torch.Tensor, "_ 4"]:
    """Boxes of objects not difficult, in float64: whole pixels then give the quotient's nearest number, and IoU 0.5 is
    0.5."""
    return torch.from_numpy(record.boxes[~record.difficult].astype(np.float64))


def proposal_recall(
    images: Iterable[tuple[ImageRecord, Real[np.ndarray, "_ 4"]]], thresholds: Sequence[float] = (0.5, 0.7)
) -> Recall:
    """Recall of the objects of each record by its proposals (image pixels, half open)."""
    covering = Covering(thresholds)
    for record, proposals in images:
        covering.add(record, proposals)
    return covering.recall()
