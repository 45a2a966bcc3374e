"""COCO: one JSON file with the objects of all images; the pictures lie in a folder below the root of the data set.

A box is [x, y, width, height], 0-based, so that (x, y, x + width, y + height) is half open. `iscrowd` is read as
difficult: both leave an object out of the score. Key points, captions and areas are not read.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.annotations.coco_file import Entry, id_key, read_coco_file
from fastrcnn.annotations.folders import Pictures, image_id, is_picture
from fastrcnn.annotations.objects import ObjectReader, read_size, turn_box, unreadable
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Box, Found, ImageRecord, Listing, Source
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write


def list_coco(dataset: DataSetConfig, data: DataConfig, index: dict[str, int]) -> Listing:
    """The images of a data set in the order of its JSON file; `index` is class_index's.

    Raises FastRCNNError when the folder is missing, or there is no one COCO file.
    """
    pictures = Pictures(Path(dataset.root))
    listing = Listing([], [])
    used = set()
    paths = [_json_file(dataset, pictures, name) for name in dataset.split_names or [""]]
    for file in map(read_coco_file, dict.fromkeys(paths)):
        listing.problems.extend(file.problems)
        for entry in file.images:
            path, identity = pictures.root / entry.name.replace("\\", "/"), ""
            try:
                below, path = pictures.find(entry.name, _near(file.path, pictures.root))
                identity = image_id(below)
                read: Callable[[], Found] = partial(
                    _read_image, entry, identity, path, file.path, file.names, data, index
                )
                used.add((path, below))
            except FastRCNNError as e:
                read = partial(unreadable, Problem("missing image", path, None, f"{e}; {file.path} names it"), data)
            listing.sources.append(Source(path, read, identity, file.path if identity else None, entry.name))
    listing.problems.extend(_unnamed(pictures, used, paths[0]))
    return listing


def _json_file(dataset: DataSetConfig, pictures: Pictures, split: str) -> Path:
    """`annotations` if it is set, else the only JSON file in root, root/annotations or the folder of the split."""
    if dataset.annotations:
        return Path(dataset.annotations)
    root = pictures.root
    folders = {"", "annotations", split}
    found = [name for name in pictures.names.values() if name.endswith(".json") and name.rpartition("/")[0] in folders]
    found = [name for name in found if root / name != Path(dataset.proposals or "")]
    if split:
        found = [name for name in found if split in (name.split("/")[0], _end_of(name))]
    found = sorted([n for n in found if n.rpartition("/")[2].startswith(("instances_", "_annotations.coco"))] or found)
    if not found:
        which = f" of {split}" if split else ""
        raise FastRCNNError(
            f"{root}: holds no JSON file{which}, nor does annotations/ in it; set `annotations` of the data set to it"
        )
    if len(found) > 1:
        names = ", ".join(found[:5]) + (" and others" if len(found) > 5 else "")
        raise FastRCNNError(f"{root}: holds {names}; set `annotations` of the data set to one of them")
    return root / found[0]


def _end_of(name: str) -> str:
    """What the name of a file says about its part: annotations/instances_train2017.json -> train2017."""
    return Path(name).stem.rpartition("_")[2]


def _near(path: Path, root: Path) -> list[str]:
    """Folders below the root where the pictures of a JSON file may be, the likeliest first."""
    try:
        beside = path.parent.relative_to(root).as_posix().removeprefix(".")
    except ValueError:
        beside = ""
    part = _end_of(path.name)
    return [beside, f"{beside}/images".lstrip("/"), f"images/{part}", part, "images", "", "JPEGImages"]


def _unnamed(pictures: Pictures, used: set[tuple[Path, str]], file: Path) -> list[Problem]:
    """The pictures in the folders of those that the file names, which it does not name: one remark for all."""
    folders = {_folder_of(path.relative_to(pictures.root).as_posix(), below) for path, below in used}
    paths = {path for path, _ in used}
    others = [
        name
        for name in pictures.names.values()
        if is_picture(name) and pictures.root / name not in paths and not folders.isdisjoint(_folders_above(name))
    ]
    if not others:
        return []
    text = f"does not name {len(others)} pictures of its folder, such as {others[0]}; they are not in the set"
    return [Problem("picture not named", file, None, text, "noted")]


def _folders_above(name: str) -> list[str]:
    """day/1/a.jpg -> "", day/, day/1/."""
    return ["", *(name[: slash + 1] for slash, letter in enumerate(name) if letter == "/")]


def _folder_of(name: str, below: str) -> str:
    return name[: len(name) - len(below)]


# ---- one image


def _read_image(
    entry: Entry,
    record_id: str,
    path: Path,
    file: Path,
    names: dict[str, str],
    data: DataConfig,
    index: dict[str, int],
) -> Found:
    size, problems = read_size(path, data)
    if size is None:
        return None, problems
    reader, image = ObjectReader(file, size, data, index), f"image {entry.name}"
    if reader.fits(path, entry.size, image):
        for annotation in entry.annotations:
            reader.begin(f"annotation {annotation.get('id')!s:.60} of {image}")
            _read_object(reader, annotation, names)
    return reader.record(record_id, path, image)


def _read_object(reader: ObjectReader, annotation: dict[str, Any], names: dict[str, str]) -> None:
    category = id_key(annotation.get("category_id"))
    if category not in names:
        text = f"its category_id {annotation.get('category_id')!r:.60} is not among the categories; add it there"
        reader.found("unknown category", text, "ignored" if reader.data.on_unknown_class == "ignore" else "error")
        return
    if not reader.has_class(names[category]):
        return
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):
        reader.found("bad iscrowd", f"its iscrowd is {crowd!r:.60}; write 0 or 1")
        return
    bbox, segmentation = annotation.get("bbox") or None, annotation.get("segmentation")
    box = _enclosing(segmentation) if bbox is None else _half_open(bbox)
    if box is None:
        has = "a mask (RLE)" if isinstance(segmentation, dict) else "no polygon either"
        reader.no_box("box missing", f"it has no bbox, and {has}")
        return
    shown = f"{bbox or 'around its polygon'!s:.80}"
    reader.add(turn_box(box, reader.turn, reader.size), shown, bool(crowd), polygon=bbox is None)


def _half_open(bbox: Any) -> Box:
    """In image pixels; NaN for a box that is not four finite numbers."""
    numbers = _numbers(bbox)
    if numbers is None or len(numbers) != 4:
        return np.full(4, np.nan)
    x, y, width, height = numbers
    return np.array([x, y, x + width, y + height], np.float64)


def _enclosing(segmentation: Any) -> Box | None:
    """The box around the polygons [x, y, x, y, ...] of an object; None if these are not polygons."""
    polygons = [_numbers(polygon) for polygon in segmentation] if isinstance(segmentation, list) else []
    if not polygons or any(p is None or len(p) < 6 or len(p) % 2 for p in polygons):
        return None
    points = np.concatenate([np.array(p, np.float64).reshape(-1, 2) for p in polygons])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _numbers(values: Any) -> list[float] | None:
    """Finite numbers as floats; None for anything else."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return None
    try:
        numbers = [float(v) for v in values]
    except OverflowError:  # an integer beyond 1e308
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


# ---- writing


def write_coco(records: Sequence[ImageRecord], classes: Sequence[str], folder: Path, split: str = "train") -> Path:
    """Write annotations/instances_<split>.json, which list_coco reads to the same records; difficult becomes iscrowd.

    Returns the folder where the pictures belong, folder/<split>, under their ids with their suffixes. Raises
    FastRCNNError as atomic_write does.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        name = record.id + record.path.suffix
        images.append({"id": number, "file_name": name, "width": record.width, "height": record.height})
        rows = zip(record.boxes.astype(np.float64), record.classes.tolist(), record.difficult.tolist(), strict=True)
        for box, category, difficult in rows:
            x1, y1, x2, y2 = box.tolist()
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": bbox}
            annotations.append(annotation | {"area": bbox[2] * bbox[3], "iscrowd": int(difficult)})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_write(Path(folder) / "annotations" / f"instances_{split}.json") as file:
        file.write(json.dumps(tree, allow_nan=False).encode())
    return Path(folder) / split
