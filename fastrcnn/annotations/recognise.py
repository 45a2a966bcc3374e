"""Which format a folder or a file holds, when it is not the one that the configuration names.

Only for the words of an error: files are opened one after another until one is recognised.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrcnn.annotations.folders import files_below
from fastrcnn.errors import FastRCNNError

MOST_FILES = 20_000  # names that are looked at
MOST_OPENED = 20  # files of a kind that are opened
READ = {
    "voc": "this is VOC's layout: set format: voc, and split to a list of ImageSets/Main",
    "folder": "these are pictures with XML files: set format: folder",
    "coco": "this is COCO: set format: coco",
    "yolo": "this is YOLO: set format: yolo",
}
EXPORT = "export it as Pascal VOC (format: folder), COCO (format: coco) or YOLO (format: yolo)"


def recognise(root: Path, named: str = "folder") -> str | None:
    """What a folder holds and what to do, as the end of an error message; None if unknown, or the format `named`."""
    try:
        names = sorted(islice(files_below(root), MOST_FILES), key=lambda name: (name.count("/"), name))
    except FastRCNNError:
        return None
    kind = next(_signs(root, names), named)
    return None if kind == named else READ.get(kind, kind)


def _signs(root: Path, names: list[str]) -> Iterator[str]:
    """The format, or a sentence on one that is not read, of each file that shows it; the surest first."""

    def of(*suffixes: str) -> Iterator[Path]:
        return (root / name for name in islice((n for n in names if n.lower().endswith(suffixes)), MOST_OPENED))

    if {"JPEGImages", "Annotations", "ImageSets"} <= {name.partition("/")[0] for name in names}:
        yield "voc"
    kinds = (_kind_of_yaml, (".yaml", ".yml")), (_kind_of_xml, (".xml",)), (_kind_of_json_file, (".json",))
    for kind_of, suffixes in (*kinds, (_kind_of_text, (".txt", ".names", ".labels"))):
        yield from filter(None, map(kind_of, of(*suffixes)))
    yield from (f"{path} is a TFRecord, which is not read: {EXPORT}" for path in of(".tfrecord", ".record"))
    yield from (f"{path} may be a table of boxes, which is not read: {EXPORT}" for path in of(".csv"))


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _kind_of_yaml(path: Path) -> str | None:
    return "yolo" if re.search(r"^(names|nc)\s*:", _head(path), re.MULTILINE) else None


def _kind_of_text(path: Path) -> str | None:
    """A line of YOLO is a class and four or more fractions."""
    line = _head(path).partition("\n")[0]
    known = path.name in ("classes.txt", "obj.names", "_darknet.labels")
    return "yolo" if known or re.fullmatch(r"\s*\d+(\s+[01]?\.\d+|\s+[01]){4,}\s*", line) else None


def _kind_of_xml(path: Path) -> str | None:
    root = re.search(r"<(annotations|dataset|annotation)[\s>]", _head(path))
    if root is None:
        return None
    if root[1] == "annotation":
        return "folder"
    own = "CVAT's own format (CVAT for images)" if root[1] == "annotations" else "the format of imglab (dlib)"
    return f"{path} is {own}, which is not read: {EXPORT}"


def _kind_of_json_file(path: Path) -> str | None:
    try:
        return kind_of_json(json.loads(path.read_bytes()), path)
    except (OSError, ValueError, RecursionError):
        return None


def kind_of_json(tree: Any, path: Path) -> str | None:
    """A format, or a sentence on one that is not read; None for a file of another kind."""
    first = tree[0] if isinstance(tree, list) and tree else None
    keys = set(first) if isinstance(first, dict) else set()
    if {"image_id", "bbox"} <= keys:
        return f"{path} is a list of results (detections), not a data set: take the file with images and categories"
    if {"image", "annotations"} <= keys:
        return f"{path} is Create ML's format, which is not read: {EXPORT}"
    if "data" in keys and keys & {"annotations", "completions", "predictions"}:
        return f"{path} is Label Studio's own format, which is not read: {EXPORT}"
    if not isinstance(tree, dict):
        return None
    if {"images", "annotations", "categories"} <= tree.keys():
        return "coco"
    if {"shapes", "imagePath"} <= tree.keys():
        return f"{path} is labelme's own format, which is not read: use its labelme2voc.py or labelme2coco.py"
    some = list(islice(tree.values(), 3))
    if "_via_img_metadata" in tree or any(isinstance(v, dict) and {"filename", "regions"} <= v.keys() for v in some):
        return f"{path} is VIA's own format, which is not read: export it from VIA as COCO (format: coco)"
    if {"asset", "regions"} <= tree.keys() or {"assets", "tags"} <= tree.keys():
        return f"{path} is VoTT's own format, which is not read: export it from VoTT as Pascal VOC (format: voc)"
    if {"items", "categories"} <= tree.keys():
        return f"{path} is Datumaro's own format, which is not read: convert it with datum to VOC, COCO or YOLO"
    return None
