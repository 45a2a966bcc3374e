"""report.html: what an evaluation found, in one file to read, to mail and to keep."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import torch

import fastrcnn
from fastrcnn import config as configs
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.evaluate.charts import share_chart
from fastrcnn.evaluate.page import Cell, Column, data_table, element, facts, name, page, section
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import VOCResult
from fastrcnn.files import atomic_write
from fastrcnn.proposals.recall import SIZES, Recall

MANY = 30  # classes; panels and tables of more are folded up, or only their largest entries are shown


@dataclass(frozen=True)
class Evaluated:
    """What a report is made from."""

    config: Config
    source: Path  # weights or detections.json
    records: Sequence[ImageRecord]
    detections: DetectionRows
    objects: ObjectRows
    result: VOCResult
    recall: Recall | None  # None where the proposals are not at hand


def write_report(path: str | Path, done: Evaluated) -> None:
    """Write the page. Raises FastRCNNError as atomic_write does."""
    sections = [_scores(done), _curves(done), _recall(done)]
    content = page(f"Evaluation of {'/'.join(done.source.parts[-2:])}", _head(done), *sections)
    with atomic_write(path) as file:
        file.write(content)


def _head(done: Evaluated) -> Element:
    config, result = done.config, done.result
    versions = f"fastrcnn {fastrcnn.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    settings = {**configs.to_dict(config.test), "precision": config.precision}
    settings |= {key: value for key, value in configs.to_dict(config.image).items() if key.startswith("test_")}
    sizes = f"{len(done.records)} pictures, {result.objects.sum()} objects of {len(config.classes)} classes"
    counted = len(config.classes) - len(result.absent)
    score = "mAP " + ("not measured: there are no objects" if np.isnan(result.mean_ap) else f"{result.mean_ap:.4f}")
    rule = "at 11 recall points" if result.metric == "11point" else "area under the curve"
    return element(
        "div",
        element("p", score, class_="big"),
        element("p", f"Mean average precision of {counted} classes; IoU 0.5, {rule}.", class_="quiet"),
        facts(
            [
                ("evaluated", name(str(done.source))),
                ("pictures of", name("; ".join(dataset.label for dataset in config.data.test))),
                ("how many", sizes + f", and {done.objects.difficult.sum()} difficult ones, which do not count"),
                ("detections", str(len(done.detections.scores))),
                ("settings", ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items())),
                ("versions", versions),
            ]
        ),
    )


def _scores(done: Evaluated) -> Element:
    columns = [Column("class"), Column("no.", "d"), Column("objects", "d"), Column("detections", "d")]
    columns += [Column("AP", ".4f", bar=True)]
    result = done.result
    rows: list[list[Cell]] = [
        [label, k, int(result.objects[k]), int(result.detections[k]), float(result.ap[k])]
        for k, label in enumerate(done.config.classes, start=1)
    ]
    total: list[Cell] = ["all", None, int(result.objects.sum()), int(result.detections.sum()), result.mean_ap]
    return section("Scores per class", data_table("Average precision of each class", columns, rows, total))


def _curves(done: Evaluated) -> Element:
    """The precision-recall curve of each class that has objects."""
    panels = [_panel(done, k) for k in range(1, len(done.config.classes) + 1) if done.result.objects[k]]
    if not panels:
        return section("Precision and recall", element("p", "No class has objects: there is no curve to draw."))
    text = "Precision against recall, from the detection of highest score on. "
    if done.result.metric == "11point":
        text += "AP is the mean height of the 11 points: the best precision at that recall or a higher one."
    else:
        text += "AP is the area under the curve, made non-increasing."
    if len(done.result.absent):
        text += f" Without objects, and left out: {len(done.result.absent)} classes."
    return section("Precision and recall", element("p", text), folded(panels, "curves"))


def folded(panels: Sequence[Element], what: str) -> Element:
    """Panels side by side; many are there to be opened."""
    grid = element("div", *panels, class_="panels")
    if len(panels) <= MANY:
        return grid
    return element("details", element("summary", f"Show the {what} of {len(panels)} classes"), grid)


def _panel(done: Evaluated, k: int) -> Element:
    recall, precision = done.result.recall[k], done.result.precision[k]
    # Recall is a fraction of whole numbers, as k / 10 is: both are rounded the same way, and equal ones are equal.
    best = [float(precision[recall >= tenth / 10].max(initial=0)) for tenth in range(11)]
    label, ap = done.config.classes[k - 1], done.result.ap[k]
    described = "Precision at recall 0, 0.1, ... 1: " + ", ".join(f"{value:.2f}" for value in best)
    curve = (np.append(0 * recall[:1], recall), np.append(precision[:1], precision))  # from recall 0 on
    marks = [(tenth / 10, value) for tenth, value in enumerate(best)] if done.result.metric == "11point" else []
    chart = share_chart(
        f"pr-{k}", f"Precision and recall of {label}", described, ("recall", "precision"), [curve], marks
    )
    return element("figure", chart, element("figcaption", name(label), f": AP {ap:.4f}"))


def _recall(done: Evaluated) -> Element:
    title, recall = "Recall of the proposals", done.recall
    if recall is None:
        return section(title, element("p", "Not measured: the file of proposals is not at hand."))
    if not len(recall.best_iou):
        return section(title, element("p", "Not measured: there are no objects."))
    text = (
        "An object that no proposal covers is hardly ever found, as the network moves a proposal only a little: this "
        "is the ceiling of recall, whatever it learns. A proposal covers the objects that it overlaps by that IoU."
    )
    columns = [Column("objects"), Column("how many", "d")]
    columns += [Column(f"covered at IoU {threshold:g}", ".3f", bar=True) for threshold in recall.thresholds]
    by_class = recall.by_class(len(done.config.classes) + 1)
    rows: list[list[Cell]] = [["all", len(recall.best_iou), *recall.overall().tolist()]]
    rows += [[size, int(recall.of_size(size).sum()), *recall.by_size()[size].tolist()] for size in SIZES]
    classes: list[list[Cell]] = [
        [label, int((recall.classes == k).sum()), *by_class[k].tolist()]
        for k, label in enumerate(done.config.classes, start=1)
    ]
    sizes = "By size: small below 32 x 32 pixels, large from 96 x 96"
    return section(
        title, element("p", text), data_table(sizes, columns, rows), data_table("By class", columns, classes)
    )
