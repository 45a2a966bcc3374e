"""Small pictures within a page: what was there and what was found in it, drawn as lines that stay sharp."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Real
from PIL import Image

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.drawing import shortened
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.page import element, name
from fastrcnn.images import read_image

SIDE = 320  # pixels: the longest side of a thumbnail
QUALITY = 80  # of JPEG
HIGHEST = 24  # rem; a higher picture is narrower
LONGEST = 24  # characters of a label
LETTER = 0.62  # width of a letter in font sizes, about
CROSS = "\u2717 "  # before what is wrong: no reader needs to tell colours apart
KINDS = {
    "object": "annotated object",
    "difficult": "one marked difficult, which does not count",
    "right": "right detection",
    "wrong": f"{CROSS}wrong detection",
    "neither": "detection of a difficult object, which is neither",
}


@dataclass(frozen=True)
class Drawn:
    """A box to draw; its kind is one of KINDS."""

    kind: str
    label: str
    box: Real[np.ndarray, "4"]  # image pixels


def thumbnail(record: ImageRecord, drawn: Sequence[Drawn], *caption: Element | str) -> Element:
    """The picture of a record with boxes, the first on top. One that cannot be read says so in its place."""
    said = ", ".join(f"{one.label} ({one.kind})" for one in drawn[:20])
    try:
        pixels = _jpeg(record)
    except FastRCNNError as e:
        picture = element("p", f"This picture cannot be shown: {e}. It has {said or 'no boxes'}.", class_="missing")
    else:
        source = f"data:image/jpeg;base64,{base64.b64encode(pixels).decode()}"
        lines = [part for one in reversed(drawn) for part in _lines(one)] + _labels(drawn, record.width)
        picture = element(
            "div",
            element("img", src=source, alt=f"Picture {record.id}: {said or 'nothing to find, nothing found'}"),
            element("svg", *lines, viewBox=f"0 0 {record.width} {record.height}", aria_hidden="true"),
            class_="shot",
            style=f"max-width:{HIGHEST * record.width / record.height:.2f}rem",
        )
    return element("figure", picture, element("figcaption", name(record.id), ": ", *caption))


def legend() -> Element:
    """What the lines mean."""
    parts: list[Element | str] = []
    for kind, text in KINDS.items():
        box = _lines(Drawn(kind, "", np.array([3, 3, 37, 17])))
        parts += [element("svg", *box, viewBox="0 0 40 20", class_="swatch", aria_hidden="true"), f" {text} "]
    return element("p", *parts)


def _jpeg(record: ImageRecord) -> bytes:
    image = Image.fromarray(read_image(record.path))
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _lines(one: Drawn) -> list[Element]:
    """A box, with a dark edge so that it is seen on any picture."""
    x1, y1, x2, y2 = one.box.tolist()
    width, height = max(x2 - x1, 0), max(y2 - y1, 0)  # SVG takes no negative ones
    place = {"x": f"{x1:.0f}", "y": f"{y1:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
    return [element("rect", class_=kind, **place) for kind in (f"under {one.kind}", one.kind)]


def _labels(drawn: Sequence[Drawn], width: int) -> list[Element]:
    """The labels of boxes, in the corner that leaves more room; one that would cover another is left out."""
    size = width / 22
    labels: list[Element] = []
    taken: list[tuple[float, float, float]] = []
    for one in drawn:
        text = shortened(CROSS * (one.kind == "wrong") + one.label, LONGEST)
        x1, y1, x2, y2 = one.box.tolist()
        length = LETTER * size * len(text)
        start = x1 + size / 4 if x1 + x2 < width else x2 - size / 4 - length
        # That of an object stands below, apart from a detection of the same box.
        y = y2 - size / 3 if one.kind in ("object", "difficult") else y1 + size
        if all(abs(y - other) >= size or start >= right or left >= start + length for left, right, other in taken):
            taken.append((start, start + length, y))
            x, anchor = (start, "start") if x1 + x2 < width else (start + length, "end")
            place = {"x": f"{x:.0f}", "y": f"{y:.0f}", "font_size": f"{size:.1f}", "text_anchor": anchor}
            labels.append(element("text", text, **place, class_=one.kind))
    return labels
