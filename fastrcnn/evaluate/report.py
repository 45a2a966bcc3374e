"""What an evaluation leaves behind: detections on disk, tables, precision-recall curves, the kit's result files.

Detections of one image are anything with `boxes` [D, 4], `classes` [D] and `scores` [D]; those of a data set are a
mapping from the id of every evaluated image, also where nothing was found.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastrcnn.annotations.records import ImageRecord, class_index
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.voc import Detections, GroundTruth, VOCResult
from fastrcnn.files import atomic_write
from fastrcnn.proposals.recall import SIZES, Recall

log = logging.getLogger(__name__)

FORMAT = {"content": "fastrcnn detections", "boxes": "xyxy", "origin": 0, "end": "exclusive", "unit": "image pixels"}


class SupportsDetections(Protocol):
    """Detections of one image, such as ImageDetections or fastrcnn.detect.detector.Detections."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image."""

    boxes: NDArray[np.float32]  # [D, 4], image pixels, half open
    classes: NDArray[np.int64]  # [D], in 1..K-1
    scores: NDArray[np.float32]  # [D]


def write_detections(path: str | Path, classes: Sequence[str], detections: Mapping[str, SupportsDetections]) -> None:
    """Save detections as JSON: a header with the meaning of the boxes, the K - 1 classes, then one line per image.

    Scores and boxes keep every digit, so that reading gives the same float32 numbers. Raises FastRCNNError for
    detections that could not be read back, and as atomic_write does.
    """
    lines = []
    for image_id, found in detections.items():
        check_image(f"{path}: not written: image {image_id}", found, len(classes))
        columns = {
            "classes": [classes[k - 1] for k in found.classes],
            "scores": found.scores.tolist(),
            "boxes": found.boxes.tolist(),
        }
        lines.append(f"{json.dumps(image_id)}: {json.dumps(columns)}")
    header = f'"format": {json.dumps(FORMAT)},\n"classes": {json.dumps(list(classes))},\n"images": '
    with atomic_write(path) as file:
        file.write(("{\n" + header + "{\n" + ",\n".join(lines) + "\n}\n}\n").encode())


def read_detections(path: str | Path) -> tuple[list[str], dict[str, ImageDetections]]:
    """The classes and the detections by image id of a file that write_detections wrote.

    Raises FastRCNNError, naming file and image, for anything else.
    """
    path = Path(path)
    try:
        tree = json.loads(path.read_bytes())
    except OSError as e:
        raise FastRCNNError(
            f"{path}: cannot be read: {e.strerror}; give the detections.json of an evaluation"
        ) from None
    except (ValueError, RecursionError) as e:
        raise FastRCNNError(f"{path}: is not whole JSON ({e}); run the evaluation again") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise FastRCNNError(f"{path}: has no header `format` of {json.dumps(FORMAT)}; write it with write_detections")
    classes, images = tree.get("classes"), tree.get("images")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or not classes:
        raise FastRCNNError(f"{path}: `classes` must be the list of class names; run the evaluation again")
    if len(class_index(classes)) < len(classes):
        raise FastRCNNError(f"{path}: a name in `classes` stands twice; class names are compared without case")
    if not isinstance(images, dict):
        raise FastRCNNError(f"{path}: `images` must hold one entry per image id; run the evaluation again")
    number = {name: k for k, name in enumerate(classes, start=1)}
    return classes, {
        image_id: _read_image(f"{path}: image {image_id}", entry, number) for image_id, entry in images.items()
    }


