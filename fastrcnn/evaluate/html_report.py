"""report.html: what an evaluation found, in one file to read, to mail and to keep."""

import base64
import io
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import torch
from jaxtyping import Real
from PIL import Image

import fastrcnn
from fastrcnn import config as configs
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.drawing import shortened
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate import report_sections as sections
from fastrcnn.evaluate.analysis import most_confident_errors
from fastrcnn.evaluate.page import element, facts, name, page, section
from fastrcnn.evaluate.report_sections import Evaluated
from fastrcnn.files import atomic_write
from fastrcnn.images import read_image

SHOWN = 12  # pictures of each kind
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


def write_report(path: str | Path, done: Evaluated) -> None:
    """Write the page. Raises FastRCNNError as atomic_write does."""
    parts = [make(done) for make in (*sections.ALL, _best_and_worst, _most_confident_errors)]
    content = page(f"Evaluation of {'/'.join(done.source.parts[-2:])}", _head(done), *parts)
    with atomic_write(path) as file:
        file.write(content)


def _head(done: Evaluated) -> Element:
    config, result = done.config, done.result
    settings = {**configs.to_dict(config.test), "precision": config.precision}
    settings |= {key: value for key, value in configs.to_dict(config.image).items() if key.startswith("test_")}
    counted = len(config.classes) - len(result.absent)
    score = "mAP " + ("not measured: there are no objects" if np.isnan(result.mean_ap) else f"{result.mean_ap:.4f}")
    rule = "at 11 recall points" if result.metric == "11point" else "area under the curve"
    entries = {
        "evaluated": str(done.source),
        "pictures of": "; ".join(dataset.label for dataset in config.data.test),
        "how many": f"{len(done.records)} pictures, {result.objects.sum()} objects of {len(config.classes)} classes, "
        f"and {done.objects.difficult.sum()} difficult ones, which do not count",
        "detections": str(len(done.detections.scores)),
        "settings": ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items()),
        "versions": f"fastrcnn {fastrcnn.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    return element(
        "div",
        element("p", score, class_="big"),
        element("p", f"Mean average precision of {counted} classes; IoU 0.5, {rule}.", class_="quiet"),
        facts((term, name(text)) for term, text in entries.items()),
    )


def _best_and_worst(done: Evaluated) -> Element:
    quality = done.analysis.images
    content: list[Element | str] = [
        element("p", "Detections that score at least their class's threshold, of the table above. "),
        legend(),
    ]
    for title, images in (("Best", quality.best(SHOWN)), ("Worst", quality.worst(SHOWN))):
        shots = []
        for i in images:
            detections = np.flatnonzero((done.detections.images == i) & done.analysis.above)
            counts = f"{quality.right[i]} right, {quality.false[i]} wrong, {quality.missed[i]} missed"
            shots.append(thumbnail(done.records[i], [*_found(done, detections), *_objects(done, i)], counts))
        content += [element("h3", title), _grid(shots)]
    return section("Best and worst pictures", *content)


def _most_confident_errors(done: Evaluated) -> Element:
    errors = done.analysis.errors
    shots = []
    for d in most_confident_errors(errors, done.analysis.matching, SHOWN):
        about = errors.about[d]
        on = done.config.classes[done.objects.classes[about] - 1] if about >= 0 else ""
        label, score = done.config.classes[done.detections.classes[d] - 1], done.detections.scores[d]
        kind = f" {score:.3f}, {errors.kinds[errors.kind[d]]} error" + " on " * bool(on)
        caption: list[Element | str] = [name(label), kind, name(on)]
        i = int(done.detections.images[d])
        shots.append(thumbnail(done.records[i], [*_found(done, np.array([d])), *_objects(done, i)], *caption))
    text = "The wrong detections of the highest scores. Some are objects that nobody annotated: look at them first."
    return section("Most confident wrong detections", element("p", text), legend(), _grid(shots))


def _grid(shots: Sequence[Element]) -> Element:
    return element("div", *shots, class_="shots") if shots else element("p", "There are none.")


def _found(done: Evaluated, rows: np.ndarray) -> list[Drawn]:
    """Detections, the best first."""
    found, matching = done.detections, done.analysis.matching
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    right, counted = matching.right[rows], np.isin(rows, matching.order)
    kinds = np.where(right, "right", np.where(counted, "wrong", "neither")).tolist()
    labels = [f"{done.config.classes[found.classes[d] - 1]} {found.scores[d]:.2f}" for d in rows.tolist()]
    return [Drawn(*one) for one in zip(kinds, labels, found.boxes[rows], strict=True)]


def _objects(done: Evaluated, i: int) -> list[Drawn]:
    rows = np.flatnonzero(done.objects.images == i)
    kinds = np.where(done.objects.difficult[rows], "difficult", "object").tolist()
    labels = [done.config.classes[k - 1] for k in done.objects.classes[rows].tolist()]
    return [Drawn(*one) for one in zip(kinds, labels, done.objects.boxes[rows], strict=True)]


# ---- small pictures: what was there and what was found, drawn as lines that stay sharp


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
