"""A run in TensorBoard, an extra: what metrics.jsonl holds, and pictures of each evaluation."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.detections import DetectedImage, Detections
from fastrcnn.drawing import Colour, class_colour, contact_sheet, draw_boxes
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image

log = logging.getLogger(__name__)

SHOWN, COLUMNS = 8, 4  # pictures of an evaluation
SCORE = 0.5  # of a detection that is drawn, as in tools/detect.py
OBJECT: Colour = (255, 255, 255)


def check_installed() -> None:
    """Raises FastRCNNError where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise FastRCNNError('train.tensorboard needs tensorboard; pip install "fastrcnn[tensorboard]"') from None


class Board:
    """Writes to `folder`; of None, nothing. What a resumed run will write again, TensorBoard no longer shows."""

    def __init__(self, folder: Path | None, first: int) -> None:
        """A run that starts, or resumes, after `first` iterations."""
        self.folder, self._writer = folder, None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            with self._writing():
                self._writer = SummaryWriter(str(folder), purge_step=first + 1)

    def scalars(self, record: dict[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl."""
        with self._writing():
            for name, value in record.items():
                if self._writer and value is not None and name not in ("iteration", "best_iteration"):
                    self._writer.add_scalar(name, value, record["iteration"])

    def pictures(self, done: int, records: Sequence[ImageRecord], detections: Sequence[DetectedImage]) -> None:
        """Some images with their objects in white, and what was found in them after `done` iterations."""
        if self._writer:
            found = {image.id: image.found for image in detections}
            labelled = [record for record in records if len(record.boxes) and record.id in found]
            shown = labelled[:: max(len(labelled) // SHOWN, 1)][:SHOWN]
            drawn = [_drawn(record, found[record.id]) for record in shown]
            if drawn:
                sheet = contact_sheet(drawn, COLUMNS, [record.id for record in shown])
                with self._writing():
                    self._writer.add_image("evaluation", sheet, done, dataformats="HWC")

    def flush(self) -> None:
        """To the disk: what comes before a checkpoint is not written again."""
        with self._writing():
            if self._writer:
                self._writer.flush()

    def close(self) -> None:
        with self._writing():
            if self._writer:
                self._writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk ends the board, not the run: a checkpoint that finds no room will report it and stop in order."""
        try:
            yield
        except OSError as e:
            self._writer = None
            log.warning("%s: cannot be written any more: %s; free space", self.folder, e.strerror or e)


def _drawn(record: ImageRecord, found: Detections) -> UInt8[np.ndarray, "_ _ 3"]:
    best = found.above(SCORE)
    texts = [f"{name} {score:.2f}" for name, score, _ in best]
    boxes = np.concatenate([best.boxes, record.boxes])
    colours = [*map(class_colour, best.names), *[OBJECT] * len(record.boxes)]
    names = [found.class_list[number - 1] for number in record.classes]
    return draw_boxes(read_image(record.path), boxes, [*texts, *names], colours)
