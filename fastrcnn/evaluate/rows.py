"""Detections and objects of a whole data set as columns of arrays, and which overlap: what all scoring starts from.

Shapes: D detections, G objects, P pairs of them, N images, K classes with background.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Real

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.detections import DetectedImage
from fastrcnn.errors import FastRCNNError

log = logging.getLogger(__name__)

T = TypeVar("T", DetectedImage, ImageRecord)
Rows = TypeVar("Rows", "DetectionRows", "ObjectRows")


@dataclass(frozen=True)
class DetectionRows:
    """Detections of all images, one row each. Raises FastRCNNError for unequal lengths and NaN or infinite numbers."""

    images: Int[np.ndarray, "D"]  # 0..N-1
    classes: Int[np.ndarray, "D"]  # 1..K-1
    scores: Float[np.ndarray, "D"]
    boxes: Real[np.ndarray, "D 4"]  # image pixels, half open

    def __post_init__(self) -> None:
        _check_rows("detection", self.images, self.classes, self.boxes, self.scores)
        if self.scores.dtype.kind != "f":
            raise FastRCNNError(f"scores must be floating-point numbers, not {self.scores.dtype}")
        _check_finite("detection", "score", self.scores[:, None])


@dataclass(frozen=True)
class ObjectRows:
    """Objects of all images, one row each. Raises FastRCNNError as DetectionRows does."""

    images: Int[np.ndarray, "G"]  # 0..N-1
    classes: Int[np.ndarray, "G"]  # 1..K-1
    boxes: Real[np.ndarray, "G 4"]  # image pixels, half open
    difficult: Bool[np.ndarray, "G"]

    def __post_init__(self) -> None:
        _check_rows("object", self.images, self.classes, self.boxes, self.difficult)
        if self.difficult.dtype != np.bool_:
            raise FastRCNNError(f"difficult flags must be bool, not {self.difficult.dtype}")


def chosen_rows(rows: Rows, chosen: np.ndarray) -> Rows:
    """Some of the rows, by a mask or indices."""
    return type(rows)(*(column[chosen] for column in vars(rows).values()))


def join(
    images: Sequence[DetectedImage], records: Sequence[ImageRecord], classes: Sequence[str]
) -> tuple[DetectionRows, ObjectRows]:
    """What the scoring routines take, from the detections of images and their annotations, with `classes`' numbers.

    Images are numbered by sorted id, so that ties in score do not depend on the order of `records`. Logs a warning for
    classes that have no objects to find. Raises FastRCNNError if the two do not have the same classes (without regard
    to case) and the same images, each once.
    """
    found, truth = by_id(images, "with detections"), by_id(records, "with annotations")
    if found.keys() != truth.keys():
        missing, extra = sorted(truth.keys() - found.keys()), sorted(found.keys() - truth.keys())
        raise FastRCNNError(
            f"detections and annotations are not of the same images: {len(missing)} without detections "
            f"({few(missing)}), {len(extra)} without annotations ({few(extra)}); score them on the data set they "
            "were made on"
        )
    ids = sorted(truth)
    ordered, detections = [truth[i] for i in ids], [found[i].found.in_classes(classes) for i in ids]
    objects = ObjectRows(
        np.repeat(np.arange(len(ids)), [len(record.boxes) for record in ordered]),
        _concatenate([record.classes for record in ordered], np.int64),
        _concatenate([record.boxes for record in ordered], np.float32, 4),
        _concatenate([record.difficult for record in ordered], np.bool_),
    )
    present = set(objects.classes[~objects.difficult].tolist())
    absent = [name for k, name in enumerate(classes, start=1) if k not in present]
    if not present:
        log.warning("no objects in the annotations of these %d images: there is nothing to score", len(ids))
    elif absent:
        log.warning(
            "no objects to find of %s: AP is NaN, and the mean leaves it out; check the class list and the split",
            ", ".join(absent),
        )
    rows = DetectionRows(
        np.repeat(np.arange(len(ids)), [len(image) for image in detections]),
        _concatenate([image.classes for image in detections], np.int64),
        _concatenate([image.scores for image in detections], np.float32),
        _concatenate([image.boxes for image in detections], np.float32, 4),
    )
    return rows, objects


def by_id(images: Sequence[T], which: str) -> dict[str, T]:
    """Images by their id. Raises FastRCNNError for an id that is listed twice; `which` says where."""
    found = {image.id: image for image in images}
    if len(found) < len(images):
        twice = [i for i, count in Counter(image.id for image in images).items() if count > 1]
        raise FastRCNNError(f"images {which} listed twice: {few(twice)}; give each image once")
    return found


def _concatenate(parts: list[np.ndarray], dtype: type, *row: int) -> np.ndarray:
    return np.concatenate([np.empty((0, *row), dtype), *parts])


def few(ids: Sequence[str]) -> str:
    """The first three, for a message."""
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "") if ids else "none"


def _check_rows(what: str, images: np.ndarray, classes: np.ndarray, boxes: np.ndarray, other: np.ndarray) -> None:
    n = len(images)
    if boxes.shape != (n, 4) or any(column.shape != (n,) for column in (images, classes, other)):
        shapes = ", ".join(str(column.shape) for column in (images, classes, boxes, other))
        raise FastRCNNError(f"{what}s: arrays of shapes {shapes} do not describe the same rows; boxes must be [n, 4]")
    if any(column.dtype.kind != "i" for column in (images, classes)):
        raise FastRCNNError(f"{what}s: image indices and classes must be signed integers")
    if images.min(initial=0) < 0:
        raise FastRCNNError(f"{what} {np.argmax(images < 0) + 1} has a negative image index; indices start at 0")
    _check_finite(what, "box", boxes)


def _check_finite(what: str, field: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        row = values[bad[0]].tolist()
        raise FastRCNNError(f"{what} {bad[0] + 1} has the {field} {row}; every number must be finite")


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
