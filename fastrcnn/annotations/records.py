"""One image with its objects: what the readers of all formats give, and all that the rest of the package sees."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from fastrcnn.annotations.problems import Problem
from fastrcnn.config_data import DataConfig
from fastrcnn.detections import plain_name
from fastrcnn.errors import FastRCNNError


@dataclass(frozen=True)
class Stated:
    """What an XML file says beside its objects, for checks to compare with the others of the set."""

    name: str  # of the picture, in <filename>; "" without
    origins: tuple[tuple[int, str], ...]  # what shows the coordinate of the first pixel, 0 or 1, and how


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image with its G objects."""

    id: str  # file name without suffix, as in VOC's lists
    path: Path
    width: int  # image pixels, upright
    height: int
    boxes: Float32[np.ndarray, "G 4"]  # image pixels, half open
    classes: Int64[np.ndarray, "G"]  # in 1..K-1
    difficult: Bool[np.ndarray, "G"]
    annotation: Path | None  # the file that its objects are from; None for an image without one
    refused: int = 0  # objects of that file that are left out as they are not right
    stated: Stated | None = None


Box = Float[np.ndarray, "4"]  # (x1, y1, x2, y2)
Object = tuple[Box, int, bool]  # box (image pixels, half open), class, difficult


def make_record(
    image_id: str,
    path: Path,
    width: int,
    height: int,
    objects: Iterable[Object],
    annotation: Path | None,
    stated: Stated | None = None,
) -> ImageRecord:
    """The record of one image from its objects, one after another."""
    objects = list(objects)
    boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
    classes = np.array([number for _, number, _ in objects], np.int64)
    difficult = np.array([flag for _, _, flag in objects], bool)
    return ImageRecord(image_id, path, width, height, boxes, classes, difficult, annotation, stated=stated)


Found = tuple[ImageRecord | None, list[Problem]]  # no record: a file of the image is missing or unreadable


@dataclass(frozen=True)
class Source:
    """One image of a data set, not yet read."""

    path: Path  # where its picture is, or should be
    read: Callable[[], Found]
    id: str = ""  # of its record
    annotation: Path | None = None  # the file that its objects are read from, where there is one
    about: str = ""  # what its record depends on beside these two files


@dataclass(frozen=True)
class Listing:
    """The images of a data set in its order, and what is wrong with the set as a whole."""

    sources: list[Source]
    problems: list[Problem]


def class_index(classes: Sequence[str]) -> dict[str, int]:
    """Number of each class, 1..K-1, under its plain name."""
    return {plain_name(name): number for number, name in enumerate(classes, start=1)}


def for_training(records: Sequence[ImageRecord], data: DataConfig) -> list[ImageRecord]:
    """The records without what drop_difficult and drop_empty leave out; evaluation needs all.

    Raises FastRCNNError when no object is left.
    """
    kept = [r for r in (training_record(record, data) for record in records) if r is not None]
    if not any(len(r.boxes) for r in kept):
        why = "all are difficult: set data.drop_difficult: false" if data.drop_difficult else "check classes"
        raise FastRCNNError(f"data.train: holds no object of any class to train on; {why}")
    return kept


def training_record(record: ImageRecord, data: DataConfig) -> ImageRecord | None:
    """One record as for_training leaves it, None if it is left out."""
    if data.drop_difficult and record.difficult.any():
        record = _without_difficult(record)
    return None if data.drop_empty and not len(record.boxes) else record


def _without_difficult(record: ImageRecord) -> ImageRecord:
    keep = ~record.difficult
    kept = {name: getattr(record, name)[keep] for name in ("boxes", "classes", "difficult")}
    return replace(record, **kept)
