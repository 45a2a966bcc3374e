"""report.html: what an evaluation found, in one file to read, to mail and to keep."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import torch

import fastrcnn
from fastrcnn import config as configs
from fastrcnn.evaluate import report_sections as sections
from fastrcnn.evaluate.image_quality import most_confident_errors
from fastrcnn.evaluate.page import element, facts, name, page, section
from fastrcnn.evaluate.report_sections import Evaluated
from fastrcnn.evaluate.thumbnails import Drawn, legend, thumbnail
from fastrcnn.files import atomic_write

SHOWN = 12  # pictures of each kind


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
