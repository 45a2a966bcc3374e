"""Detections as labels in the formats of other tools, to be corrected there; the readers of annotations read them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fastrcnn.annotations.convert import WRITERS
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.detections import DetectedImage
from fastrcnn.files import atomic_write

SPLIT = "detected"  # the name of the image list or part


def write_labels(
    name: str,
    images: Sequence[DetectedImage],
    outputs: Mapping[Path, str],
    classes: Sequence[str],
    folder: Path,
    score: float | Float32[np.ndarray, "K"],
) -> Path:
    """Write what scores at least `score` in one of WRITERS' formats, or `csv`; `outputs` are the pictures' ids, all
    distinct. `coco` has results.json beside it, the same with scores as COCO's evaluation takes them.

    Returns the folder where the pictures belong; of csv, the file. Raises FastRCNNError for a name that the format
    cannot hold, and as atomic_write does.
    """
    images = [DetectedImage(i.id, i.found.above(score), i.file, i.width, i.height) for i in images]
    if name == "csv":
        return _write_csv(images, folder / "detections.csv")
    records = [_as_record(image, outputs) for image in images]
    if name == "coco":
        _write_coco_results(images, folder / "results.json")
    return WRITERS[name](records, classes, folder, SPLIT)


def _as_record(image: DetectedImage, outputs: Mapping[Path, str]) -> ImageRecord:
    assert image.file is not None and image.width is not None and image.height is not None
    path, found = Path(image.file), image.found
    nowhere = np.zeros(len(found), bool)
    return ImageRecord(outputs[path], path, image.width, image.height, found.boxes, found.classes, nowhere, None)


def _write_coco_results(images: Sequence[DetectedImage], path: Path) -> None:
    """Images and categories are numbered as write_coco does, from 1."""
    rows = [row for number, image in enumerate(images, start=1) for row in image.found.to_coco(number)]
    with atomic_write(path) as file:
        file.write(json.dumps(rows).encode())


def _write_csv(images: Sequence[DetectedImage], path: Path) -> Path:
    """One row per detection, boxes half open in image pixels, every digit."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "width", "height", "class", "score", "x1", "y1", "x2", "y2"))
    for image in images:
        for name, score, box in image.found:
            table.writerow((image.file, image.width, image.height, name, score, *box.tolist()))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))
    return path
