"""The sections of report.html that say numbers: each is made from an evaluation, and stands alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Float64, Real

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.evaluate.analysis import Analysis
from fastrcnn.evaluate.page import Cell, Column, data_table, element, heat_table, name, section, share_chart
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.thresholds import GRID
from fastrcnn.evaluate.voc import VOCResult
from fastrcnn.proposals.recall import SIZES, Recall

MANY = 30  # classes: panels of more are folded up, and a confusion matrix of more is a list
CONFUSIONS = 30  # the largest are listed
KINDS = {
    "classification": "on an object of another class",
    "similar class": "on an object of a similar class (animals and persons, vehicles, furniture)",
    "other class": "on an object of another class that is not similar",
    "localisation": "on an object of its class, with an IoU from 0.1 to below 0.5",
    "both": "near an object of another class: neither class nor place are right",
    "duplicate": "on an object of its class that a better detection has",
    "background": "where no object is",
    "missed": "an object that no detection is about",
}


@dataclass(frozen=True)
class Evaluated:
    """What a report is made from."""

    config: Config
    source: Path  # weights or detections.json
    records: Sequence[ImageRecord]  # N, by the images' numbers in the rows
    detections: DetectionRows
    objects: ObjectRows
    result: VOCResult
    analysis: Analysis
    recall: Recall | None  # of the proposals; None where they are not at hand

    def classes(self) -> list[tuple[int, str]]:
        """The number and name of each class that has objects."""
        return [(k, label) for k, label in enumerate(self.config.classes, start=1) if self.result.objects[k]]


def scores(done: Evaluated) -> Element:
    columns = [Column("class"), Column("no.", "d"), Column("objects", "d"), Column("detections", "d")]
    columns += [Column("AP", ".4f", bar=True), Column("threshold", ".3f"), Column("F1", ".3f", bar=True)]
    columns += [Column("precision", ".3f"), Column("recall", ".3f")]
    result, thresholds = done.result, done.analysis.thresholds
    rows: list[list[Cell]] = []
    for k, label in enumerate(("all", *done.config.classes)):
        best = thresholds.best[k] if k else thresholds.overall
        counts = [int(n[k] if k else n.sum()) for n in (result.objects, result.detections)]
        at_best = [best.score, best.f1, best.precision, best.recall] if best else [None] * 4
        rows.append([label, k or None, *counts, float(result.ap[k]) if k else result.mean_ap, *at_best])
    text = (
        "The threshold is the score from which on F1, the harmonic mean of precision and recall, is best on these "
        "pictures; F1, precision and recall are those at the threshold. In the last row one threshold is for all."
    )
    table = data_table("Average precision, and the threshold of best F1", columns, rows[1:], rows[0])
    return section("Scores per class", element("p", text), table)


def precision_and_recall(done: Evaluated) -> Element:
    panels = [_precision_panel(done, k, label) for k, label in done.classes()]
    if not panels:
        return section("Precision and recall", element("p", "No class has objects: there is no curve to draw."))
    text = "Precision against recall, from the detection of highest score on. "
    if done.result.metric == "11point":
        text += "AP is the mean height of the 11 points: the best precision at that recall or a higher one."
    else:
        text += "AP is the area under the curve, made non-increasing."
    if len(done.result.absent):
        text += f" Classes without objects are left out: {len(done.result.absent)}."
    return section(
        "Precision and recall", element("p", text), _folded(_side_by_side(panels), "curves", len(panels) > MANY)
    )


def _side_by_side(panels: Sequence[Element]) -> Element:
    return element("div", *panels, class_="panels")


def _folded(content: Element, what: str, fold: bool = True) -> Element:
    """Content that is there to be opened, if `fold`."""
    return element("details", element("summary", f"Show the {what}"), content) if fold else content


def _precision_panel(done: Evaluated, k: int, label: str) -> Element:
    recall, precision = done.result.recall[k], done.result.precision[k]
    # Recall is a fraction of whole numbers, as k / 10 is: both are rounded the same way, and equal ones are equal.
    best = [float(precision[recall >= tenth / 10].max(initial=0)) for tenth in range(11)]
    described = "Precision at recall 0, 0.1, ... 1: " + ", ".join(f"{value:.2f}" for value in best)
    curve = (np.append(0 * recall[:1], recall), np.append(precision[:1], precision))  # from recall 0 on
    marks = [(tenth / 10, value) for tenth, value in enumerate(best)] if done.result.metric == "11point" else []
    title = f"Precision and recall of {label}"
    chart = share_chart(f"pr-{k}", title, described, ("recall", "precision"), [curve], marks)
    return element("figure", chart, element("figcaption", name(label), f": AP {done.result.ap[k]:.4f}"))


def confusion(done: Evaluated) -> Element:
    title, matrix = "Confusion matrix", done.analysis.confusion
    if not matrix.any():
        return section(title, element("p", "There are no objects and no detections."))
    text = (
        "Which class is taken for which: each detection from its class's threshold on, the best first, is given the "
        "object of any class that it overlaps most, by IoU 0.5 at least, if no better one has it. A detection without "
        "an object is on the background, an object without a detection is missed."
    )
    labels = ["background", *done.config.classes]
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    wrong[0] = wrong[:, 0] = 0
    largest = [divmod(i, len(labels)) for i in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist()]
    columns = [Column("object"), Column("detected as"), Column("how many", "d"), Column("of its class", ".1%")]
    rows: list[list[Cell]] = [
        [labels[i], labels[j], int(wrong[i, j]), wrong[i, j] / matrix[i].sum()] for i, j in largest if wrong[i, j]
    ]
    parts = [data_table("The largest confusions of two classes", columns, rows)] if rows else []
    if len(labels) <= MANY:
        order = [*range(1, len(labels)), 0]  # background comes last
        ends = ([*labels[1:], "background"], [*labels[1:], "missed"])
        parts.insert(
            0, heat_table("Rows: objects; columns: what they were detected as", *ends, matrix[order][:, order])
        )
    return section(title, element("p", text), *parts)


def f1_and_threshold(done: Evaluated) -> Element:
    thresholds, title = done.analysis.thresholds, "F1 against threshold"
    best = thresholds.overall
    if best is None:
        return section(title, element("p", "No object was found: no threshold is better than another."))
    text = f"With one threshold for all classes, F1 is best at {best.score:.3f}: {best.f1:.3f}, with precision "
    text += f"{best.precision:.3f} and recall {best.recall:.3f}."
    chart = _f1_chart("f1-all", "all classes", thresholds.overall_f1, (best.score, best.f1))
    panels = []
    for k, label in done.classes():
        own = thresholds.best[k]
        caption = f": F1 {own.f1:.3f} at {own.score:.3f}" if own else ": none was found"
        drawn = _f1_chart(f"f1-{k}", label, thresholds.f1[k], (own.score, own.f1) if own else None)
        panels.append(element("figure", drawn, element("figcaption", name(label), caption)))
    return section(title, element("p", text), chart, _folded(_side_by_side(panels), "F1 curve of each class"))


def _f1_chart(key: str, label: str, f1: Float64[np.ndarray, "T"], best: tuple[float, float] | None) -> Element:
    described = "F1 at thresholds 0, 0.1, ... 1: " + ", ".join(f"{value:.2f}" for value in f1[::10])
    axes = ("score threshold", "F1")
    return share_chart(key, f"F1 against threshold, {label}", described, axes, [(GRID, f1)], [best] if best else [])


def error_kinds(done: Evaluated) -> Element:
    errors = done.analysis.errors
    text = (
        "Each wrong detection, at any score, is of one kind; so is each missed object. What a kind costs is the mAP "
        "gained when it alone is fixed (as TIDE defines it, arXiv 2008.08115); the costs do not add up to 1 - mAP."
    )
    columns = [Column("kind"), Column("how many", "d"), Column("costs mAP", ".4f", bar=True), Column("what")]
    total = errors.count[:, 1:].sum(axis=1).tolist()
    rows: list[list[Cell]] = [
        [kind, count, cost, KINDS[kind]]
        for kind, count, cost in zip(errors.kinds, total, errors.map_cost.tolist(), strict=True)
    ]

    def by_class(caption: str, form: str, numbers: Real[np.ndarray, "E K"]) -> Element:
        columns = [Column("class"), *(Column(kind, form) for kind in errors.kinds)]
        rows = [[label, *numbers[:, k].tolist()] for k, label in enumerate(done.config.classes, start=1)]
        return data_table(caption, columns, rows)

    costs = by_class("The AP that each kind costs a class", ".3f", errors.ap_cost)
    costs = _folded(costs, "AP that each kind costs a class", len(done.config.classes) > MANY)
    counts = by_class("How many errors there are of each kind and class", "d", errors.count)
    more = _folded(counts, "number of errors of each kind and class")
    return section("Kinds of error", element("p", text), data_table("All classes", columns, rows), costs, more)


def reliability(done: Evaluated) -> Element:
    bins, title = done.analysis.reliability, "Reliability of the scores"
    error = bins.calibration_error
    if error is None:
        return section(title, element("p", "There are no detections."))
    text = (
        "Is a score a probability? Then four of five detections that score 0.8 are right, and the curve is the dashed "
        f"diagonal; below it the detector is too sure of itself. Expected calibration error: {error:.3f}."
    )
    columns = [
        Column("score"),
        Column("detections", "d"),
        Column("mean score", ".3f"),
        Column("share right", ".3f", bar=True),
    ]
    width = 1 / len(bins.count)
    rows: list[list[Cell]] = [
        [f"{i * width:.1f} to {(i + 1) * width:.1f}", int(count), float(score), float(share)]
        for i, (count, score, share) in enumerate(zip(bins.count, bins.mean_score, bins.share_right, strict=True))
    ]
    seen = bins.count > 0
    points = list(zip(bins.mean_score[seen].tolist(), bins.share_right[seen].tolist(), strict=True))
    curves = [(bins.mean_score[seen], bins.share_right[seen]), (np.array([0, 1]), np.array([0, 1]))]
    described = "The numbers are in the table that follows"
    chart = share_chart(
        "reliability-chart", "Share of right detections by score", described, ("score", "share right"), curves, points
    )
    return section(title, element("p", text), chart, data_table("Detections by their score", columns, rows))


def proposal_recall(done: Evaluated) -> Element:
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
        [label, int(done.result.objects[k]), *by_class[k].tolist()] for k, label in done.classes()
    ]
    by_name = data_table("By class", columns, classes)
    return section(
        title,
        element("p", text),
        data_table("By size", columns, rows),
        _folded(by_name, "recall of each class", len(classes) > MANY),
    )


def sizes(done: Evaluated) -> Element:
    text = "Small is below 32 x 32 pixels, large from 96 x 96. Found: at any score; then at the classes' thresholds."
    columns = [Column("size"), Column("objects", "d"), Column("found", "d"), Column("recall", ".3f", bar=True)]
    columns += [Column("recall at thresholds", ".3f", bar=True), Column("detections at thresholds", "d")]
    columns += [Column("right", "d"), Column("precision", ".3f", bar=True)]
    rows: list[list[Cell]] = [
        [size, s.objects, s.found, s.recall, s.recall_above, s.detections, s.right, s.precision]
        for size, s in done.analysis.sizes.items()
    ]
    return section("By size", element("p", text), data_table("Objects and detections by their size", columns, rows))


ALL = (
    scores,
    precision_and_recall,
    confusion,
    f1_and_threshold,
    error_kinds,
    reliability,
    proposal_recall,
    sizes,
)