def _read_image(where: str, entry: Any, number: dict[str, int]) -> ImageDetections:
    """One image's detections from its JSON; `where` starts the error."""
    try:
        names, scores, boxes = entry["classes"], np.array(entry["scores"]), np.array(entry["boxes"])
        classes = np.array([number[name] for name in names], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as e:
        raise FastRCNNError(
            f"{where}: must have `classes` (names from the header), `scores` and `boxes`, lists of one length "
            f"({type(e).__name__}: {e}); run the evaluation again"
        ) from None
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    if scores.dtype.kind not in "if" or boxes.dtype.kind not in "if":
        raise FastRCNNError(f"{where}: `scores` and `boxes` must hold numbers only")
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which the check refuses
        found = ImageDetections(boxes.astype(np.float32), classes, scores.astype(np.float32))
    check_image(where, found, len(number))
    return found


def check_image(where: str, found: SupportsDetections, names: int) -> None:
    """Raise FastRCNNError, starting with `where`, for rows that do not fit each other or `names` classes."""
    n = np.size(found.scores)
    if found.scores.shape != (n,) or found.classes.shape != (n,) or found.boxes.shape != (n, 4):
        shapes = f"{found.classes.shape}, {found.scores.shape}, {found.boxes.shape}"
        raise FastRCNNError(f"{where}: classes, scores and boxes of shapes {shapes} must be [D], [D] and [D, 4]")
    finite = np.isfinite(found.scores) & np.isfinite(found.boxes).all(axis=1)
    faults = {
        "a score or box that is not finite": ~finite,
        f"a class outside 1..{names}": (found.classes < 1) | (found.classes > names),
        "a box that ends before it starts": (found.boxes[:, 2:] < found.boxes[:, :2]).any(axis=1),
    }
    for fault, rows in faults.items():
        if rows.any():
            raise FastRCNNError(f"{where}: detection {np.argmax(rows) + 1} has {fault}; run the evaluation again")


def join(
    detections: Mapping[str, SupportsDetections],
    detection_classes: Sequence[str],
    records: Sequence[ImageRecord],
    classes: Sequence[str],
) -> tuple[Detections, GroundTruth]:
    """The arrays that the scoring routines take, from detections by image id and annotated images.

    detection_classes are the names behind the numbers in `detections`, `classes` those in `records`; the arrays have
    the numbers of `classes`. Images are numbered by sorted id, so that ties in score do not depend on the order of
    `records`. Logs a warning for classes that have no objects to find. Raises FastRCNNError if the two do not have the
    same classes (without regard to case) and the same images.
    """
    number = class_index(list(classes))
    own = list(class_index(list(detection_classes)))
    if set(own) != set(number):
        raise FastRCNNError(
            f"the detections have the classes {', '.join(detection_classes)}, the annotations {', '.join(classes)}; "
            "score them with the class list they were made with"
        )
    by_id = {record.id: record for record in records}
    if len(by_id) < len(records):
        raise FastRCNNError("an image id stands twice among the annotated images; give each image once")
    if by_id.keys() != detections.keys():
        missing, extra = sorted(by_id.keys() - detections.keys()), sorted(detections.keys() - by_id.keys())
        raise FastRCNNError(
            f"detections and annotations are not of the same images: {len(missing)} without detections "
            f"({_few(missing)}), {len(extra)} without annotations ({_few(extra)}); score them on the data set they "
            "were made on"
        )
    ids = sorted(by_id)
    found = [detections[image_id] for image_id in ids]
    for image_id, image in zip(ids, found, strict=True):
        check_image(f"detections of image {image_id}", image, len(own))
    ordered = [by_id[image_id] for image_id in ids]
    renumber = np.array([0] + [number[name] for name in own])
    ground_truth = GroundTruth(
        np.repeat(np.arange(len(ids)), [len(record.boxes) for record in ordered]),
        _concatenate([record.classes for record in ordered], np.int64),
        _concatenate([record.boxes for record in ordered], np.float32, 4),
        _concatenate([record.difficult for record in ordered], np.bool_),
    )
    present = set(ground_truth.classes[~ground_truth.difficult].tolist())
    absent = [name for k, name in enumerate(classes, start=1) if k not in present]
    if absent:
        log.warning(
            "no objects to find of %s: AP is NaN, and the mean leaves it out; check the class list and the split",
            ", ".join(absent),
        )
    return (
        Detections(
            np.repeat(np.arange(len(ids)), [len(image.scores) for image in found]),
            renumber[_concatenate([image.classes for image in found], np.int64)],
            _concatenate([image.scores for image in found], np.float32),
            _concatenate([image.boxes for image in found], np.float32, 4),
        ),
        ground_truth,
    )


def _concatenate(parts: list[NDArray], dtype: type, *row: int) -> NDArray:
    return np.concatenate([np.empty((0, *row), dtype), *parts])


def _few(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "") if ids else "none"


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


def recall_table(recall: Recall, classes: Sequence[str]) -> str:
    """One line per class and object size, then all objects: their number and the recall at each threshold."""
    by_class, by_size = recall.by_class(len(classes) + 1), recall.by_size()
    rows = [(name, int((recall.classes == k).sum()), by_class[k]) for k, name in enumerate(classes, start=1)]
    rows += [(name, int(recall.of_size(name).sum()), by_size[name]) for name in SIZES]
    rows.append(("all", len(recall.classes), recall.overall()))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'':{width}}  objects" + "".join(f"  IoU {threshold:.2f}" for threshold in recall.thresholds)]
    for name, objects, values in rows:
        lines.append(f"{name:{width}}  {objects:7d}" + "".join(f"  {value:8.3f}" for value in values))
    lines.append(f"small: below 32 x 32 pixels, large: from 96 x 96; {recall.difficult} difficult objects left out")
    return "\n".join(lines)


