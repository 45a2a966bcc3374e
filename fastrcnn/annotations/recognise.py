"""Which format a folder or a file holds, when it is not the one that the configuration names.

Only for the words of an error: files are opened one after another until one tells.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrcnn.annotations.pictures import files_below, is_picture
from fastrcnn.errors import FastRCNNError

MOST_FILES = 20_000  # names that are looked at
MOST_OPENED = 20  # files of a kind that are opened
COCO = "this is COCO: set format: coco"
YOLO = "this is YOLO: set format: yolo"
VOC = "this is VOC's layout: set format: voc, and split to a list of ImageSets/Main"
EXPORT = "export it from there as Pascal VOC (format: folder), COCO (format: coco) or YOLO (format: yolo)"


def recognise(root: Path) -> str | None:
    """What a folder seems to hold, and what to do, as the end of an error message; None when nothing is known."""
    try:
        names = sorted(islice(files_below(root), MOST_FILES), key=lambda name: (name.count("/"), name))
    except FastRCNNError:
        return None
    return next((text for text in _signs(root, names) if text), None)


def _signs(root: Path, names: list[str]) -> Iterator[str | None]:
    def of(*suffixes: str) -> Iterator[Path]:
        return (root / name for name in islice((n for n in names if n.lower().endswith(suffixes)), MOST_OPENED))

    folders = {part for name in names for part in name.split("/")[:-1]}
    if {"JPEGImages", "Annotations", "ImageSets"} <= folders:
        yield VOC
    yield from (_kind_of_yaml(path) for path in of(".yaml", ".yml"))
    yield from (_kind_of_xml(path) for path in of(".xml"))
    yield from (_kind_of_json_file(path) for path in of(".json"))
    if any(name.rpartition("/")[2] in ("classes.txt", "obj.names", "_darknet.labels") for name in names):
        yield YOLO
    yield from (_kind_of_text(path) for path in of(".txt"))
    for suffix, kind in ((".tfrecord", "a TFRecord"), (".csv", "a table (CSV)")):
        yield from (f"{path} is {kind}, which is not read: {EXPORT}" for path in of(suffix))
    if not any(map(is_picture, names)) and names:
        yield None


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _kind_of_yaml(path: Path) -> str | None:
    return YOLO if re.search(r"^(names|nc)\s*:", _head(path), re.MULTILINE) else None


def _kind_of_text(path: Path) -> str | None:
    """A line of YOLO: a class and four or more fractions."""
    first = _head(path).partition("\n")[0]
    return YOLO if re.fullmatch(r"\s*\d+(\s+[01]?\.\d+|\s+[01]){4,}\s*", first) else None


def _kind_of_xml(path: Path) -> str | None:
    roots = re.search(r"<(annotations|dataset|annotation)[\s>]", _head(path))
    if roots and roots[1] == "annotations":
        return f"{path} is CVAT's own format (CVAT for images): export it from CVAT as Pascal VOC, COCO or YOLO"
    if roots and roots[1] == "dataset":
        return f"{path} is imglab's (dlib's) format: export it from imglab as Pascal VOC or COCO"
    return None


def _kind_of_json_file(path: Path) -> str | None:
    try:
        return kind_of_json(json.loads(path.read_bytes()), path)
    except (OSError, ValueError, RecursionError):
        return None


def kind_of_json(tree: Any, path: Path) -> str | None:
    """What a JSON file seems to be, and what to do about it."""
    first = tree[0] if isinstance(tree, list) and tree else None
    keys = set(first) if isinstance(first, dict) else set()
    if {"image_id", "bbox"} <= keys:
        return f"{path} is a list of results (detections), not a data set: take the file with images and categories"
    if {"image", "annotations"} <= keys:
        return f"{path} is Create ML's format, which is not read: {EXPORT}"
    if "data" in keys and keys & {"annotations", "completions", "predictions"}:
        return f"{path} is Label Studio's own format: export it from there as COCO, YOLO or Pascal VOC"
    if not isinstance(tree, dict):
        return None
    if {"images", "annotations", "categories"} <= tree.keys():
        return COCO
    if {"shapes", "imagePath"} <= tree.keys():
        return (
            f"{path} is labelme's own format: make COCO or VOC of it with labelme's labelme2coco.py or labelme2voc.py"
        )
    some = list(islice(tree.values(), 3))
    if "_via_img_metadata" in tree or any(isinstance(v, dict) and {"filename", "regions"} <= v.keys() for v in some):
        return f"{path} is VIA's own format: export it from VIA as COCO"
    if {"asset", "regions"} <= tree.keys() or {"assets", "tags"} <= tree.keys():
        return f"{path} is VoTT's own format: export it from VoTT as Pascal VOC (format: voc)"
    if {"items", "categories"} <= tree.keys():
        return f"{path} is Datumaro's own format: convert it with datum to VOC, COCO or YOLO"
    return None
