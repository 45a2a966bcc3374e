"""YOLO: a text file for each picture, a line for each object, as Ultralytics, Roboflow, CVAT and LabelImg write it.

A line is `class cx cy w h`: the number of the class in data.yaml (or classes.txt), the centre and the size of the box
as fractions of the upright image's width and height. Lines of polygons (and turned boxes) give the box around them.
yolo_layout.py finds the files.
"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fastrcnn.annotations.objects import ObjectReader, put_on_edge, read_size, turn_box, unlabelled
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Box, Found, ImageRecord, Listing, Source, make_record
from fastrcnn.annotations.writing import file_of, write_text
from fastrcnn.annotations.yolo_layout import (
    Names,
    find_names,
    find_pictures,
    label_files,
    text_of,
    write_description,
)
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

log = logging.getLogger(__name__)

# Of a side: LabelImg and others round to six digits, some to five, so that boxes at the edge leave it by that much.
ROUNDING = 1e-5
PIXELS = 2.0  # no number of a box that is partly in the image is larger, as a fraction; pixels nearly always are


def list_yolo(dataset: DataSetConfig, data: DataConfig, index: dict[str, int]) -> Listing:
    """The images of a data set, by name; `index` is class_index's.

    Raises FastRCNNError when the folder, the names of the classes or the part is missing.
    """
    names = find_names(dataset)
    pictures, problems = find_pictures(dataset, names)
    labels, unused = label_files(dataset, pictures, names.file)
    if unused:
        text = f"has no picture in the set, and neither have {len(unused) - 1} other label files; they are not read"
        problems.append(Problem("label without picture", unused[0], None, text, "noted"))
    about = f"{names.by_number} {names.keypoints} {names.file}"
    sources = [
        Source(path, partial(_read_image, record_id, path, label, names, data, index), record_id, label, about)
        for (record_id, path), label in zip(pictures, labels, strict=True)
    ]
    return Listing(sources, [*names.problems, *problems])


def _read_image(
    record_id: str, path: Path, label: Path | None, names: Names, data: DataConfig, index: dict[str, int]
) -> Found:
    size, problems = read_size(path, data)
    if size is None:
        return None, problems
    if label is None:
        return unlabelled(
            make_record(record_id, path, *size, [], None), f"no label file {Path(record_id).name}.txt", data
        )
    try:
        lines = text_of(label).splitlines()
    except FastRCNNError as e:
        return None, [Problem("unreadable annotation", label, None, str(e).removeprefix(f"{label}: "))]
    reader = ObjectReader(label, size, data, index)
    reader.fits(path, (None, None))
    for number, line in enumerate(lines, start=1):
        if line.strip():
            reader.begin(f"line {number}")
            _read_line(reader, line.split(), names)
    return reader.record(record_id, path)


def _read_line(reader: ObjectReader, words: list[str], names: Names) -> None:
    numbers = _numbers(words, names.keypoints)
    if isinstance(numbers, str):
        reader.found("bad line", numbers)
    elif numbers[0] not in names.by_number:
        known = f"0 to {max(names.by_number)}" if names.by_number else "none"
        text = f"its class {words[0]} has no name in {names.file}, which names {known}; add it there"
        reader.found("unknown class number", text)
    elif not reader.has_class(names.by_number[int(numbers[0])]):
        return
    elif max(map(abs, numbers[1:])) > PIXELS:
        text = f"its box {' '.join(words[1:5])} is not in fractions of the image; divide pixels by its width and height"
        reader.no_box("box not in fractions", text)
    else:
        polygon = len(numbers) > 5
        box = put_on_edge(_around(numbers[1:]) if polygon else _corners(*numbers[1:]), 1.0, 1.0, ROUNDING)
        box = turn_box(box, reader.turn, (1.0, 1.0)) * (reader.size * 2)
        reader.add(box, f"({' '.join(words[1:5])})", polygon=polygon)


def _numbers(words: list[str], keypoints: int) -> list[float] | str:
    """The class and the box or polygon of a line; else what is wrong with it."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        hint = " with a dot, 0.5" if "," in "".join(words) else ""
        return f"{' '.join(words)[:60]!r} does not hold numbers alone; write class cx cy w h{hint}"
    if keypoints and len(numbers) == 5 + keypoints:
        return numbers[:5]
    if len(numbers) == 6:
        return "holds six numbers: predictions with a confidence, not labels; export labels of five numbers"
    if len(numbers) < 5 or len(numbers) % 2 == 0:
        return f"holds {len(numbers)} numbers; write class cx cy w h"
    return numbers


def _corners(cx: float, cy: float, width: float, height: float) -> Box:
    """Half open, in fractions of the image."""
    return np.array([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], np.float64)


def _around(points: list[float]) -> Box:
    """The box around a polygon x y x y ..."""
    return np.array([min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])], np.float64)


# ---- writing


def write_yolo(records: Sequence[ImageRecord], classes: Sequence[str], folder: Path, split: str = "train") -> Path:
    """Write data.yaml and labels/<split>/<id>.txt, which list_yolo reads to the same records.

    Coordinates are the same float32 numbers unless they are within a thousandth of a pixel of 0: then within 1e-11
    pixels. YOLO has no difficult objects: they are written like the others, with a warning. Returns the folder where
    the pictures belong, folder/images/<split>, under their ids with their suffixes. Raises FastRCNNError for a name
    that cannot be a file there, and when a file cannot be written.
    """
    folder = Path(folder)
    difficult = sum(int(record.difficult.sum()) for record in records)
    if difficult:
        log.warning("%s: %d difficult objects are written like the others: YOLO has no such flag", folder, difficult)
    for record in records:
        rows = zip((record.classes - 1).tolist(), record.boxes.astype(np.float64).tolist(), strict=True)
        size = (record.width, record.height)
        lines = [f"{number} {' '.join(map(repr, _fractions(box, size)))}\n" for number, box in rows]
        write_text(file_of(folder / "labels" / split, record.id, ".txt"), "".join(lines))
    write_description(folder, classes, split)
    return folder / "images" / split


def _fractions(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """cx cy w h of a box in image pixels."""
    (cx, width), (cy, height) = (_centre(box[i], box[i + 2], size[i]) for i in (0, 1))
    return cx, cy, width, height


def _centre(low: float, high: float, side: int) -> tuple[float, float]:
    """Centre and length, as fractions of a side, from which _corners gives the same fractions of low and high."""
    length = (high - low) / side
    return low / side + length / 2, length  # 0 comes back as 0: half of a length is exact
