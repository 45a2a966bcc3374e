"""The checks that an object of any format goes through: is its class in the list, is its box inside the image?

`where` is the object's number in its file, from 1, or what the file calls it.
"""

import difflib
import functools
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64

from fastrcnn.annotations.problems import Outcome, Problem
from fastrcnn.annotations.records import Box, ImageRecord
from fastrcnn.config_data import DataConfig
from fastrcnn.detections import plain_name
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_size, read_image

TINY = 4  # image pixels: an object with a shorter side is more often a slip of the mouse than an object
ROUNDING = 1e-5  # image pixels: a box that leaves its image by no more ends on the edge


def check_class(
    name: str, index: dict[str, int], file: Path, where: int | str, data: DataConfig
) -> tuple[int | None, list[Problem]]:
    """The class of an object of `file`, 1..K-1, and what is wrong with its name; None: the object is left out."""
    if plain_name(name) in index:
        return index[plain_name(name)], []
    if data.on_unknown_class == "ignore":
        return None, [Problem("unknown class", file, where, f"its class {name!r} is not in classes", "ignored", name)]
    near = _nearest(plain_name(name), tuple(index))
    text = f"its class {name!r} is not in classes (nearest: {near!r}); add it, or set data.on_unknown_class: ignore"
    return None, [Problem("unknown class", file, where, text, class_name=name)]


@functools.lru_cache(maxsize=1000)
def _nearest(name: str, names: tuple[str, ...]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def check_box(
    box: Box,
    shown: str,
    size: tuple[int, int],
    file: Path,
    where: int | str,
    data: DataConfig,
    hint: str = "",
) -> tuple[Float32[np.ndarray, "4"] | None, list[Problem]]:
    """The box of an object of `file` as training uses it, and what is wrong with it; None: it is left out.

    `box` is in image pixels, half open, with NaN for what is not a number; `shown` is how the file writes it,
    `size` the image's (width, height). `hint` follows the message of a box that leaves the image.
    """
    with np.errstate(over="ignore"):
        box = put_on_edge(box, *size, ROUNDING).astype(np.float32)
    fault = _fault(box, size)
    if fault is not None:
        kind, text = fault
        text = f"its box {shown} {text}" + (hint if kind == "box outside" else "")
        fixed, outcome = _fix(box, size, data.on_bad_box)
        if outcome == "error":
            text += "; correct it, or set data.on_bad_box: clip or skip"
        return fixed, [Problem(kind, file, where, text, outcome)]
    if min(box[2] - box[0], box[3] - box[1]) < TINY:
        text = f"its box {shown} has a side below {TINY} pixels; look at it: it may be a slip of the mouse"
        return box, [Problem("box tiny", file, where, text, "noted")]
    return box, []


def no_box(kind: str, text: str, file: Path, where: int | str, data: DataConfig) -> Problem:
    """An object that has no box in pixels, whatever its file has instead: nothing can be clipped."""
    if data.on_bad_box == "error":
        return Problem(kind, file, where, f"{text}; correct it, or set data.on_bad_box: skip")
    return Problem(kind, file, where, text, "skipped")


def put_on_edge(box: Box, right: float, bottom: float, rounding: float) -> Float64[np.ndarray, "4"]:
    """The box whose sides that leave [0, right] x [0, bottom] by no more than `rounding` are put on its edge."""
    low, high = box[:2].tolist(), zip(box[2:].tolist(), (right, bottom), strict=True)
    low = [0.0 if -rounding <= value < 0 else value for value in low]
    return np.array(low + [edge if edge < value <= edge + rounding else value for value, edge in high], np.float64)


def _fault(box: Box, size: tuple[int, int]) -> tuple[str, str] | None:
    """(kind, description) of what is wrong with a box."""
    if np.isnan(box).any():
        return "box unreadable", "does not hold four numbers"
    x1, y1, x2, y2 = box.tolist()
    if x2 < x1 or y2 < y1:
        return "box inside out", "is inside out"
    if not (x2 > x1 and y2 > y1):
        return "box empty", "is empty"
    if x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1]:
        return "box outside", f"leaves the image of {size[0]} x {size[1]} pixels"
    return None


def _fix(box: Box, size: tuple[int, int], on_bad_box: str) -> tuple[Box | None, Outcome]:
    """What becomes of a bad box, and the outcome; one that clipping leaves empty or inside out is skipped."""
    if on_bad_box == "error":
        return None, "error"
    if on_bad_box == "clip":
        clipped = np.clip(box, 0, np.array(size * 2, np.float32))
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:  # not so with NaN
            return clipped, "clipped"
    return None, "skipped"


def read_size(path: Path, data: DataConfig) -> tuple[tuple[int, int] | None, list[Problem]]:
    """(width, height) of an upright image; None, and why, when its file is missing or unreadable."""
    try:
        size = image_size(path)
        if data.on_unreadable_image == "skip":
            read_image(path)  # that training never meets one that it cannot decode
        return size, []
    except FastRCNNError as e:
        kind = "unreadable image" if path.exists() else "missing image"
        return None, unreadable(Problem(kind, path, None, str(e).removeprefix(f"{path}: ")), data)[1]


def unreadable(problem: Problem, data: DataConfig) -> tuple[ImageRecord | None, list[Problem]]:
    """What a reader gives for an image without a file that can be read."""
    if data.on_unreadable_image == "skip":
        return None, [replace(problem, outcome="skipped")]
    return None, [replace(problem, text=f"{problem.text}, or set data.on_unreadable_image: skip")]


def unlabelled(
    record: ImageRecord, text: str, data: DataConfig, usual: Literal["error", "empty"] = "empty"
) -> tuple[ImageRecord | None, list[Problem]]:
    """What a reader gives for an image without annotations; `usual` is the way of its format."""
    choice = data.on_unlabelled_image or usual
    if choice == "error":
        text += "; restore or make it, or set data.on_unlabelled_image: skip or empty"
        return None, [Problem("missing annotation", record.path, None, text)]
    if choice == "skip":
        return None, [Problem("missing annotation", record.path, None, f"{text}: left out", "skipped")]
    text += ": taken as an image without objects"
    return record, [Problem("missing annotation", record.path, None, text, "noted")]
