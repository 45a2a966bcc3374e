"""The metrics of a run: one JSON line every train.log_every iterations, and one for each evaluation."""

import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write, read_bytes
from fastrcnn.train.board import Board

PLOTTED = "loss loss_cls loss_bbox map best_iteration best_map".split()  # numbers or null, where a line has them


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, each an object with `iteration`.

    A last line without an end, as a kill leaves it, is ignored if it is not whole. Raises FastRCNNError naming file and
    line for any other that is not such a record, and for a file that cannot be read.
    """
    path = Path(path)
    lines = read_bytes(path, "name the metrics file of a run").split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            record = None
        if not _is_record(record):
            raise FastRCNNError(
                f"{path}: line {number} is not a JSON object with an iteration number and losses; remove that line or "
                "fix it"
            )
        records.append(record)
    return records


def _is_record(record: object) -> bool:
    """Whether a line has an integer iteration and, where it has losses or mAP, numbers or null in their place."""
    if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
        return False
    values = [record["iteration"], *(record[key] for key in PLOTTED if record.get(key) is not None)]
    return all(isinstance(v, float) or isinstance(v, int) and abs(v) < 2**63 for v in values)


class Metrics:
    """Writes means over log_every iterations. Lines past the iteration that a run resumes from are cut."""

    def __init__(self, path: Path, first: int, log_every: int, board: Board | None = None):
        """`board` gets the same numbers. Raises FastRCNNError as read_metrics does, and when the file cannot be
        written."""
        self.path, self.log_every, self.board = path, log_every, board or Board(None, first)
        kept = [m for m in read_metrics(path) if m["iteration"] <= first] if path.exists() else []
        with atomic_write(path) as file:
            file.write("".join(json.dumps(m) + "\n" for m in kept).encode())
        self.evaluated = {m["iteration"] for m in kept if "map" in m}
        self.pending: list[dict[str, float]] = []
        self.recent: deque[dict[str, float]] = deque(maxlen=log_every)
        self.images, self.since = 0, time.perf_counter()

    def add(self, iteration: int, images: int, lr: float, values: dict[str, float]) -> None:
        """The values of one iteration (counted from 0), which used so many images at this learning rate."""
        self.pending.append(values)
        self.recent.append(values)
        self.images += images
        if (iteration + 1) % self.log_every == 0:
            means = {name: _mean([v[name] for v in self.pending]) for name in values}
            rate = round(self.images / (time.perf_counter() - self.since), 3)
            self._write({"iteration": iteration + 1, **means, "lr": lr, "images_per_second": rate})
            self.pending, self.images, self.since = [], 0, time.perf_counter()

    def add_map(self, done: int, value: float, best: tuple[int, float] | None, seconds: float) -> None:
        """The mAP (0 to 1, or NaN) after so many iterations; `best` is the iteration of the best so far, and its mAP.

        The `seconds` that the evaluation took do not count as training.
        """
        record = {"iteration": done, "map": None if math.isnan(value) else value}
        self._write(record | ({"best_iteration": best[0], "best_map": best[1]} if best else {}))
        self.since += seconds

    def line(self) -> str:
        """What the progress bar shows: means over the last log_every iterations."""

        def mean(name: str) -> float:
            return _mean([v[name] for v in self.recent]) or 0.0

        rate = self.images / max(time.perf_counter() - self.since, 1e-9)
        return (
            f"loss {mean('loss'):.3f} = cls {mean('loss_cls'):.3f} + bbox {mean('loss_bbox'):.3f}, "
            f"fg {mean('fg_accuracy'):.2f}, {rate:.2f} images/s"
        )

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as e:
            raise FastRCNNError(f"{self.path}: cannot be written: {e.strerror}; free space and --resume") from None
        self.board.scalars(record)


def _mean(values: list[float]) -> float | None:
    """The mean of what is a number; an iteration without foreground has no foreground accuracy."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None
