"""Is the first pixel 0 or 1? What an XML file of boxes shows of it; data/README.md has the tools' table."""

import math
from collections.abc import Iterator
from xml.etree.ElementTree import Element

SIDES = ("xmin", "ymin", "xmax", "ymax")
VOC = 1, "marked as PASCAL VOC's"


def origins(root: Element) -> Iterator[tuple[int, str]]:
    """(0 or 1, how it is shown) for each thing in the file that shows the coordinate of its first pixel."""
    source = {child.tag: (child.text or "").strip() for child in root.findall("source/*")}
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
