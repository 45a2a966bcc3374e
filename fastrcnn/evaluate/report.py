"""What an evaluation leaves behind: a table, precision-recall curves, the development kit's result files."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from fastrcnn.detections import DetectedImage
from fastrcnn.drawing import OWN_FONT, font_file, shortened
from fastrcnn.evaluate.rows import few
from fastrcnn.evaluate.voc import VOCResult
from fastrcnn.files import atomic_write, safe_name

log = logging.getLogger(__name__)

MANY = 36  # classes: the panels of more are smaller
TICKS = (0, 0.25, 0.5, 0.75, 1)
LONGEST = 22  # characters of a class name above its panel


def ap_table(result: VOCResult, classes: Sequence[str]) -> str:
    """One line per class (objects without difficult ones, detections, AP), then the mean and what it leaves out."""
    width = max(len(name) for name in ("mean of 99", *classes))
    lines = [f"{'class':{width}}  objects  detections      AP"]
    for k, name in enumerate(classes, start=1):
        ap = "no objects" if np.isnan(result.ap[k]) else f"{result.ap[k]:.4f}"
        lines.append(f"{name:{width}}  {result.objects[k]:7d}  {result.detections[k]:10d}  {ap}")
    mean = f"mean of {len(classes) - len(result.absent)}"
    lines.append(f"{mean:{width}}  {result.objects.sum():7d}  {result.detections.sum():10d}  {result.mean_ap:.4f}")
    rule = "11 recall points" if result.metric == "11point" else "area under the curve"
    left_out = ", ".join(classes[k - 1] for k in result.absent)
    lines.append(
        f"AP: {rule}; " + (f"left out of the mean, having no objects: {left_out}" if left_out else "all classes")
    )
    return "\n".join(lines)


def plot_precision_recall(result: VOCResult, classes: Sequence[str], path: str | Path) -> None:
    """Write a PNG with the precision-recall curve of each class that has objects.

    A name that no font on this system has is shown as the number of its class. Raises FastRCNNError as atomic_write
    does.
    """
    present = (np.flatnonzero(result.objects[1:]) + 1).tolist()
    side, size = (2.5, 8) if len(present) <= MANY else (1.6, 6)  # inches and points
    columns = max(1, math.ceil(math.sqrt(len(present))))
    rows = max(1, math.ceil(len(present) / columns))
    figure = Figure(figsize=(side * columns, side * rows), dpi=96)
    if len(present) <= MANY:
        figure.set_layout_engine("constrained")
    else:  # that engine takes a minute for 365 panels
        edge = 0.3 / side
        figure.subplots_adjust(edge / columns, edge / rows, 1 - 0.1 / columns, 1 - edge / rows, 0.12, 0.3)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    unnamed = False
    for k, axis in zip(present, axes, strict=False):
        recall, precision = result.recall[k], result.precision[k]
        # From recall 0 on: where one right detection finds the only object, this is a line and not an unseen point.
        axis.plot(np.append(0 * recall[:1], recall), np.append(precision[:1], precision), linewidth=1)
        name = shortened(classes[k - 1], LONGEST)
        file = font_file(frozenset(name))
        unnamed |= file is None
        title = f"{name if file else f'class {k}'}, AP {result.ap[k]:.3f}"
        axis.set_title(title, fontproperties=FontProperties(fname=file or OWN_FONT, size=size), parse_math=False)
        axis.tick_params(labelsize=size - 1)
        axis.grid(alpha=0.3)
    for axis in axes[len(present) :]:
        axis.remove()
    if present:
        axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=TICKS, yticks=TICKS)  # of all, which share them
    else:
        figure.text(0.5, 0.5, "no class has objects", ha="center", fontsize=9)
    figure.supxlabel("recall" + "; classes with a number: no font here has their names" * unnamed, fontsize=9)
    figure.supylabel("precision", fontsize=9)
    with atomic_write(path) as picture:
        figure.savefig(picture, format="png")


def write_voc_files(
    folder: str | Path, split: str, classes: Sequence[str], images: Sequence[DetectedImage]
) -> list[Path]:
    """Write comp4_det_<split>_<class>.txt for the development kit: image id, score, 1-based inclusive box.

    Numbers have nine significant digits, which tell any two float32 numbers apart: the three decimals of the original
    (lib/datasets/pascal_voc.py) make ties of different scores, and another AP. Returns the K - 1 files; the log says
    which have another name, as theirs cannot be a file's. Raises FastRCNNError as atomic_write does.
    """
    spaced = [image.id for image in images if len(image.id.split()) != 1]
    if spaced:
        log.warning("image ids with spaces (%s): the development kit cannot read their comp4_det files", few(spaced))
    lines: list[list[str]] = [[] for _ in classes]
    for image in images:
        found = image.found.in_classes(classes)
        boxes = found.boxes.astype(np.float64) + (1, 1, 0, 0)
        for k, score, box in zip(found.classes.tolist(), found.scores.tolist(), boxes.tolist(), strict=True):
            lines[k - 1].append(f"{image.id} {score:.9g} " + " ".join(f"{value:.9g}" for value in box) + "\n")
    paths = []
    for name, text in zip(classes, lines, strict=True):
        plain = f"comp4_det_{split}_{name}"
        paths.append(Path(folder) / f"{safe_name(plain)}.txt")
        if safe_name(plain) != plain:
            log.info("%s: holds the detections of %r, which cannot be part of a file name", paths[-1], name)
        with atomic_write(paths[-1]) as file:
            file.write("".join(text).encode(errors="surrogateescape"))  # an id of bytes that are not UTF-8
    return paths
