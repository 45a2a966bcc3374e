"""What check found, as pictures for the eye: labels on their images, batches as the network sees them, histograms."""

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastrcnn import boxes as box_ops
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.read import read_data_set
from fastrcnn.annotations.records import ImageRecord, class_index
from fastrcnn.config import Config
from fastrcnn.config_data import PARTS
from fastrcnn.data.check_images import TURNED
from fastrcnn.data.checks import CheckedSet, Report, readable
from fastrcnn.data.image_set import ImageSet
from fastrcnn.data.loader import Batch, BatchDataset, batches
from fastrcnn.drawing import class_colour, contact_sheet, draw_boxes, write_image
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write
from fastrcnn.images import read_image
from fastrcnn.proposals.proposals import join

LABELLED = 24  # images of the sheet of labels
TURNED_SHOWN = 12  # pictures, each twice
BATCHES = 4
SEEN_SIDE = 720  # pixels of a cell of the sheet of batches
TARGET, FOREGROUND, BACKGROUND = (255, 255, 255), (40, 220, 60), (255, 140, 0)
MOST_CLASSES = 40  # bars of a histogram
COLOURS = dict(zip(PARTS, ("tab:blue", "tab:green", "tab:orange"), strict=True))


def write_sheets(report: Report, config: Config, folder: Path) -> list[Path]:
    """Write labels.png, turned.png, batches.png and histograms.png, as far as the data allow; the files written.

    Raises FastRCNNError for an image that cannot be read any more, and as atomic_write does.
    """
    written = []
    cells = _labelled(report)
    for name, shown in (("labels.png", cells), ("turned.png", _both_frames(report, config))):
        if shown:
            written.append(folder / name)
            write_image(written[-1], label_sheet(shown, report.classes))
    images = _usable(report, config)
    if images is not None:
        written.append(folder / "batches.png")
        write_image(written[-1], batch_sheet(images, config))
    if cells:
        written.append(folder / "histograms.png")
        _write_histograms(report, written[-1])
    return written


# ---- labels