def plot_precision_recall(result: VOCResult, classes: Sequence[str], path: str | Path) -> None:
    """Write a PNG with the precision-recall curve of each class. Raises FastRCNNError as atomic_write does."""
    columns = math.ceil(math.sqrt(len(classes)))
    rows = math.ceil(len(classes) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.5 * rows), dpi=96, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for k, (name, axis) in enumerate(zip(classes, axes, strict=False), start=1):
        recall, precision = result.recall[k], result.precision[k]
        # From recall 0 on: where one right detection finds the only object, this is a line and not an unseen point.
        axis.plot(np.append(0 * recall[:1], recall), np.append(precision[:1], precision), linewidth=1)
        ap = "no objects" if np.isnan(result.ap[k]) else f"AP {result.ap[k]:.3f}"
        axis.set_title(f"{name}, {ap}".replace("$", r"\$"), fontsize=8)  # $ would start mathematics
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(classes) :]:
        axis.remove()
    axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02))
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    with atomic_write(path) as file:
        canvas.print_png(file)


def write_voc_files(
    folder: str | Path, split: str, classes: Sequence[str], detections: Mapping[str, SupportsDetections]
) -> list[Path]:
    """Write comp4_det_<split>_<class>.txt for the development kit: image id, score, 1-based inclusive box.

    Numbers have nine significant digits, which tell any two float32 numbers apart: the three decimals of the original
    (lib/datasets/pascal_voc.py) make ties of different scores, and another AP. Returns the K - 1 files. Raises
    FastRCNNError for a class name or split that cannot be part of a file name, and as atomic_write does.
    """
    for name in (split, *classes):
        if "/" in name or "\0" in name:
            raise FastRCNNError(f"{name!r} cannot be part of a file name under {folder}; rename the class or split")
    spaced = [image_id for image_id in detections if len(image_id.split()) != 1]
    if spaced:
        log.warning("image ids with spaces (%s): the development kit cannot read their comp4_det files", _few(spaced))
    lines: list[list[str]] = [[] for _ in classes]
    for image_id, found in detections.items():
        check_image(f"detections of image {image_id}", found, len(classes))
        boxes = found.boxes.astype(np.float64) + (1, 1, 0, 0)
        for k, score, box in zip(found.classes.tolist(), found.scores.tolist(), boxes.tolist(), strict=True):
            lines[k - 1].append(f"{image_id} {score:.9g} " + " ".join(f"{value:.9g}" for value in box) + "\n")
    paths = [Path(folder) / f"comp4_det_{split}_{name}.txt" for name in classes]
    for path, text in zip(paths, lines, strict=True):
        with atomic_write(path) as file:
            file.write("".join(text).encode())
    return paths
