"""One VOC XML file and the objects in it, as PASCAL VOC and many labelling tools write them.

XML files hold boxes in pixels of the upright picture (EXIF applied, as labelling tools show it). `xml_origin: 1` is
VOC: the first pixel is 1 and both ends belong to the box, so it becomes (xmin - 1, ymin - 1, xmax, ymax).
`xml_origin: 0` is what CVAT, Roboflow and labelme write: positions between pixels, where the right edge of the image is
its width, so the numbers are taken as they are, half open. (LabelImg writes such positions too, but never below 1.)
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import numpy as np

from fastrcnn.annotations.objects import ObjectReader, turn_box
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Box, ImageRecord, Stated
from fastrcnn.annotations.writing import file_of, shortest, write_text
from fastrcnn.annotations.xml_tree import read_annotation
from fastrcnn.errors import FastRCNNError

# What other tools draw in place of a <bndbox>, and how their boxes are had.
OTHER_SHAPES = {
    "robndbox": "a turned box (roLabelImg)",
    "rotated_bndbox": "a turned box",
    "polygon": "a polygon",
    "segmentation": "a mask",
    "mask": "a mask",
    "points": "points",
    "keypoints": "key points",
    "polyline": "a line",
    "line": "a line",
    "ellipse": "an ellipse",
    "circle": "a circle",
    "cuboid": "a cuboid",
}
SIDES = ("xmin", "ymin", "xmax", "ymax")
FLAGS = {"": False, "0": False, "1": True, "false": False, "true": True, "unspecified": False}  # Unspecified: VOC2007


def read_objects(reader: ObjectReader, picture: Path) -> Stated:
    """Read the objects in the reader's file, an XML file, of this picture; what else the file says.

    Raises FastRCNNError for a file that is no annotation.
    """
    path = reader.file
    root, guessed = read_annotation(path, reader.index)
    stated = Stated((root.findtext("filename") or "").strip(), tuple(origins(root)))
    if not reader.fits(picture, _stated_size(root)):
        return stated
    if guessed:
        text = f"does not state its encoding: read as {guessed}, the only one that gives class names; save it as UTF-8"
        reader.problems.append(Problem("encoding guessed", path, None, text, "noted"))
    elements = list(_outermost(root))
    deeper = len(elements) - len(root.findall("object"))
    if deeper:
        text = f"{deeper} of its <object> are not directly in <annotation> but deeper; they are read anyway"
        reader.problems.append(Problem("objects nested", path, None, text, "noted"))
    within = sum(1 for _ in root.iter("object")) - len(elements)
    if within:
        text = f"{within} of its <object> lie inside another <object> and are not read; move them beside it"
        reader.problems.append(Problem("objects in objects", path, None, text))
    for number, element in enumerate(elements, start=1):
        reader.begin(number)
        _read_object(reader, element)
    return stated


def _outermost(parent: Element) -> Iterator[Element]:
    """All <object> elements at any depth that lie in no other one."""
    for child in parent:
        if child.tag == "object":
            yield child
        else:
            yield from _outermost(child)


def _stated_size(root: Element) -> tuple[int | str | None, int | str | None]:
    """(width, height), None for what is not stated."""
    width, height = _texts(root.find("size"), ("width", "height"))
    return int(width) if width.isdecimal() else width or None, int(height) if height.isdecimal() else height or None


def _read_object(reader: ObjectReader, element: Element) -> None:
    """An <object>: it is kept, or left out with what is wrong with it."""
    name = (element.findtext("name") or "").strip()
    if not name:
        text, ignored = "has no class: its <name> is empty or missing", reader.data.on_unknown_class == "ignore"
        text += "" if ignored else "; write one of classes there, or set data.on_unknown_class: ignore"
        reader.found("no class name", text, "ignored" if ignored else "error")
        return
    if not reader.has_class(name):
        return
    flag = (element.findtext("difficult") or "").strip().lower()
    if flag not in FLAGS:
        reader.found("bad <difficult>", f"its <difficult> is {flag!r}; write 0 or 1")
        return
    sides, origin = _sides(element), reader.data.xml_origin
    fault = _shape_fault(element, sides, reader.size)
    if fault is not None:
        reader.no_box(*fault)
        return
    box = turn_box(_half_open(sides, origin), reader.turn, reader.size)
    hint = ""
    if reader.turn == 1 and origin == 1 and -1 <= box[:2].min() < 0:
        hint = "; the first pixel is 1 here: set data.xml_origin: 0 if your tool counts from 0"
    reader.add(box, f"({', '.join(sides)})", FLAGS[flag], hint=hint)


def _shape_fault(element: Element, sides: list[str], size: tuple[int, int]) -> tuple[str, str] | None:
    """(kind, description) of what an object has in place of one <bndbox> in pixels; None if it has that."""
    tags = [child.tag for child in element]
    count = tags.count("bndbox")
    others = [] if count else [OTHER_SHAPES[tag] for tag in tags if tag in OTHER_SHAPES]
    if count > 1:
        return "several boxes", f"has {count} <bndbox>, and an object is one box; give each an <object> of its own"
    if others:
        text = f"has no <bndbox> but {others[0]}; export boxes from your tool, or add the <bndbox> around it"
        return "box of another shape", text
    if size > (1, 1) and _are_fractions(sides):
        text = f"its box ({', '.join(sides)}) cannot be pixels: its numbers are fractions of the image; export pixels"
        return "box in fractions", text
    return None


def _are_fractions(sides: list[str]) -> bool:
    """Whether all four numbers are in [0, 1], and not all whole: no box of pixels is so small."""
    try:
        raw = [float(text) for text in sides]
    except ValueError:
        return False
    return all(0 <= value <= 1 for value in raw) and any(0 < value < 1 for value in raw)


def _half_open(sides: list[str], origin: int) -> Box:
    """In image pixels; NaN for a box that is not four finite numbers."""
    try:
        raw = [float(text) for text in sides]
    except ValueError:
        raw = [math.nan]
    if not all(map(math.isfinite, raw)):
        return np.full(4, np.nan)
    return np.array([raw[0] - origin, raw[1] - origin, raw[2], raw[3]], np.float64)


def _sides(element: Element) -> list[str]:
    """What the object's own <bndbox> holds; a <part> of the object has another.

    The original takes the first <xmin> anywhere below <object> (lib/datasets/pascal_voc.py), so that it reads a
    <part>'s box for 26 objects of VOC whose parts come first.
    """
    return _texts(element.find("bndbox"), SIDES)


def _texts(parent: Element | None, tags: Sequence[str]) -> list[str]:
    """What the first child of each tag holds; "" without one."""
    return ["" if parent is None else (parent.findtext(tag) or "").strip() for tag in tags]


# ---- writing


def write_voc(
    records: Sequence[ImageRecord], classes: Sequence[str], folder: Path, split: str = "train", xml_origin: int = 1
) -> Path:
    """Write Annotations/<id>.xml and the list ImageSets/Main/<split>.txt, which are read to the same records.

    Read them with the same `xml_origin`. With 0, boxes come back bit for bit; with 1, as in VOC, all but coordinates
    within 2e-9 pixels of 0, which come back within 2e-16 pixels. Returns the folder where the pictures belong,
    folder/JPEGImages, under their ids with their suffixes. Raises FastRCNNError for a name that no XML file or list can
    hold, and when a file cannot be written.
    """
    folder = Path(folder)
    for record in records:
        if [record.id] != record.id.strip().splitlines():
            raise FastRCNNError(f"{record.path}: its name {record.id!r} cannot be a line of a list; rename the picture")
        write_text(file_of(folder / "Annotations", record.id, ".xml"), _as_xml(record, classes, xml_origin))
    ids = "".join(f"{record.id}\n" for record in records)
    write_text(folder / "ImageSets" / "Main" / f"{split}.txt", ids)
    return folder / "JPEGImages"


def _as_xml(record: ImageRecord, classes: Sequence[str], origin: int) -> str:
    rows = zip(record.boxes.astype(np.float64).tolist(), record.classes, record.difficult, strict=True)
    objects = []
    for (x1, y1, x2, y2), number, difficult in rows:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + origin, y1 + origin, x2, y2), strict=True)
        box = "".join(f"<{side}>{shortest(value)}</{side}>" for side, value in sides)
        name = _escaped(classes[number - 1])
        flag = f"<difficult>{int(difficult)}</difficult>"
        objects.append(f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox></object>\n")
    size = f"<size><width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>"
    name = _escaped(record.id.rpartition("/")[2] + record.path.suffix)
    return f"<annotation>\n<filename>{name}</filename>\n{size}\n{''.join(objects)}</annotation>\n"


def _escaped(text: str) -> str:
    """Raises FastRCNNError for characters that no XML file can hold (XML 1.0, section 2.2)."""
    if re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", text):
        raise FastRCNNError(f"the name {text!r} holds characters that XML cannot hold; rename it, or choose COCO")
    return escape(text, {"\r": "&#13;"})


# ---- is the first pixel 0 or 1?


VOC = 1, "marked as PASCAL VOC's"


def origins(root: Element) -> Iterator[tuple[int, str]]:
    """(0 or 1, how it is shown) for each thing in the file that shows the coordinate of its first pixel."""
    source = {child.tag: (child.text or "").strip() for parent in root.findall("source") for child in parent}
    mark = _mark(root, source)
    if mark is not None:
        yield mark
    boxes = [[_number(box.findtext(side)) for side in SIDES] for box in root.iter("bndbox")]
    boxes = [box for box in boxes if 1 < max(box) < math.inf]  # fractions of the image are another matter
    if any(0 <= min(box[:2]) < 1 for box in boxes):
        yield 0, "with a box at 0"
    if mark != VOC and any(side % 1 for box in boxes for side in box):  # VOC 2012 has some, too
        yield 0, "with parts of pixels"


def _mark(root: Element, source: dict[str, str]) -> tuple[int, str] | None:
    """What the tool that wrote the file counts from, if it left a mark that is known."""
    if source.get("annotation", "").startswith("PASCAL VOC"):
        return VOC
    if "roboflow" in source.get("database", "").lower():
        return 0, "marked as Roboflow's"
    if {"database", "annotation", "image"} <= {child.tag for child in root}:
        return 0, "marked as labelme's"
    if source == {"database": "Unknown", "annotation": "Unknown", "image": "Unknown"}:
        return 0, "marked as CVAT's or Datumaro's"
    if source == {"database": "Unknown"} and root.find("path") is not None:
        return 0, "marked as LabelImg's or VoTT's"
    return None


def _number(text: str | None) -> float:
    """Infinity for what is no number."""
    try:
        number = float(text or "")
    except ValueError:
        return math.inf
    return number if math.isfinite(number) else math.inf