def label_sheet(cells: Sequence[tuple[ImageRecord, str]], classes: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Images with their objects drawn on them, and a title below each, as one picture."""
    drawn = []
    for record, _ in cells:
        order = np.argsort(box_ops.area(torch.from_numpy(record.boxes)).numpy(), kind="stable")  # small ones on top
        names = [classes[number - 1] for number in record.classes[order]]
        texts = [name + " (difficult)" * int(flag) for name, flag in zip(names, record.difficult[order], strict=True)]
        drawn.append(draw_boxes(read_image(record.path), record.boxes[order], texts, list(map(class_colour, names))))
    return contact_sheet(drawn, columns=4, titles=[title for _, title in cells])


def _labelled(report: Report) -> list[tuple[ImageRecord, str]]:
    """The images to look at, and why: those with findings, the worst first, then others at random."""
    by_file: dict[Path, list[Problem]] = {}
    for problem in report.findings:
        by_file.setdefault(problem.file, []).append(problem)
    records = [record for part in PARTS for record in readable(report, part)]
    random.Random(0).shuffle(records)
    found = {id(record): _of_record(record, by_file) for record in records}
    worst = sorted(
        records, key=lambda record: [-sum(p.outcome == "error" for p in found[id(record)]), -len(found[id(record)])]
    )
    return [(record, _title(record, found[id(record)])) for record in worst[:LABELLED]]


def _of_record(record: ImageRecord, by_file: dict[Path, list[Problem]]) -> list[Problem]:
    """Findings on the image's own files; a file of many images names each in the object."""
    problems = list(by_file.get(record.path, ()))
    for problem in by_file.get(record.annotation or record.path, () if record.annotation else ()):
        named = f"image {record.id}" in str(problem.object) or f"image {record.path.name}" in str(problem.object)
        if record.annotation and (record.annotation.stem == record.path.stem or named):
            problems.append(problem)
    return problems


def _title(record: ImageRecord, problems: Sequence[Problem]) -> str:
    kinds = Counter(p.kind for p in sorted(problems, key=lambda p: p.outcome != "error"))
    return f"{record.id}: {', '.join(kinds)}" if kinds else record.id


def _both_frames(report: Report, config: Config) -> list[tuple[ImageRecord, str]]:
    """Pictures that EXIF turns, each with its boxes as drawn upright, and as drawn on the stored picture."""
    turned = {p.file for p in report.findings if p.kind == TURNED}
    cells: dict[Path, list[tuple[ImageRecord, str]]] = {}
    for frame in ("upright", "stored") if turned else ():
        data = config.data.model_copy(update={"boxes_drawn_on": frame, "on_bad_box": "clip"})
        for dataset in (dataset for part in PARTS for dataset in getattr(data, part)):
            with contextlib.suppress(FastRCNNError):  # a set that cannot be read, as the report says
                for record, _ in read_data_set(dataset, data, class_index(config.classes)):
                    if record is not None and record.path in turned and len(record.boxes):
                        cell = record, f"{record.id}: if boxes_drawn_on: {frame}"
                        cells.setdefault(record.path, []).append(cell)
    return [cell for both in list(cells.values())[:TURNED_SHOWN] for cell in both[:1] + both[-1:]]


# ---- batches


def _usable(report: Report, config: Config) -> ImageSet | None:
    """The images that can be trained on."""
    proposals = join([s.proposals for s in report.sets if s.part == "train" and s.proposals is not None])
    records = [record for record in readable(report, "train") if record.id in proposals]
    try:
        return ImageSet(records, proposals).for_training(config.data)
    except FastRCNNError:
        return None  # no objects at all


def batch_sheet(images: ImageSet, config: Config) -> UInt8[np.ndarray, "H W 3"]:
    """The first batches as the network sees them: scaled and flipped, with RoIs, and the targets of the foreground."""
    pixels = BatchDataset(images, config, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    drawn, titles = [], []
    for batch in batches(pixels, 0, BATCHES, workers=0, pin_memory=False):
        for image, title in _as_seen(batch, config.classes):
            drawn.append(image)
            titles.append(title)
    return contact_sheet(drawn, columns=2, titles=titles, cell_side=SEEN_SIDE)


def _as_seen(batch: Batch, classes: Sequence[str]) -> list[tuple[UInt8[np.ndarray, "_ _ 3"], str]]:
    seen = []
    end = 0
    for image_id, image, scale, rois in zip(batch.ids, batch.images, batch.scales, batch.rois, strict=True):
        start, end = end, end + len(rois)
        labels = batch.labels[start:end]
        foreground = labels > 0
        decoded = box_ops.decode(rois[foreground], batch.bbox_targets[start:end][foreground]).squeeze(1)
        objects = {
            tuple(box): classes[number - 1]
            for box, number in zip(decoded.round(decimals=1).tolist(), labels[foreground].tolist(), strict=True)
        }
        names = list(objects.values())
        targets = np.array(list(objects), np.float64).reshape(-1, 4)
        boxes = np.concatenate((targets, rois[foreground].numpy(), rois[~foreground].numpy())) * scale
        green, orange = int(foreground.sum()), int((~foreground).sum())
        colours = [TARGET] * len(names) + [FOREGROUND] * green + [BACKGROUND] * orange
        pixels = image.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
        drawn = draw_boxes(pixels, boxes, [*names, *[""] * len(rois)], colours)
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        counts = f"{green} foreground (green), {orange} background (orange)"
        seen.append((drawn, f"{batch.iteration}: {image_id}, {size}, {counts}, targets (white)"))
    return seen


# ---- histograms


def _write_histograms(report: Report, path: Path) -> None:
    """Classes, box sizes, aspect ratios, and recall by size, of each part of the data."""
    figure = Figure(figsize=(16, 11), layout="constrained")
    (classes, sizes), (ratios, recall) = figure.subplots(2, 2)
    for axes in (classes, sizes, ratios, recall):
        axes.tick_params(labelsize=13)
        axes.grid(alpha=0.3)
    _draw_classes(classes, report)
    sides = {part: _boxes(report, part) for part in PARTS}
    side = np.geomspace(1, 4096, 49)
    ratio = np.geomspace(1 / 16, 16, 49)
    for part, boxes in sides.items():
        if len(boxes):
            width, height = (boxes[:, 2:] - boxes[:, :2]).T
            look = {"color": COLOURS[part], "alpha": 0.6, "label": f"{part}: {len(boxes)}"}
            sizes.hist(np.sqrt(width * height).clip(1, 4096), side, **look)
            ratios.hist((width / height).clip(1 / 16, 16), ratio, **look)
    _style(sizes, "box size: side of a square of its area, image pixels", "objects")
    _style(ratios, "aspect ratio: width / height", "objects")
    _draw_recall(recall, report.sets)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _style(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=17)
    axes.set_ylabel(label, fontsize=15)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=14)


def _draw_classes(axes: Axes, report: Report) -> None:
    counts = {
        part: Counter(k for s in report.sets if s.part == part for r in s.records for k in r.classes.tolist())
        for part in PARTS
    }
    order = sorted(range(1, len(report.classes) + 1), key=lambda k: -sum(count[k] for count in counts.values()))
    shown = order[:MOST_CLASSES]
    left = np.zeros(len(shown))
    for part, count in counts.items():
        objects = np.array([count[k] for k in shown])
        axes.barh(range(len(shown)), objects, left=left, color=COLOURS[part], alpha=0.8, label=part)
        left += objects
    axes.set_yticks(range(len(shown)), [f"{report.classes[k - 1]} {int(n)}" for k, n in zip(shown, left, strict=True)])
    axes.invert_yaxis()
    axes.legend(fontsize=14)
    more = f", the {len(shown)} largest of {len(order)}" if len(order) > len(shown) else ""
    axes.set_title(f"objects of each class{more}", fontsize=17)


def _boxes(report: Report, part: str) -> Float32[np.ndarray, "_ 4"]:
    boxes = [record.boxes for s in report.sets if s.part == part for record in s.records]
    return np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32)


def _draw_recall(axes: Axes, sets: Sequence[CheckedSet]) -> None:
    """The share of objects with a proposal of IoU 0.5, and 0.7, by size."""
    edges = 2.0 ** np.arange(0, 13)
    for part, colour in COLOURS.items():
        measured = [s.recall for s in sets if s.part == part and s.recall is not None]
        if not measured:
            continue
        best = np.concatenate([recall.best_iou for recall in measured])
        inside = np.digitize(np.sqrt(np.concatenate([recall.areas for recall in measured])), edges)
        bins = [k for k in range(1, len(edges)) if (inside == k).any()]
        for threshold, line in ((0.5, "o-"), (0.7, "s--")):
            shares = [(best[inside == k] >= threshold).mean() for k in bins]
            middle = [edges[k - 1] * 2**0.5 for k in bins]
            axes.plot(middle, shares, line, color=colour, linewidth=2, markersize=8, label=f"{part}, IoU {threshold:g}")
    axes.set(ylim=(0, 1.03))
    _style(axes, "recall of the proposals by box size" + ("" if axes.lines else ": not measured"), "recall")
