"""The checks that an object of any format goes through: is its class in the list, is its box inside the image?"""

import difflib
import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from fastrcnn.annotations.problems import Outcome, Problem
from fastrcnn.annotations.records import Box, Found, ImageRecord, Object, Stated, make_record
from fastrcnn.config_data import DataConfig
from fastrcnn.detections import plain_name
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_orientation, image_size, read_image

TINY = 4  # image pixels: an object with a shorter side is more often a slip of the mouse than an object
ROUNDING = 1e-5  # image pixels: a box that leaves its image by no more ends on the edge
UNKNOWN = "boxes upright or stored"
OR_CHANGE = "; correct it, or set data.on_bad_box: {}"


@dataclass
class ObjectReader:
    """The objects of one image while they are read: those that are kept, and what is wrong with the image's file.

    Of each object: `begin`, `has_class`, and, if that is true, `add` or `no_box`.
    """

    file: Path
    size: tuple[int, int]  # (width, height) of the upright image
    data: DataConfig
    index: dict[str, int]  # class_index's
    problems: list[Problem] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    turn: int = 1  # the EXIF orientation that boxes are turned by
    polygons: int = 0  # objects that are kept with the box around their polygon
    where: int | str | None = None  # the object at hand: its number in its file, from 1, or what the file calls it
    name: str | None = None  # of its class, as its file spells it

    def fits(self, picture: Path, stated: tuple[object, object], where: str | None = None) -> bool:
        """Whether it is known how the boxes lie in the picture; `turn` then says how.

        Most labelling tools show pictures upright; some ignore EXIF. A file that states the size as it is stored does
        not tell which: the tool may have read that size and shown the picture upright. data.boxes_drawn_on decides.
        `stated` is the (width, height) that the file says, None for what it does not; `where` is what it calls the
        image, if it holds several. Raises FastRCNNError for a picture that cannot be read.
        """
        width, height = self.size
        drawn_on, turned = self.data.boxes_drawn_on, stated == (height, width) and width != height
        exif = image_orientation(picture) if drawn_on == "stored" or (turned and drawn_on is None) else 1
        if exif >= 5 and drawn_on is None:
            text = (
                f"EXIF turns the picture (orientation {exif}) to {width} x {height}, its size is stated as it is "
                "stored: whether its boxes were drawn on it upright or as stored is not known; look at "
                "tools/check_data.py --pictures, then set data.boxes_drawn_on: upright or stored"
            )
            self.problems.append(Problem(UNKNOWN, self.file, where or "its boxes", text))
            return False
        says_upright = exif >= 5 and stated == self.size and width != height
        self.turn = exif if drawn_on == "stored" and not says_upright else 1
        if stated not in (self.size, (None, None)) and not (turned and drawn_on):
            text = f"its size is {' x '.join(f'{side!s:.20}' for side in stated)} here, the upright image has "
            text += f"{width} x {height}; the image's is used"
            text += " (was the picture turned after it was labelled?)" * turned
            self.problems.append(Problem("size differs", self.file, where, text, "noted"))
        return True

    def begin(self, where: int | str) -> None:
        """The next object."""
        self.where, self.name = where, None

    def found(self, kind: str, text: str, outcome: Outcome = "error") -> None:
        """Something is wrong with the object at hand."""
        self.problems.append(Problem(kind, self.file, self.where, text, outcome, self.name))

    def has_class(self, name: str) -> bool:
        """Whether the object's class is in the list; else it is left out."""
        self.name = name
        if plain_name(name) in self.index:
            return True
        text = f"its class {name!r} is not in classes"
        if self.data.on_unknown_class == "ignore":
            self.found("unknown class", text, "ignored")
        else:
            near = _nearest(plain_name(name), tuple(self.index))
            text += f" (nearest: {near!r}); add it, or set data.on_unknown_class: ignore"
            self.found("unknown class", text)
        return False

    def add(self, box: Box, shown: str, difficult: bool = False, polygon: bool = False, hint: str = "") -> None:
        """Keep the object with its box as training uses it, or say why not.

        `box` is in image pixels, half open, with NaN for what is not a number; `shown` is how the file writes it.
        `hint` follows the message of a box that leaves the image.
        """
        with np.errstate(over="ignore"):
            box = put_on_edge(box, *self.size, ROUNDING).astype(np.float32)
        fault = _fault(box, self.size)
        if fault is not None:
            kind, text = fault
            text = f"its box {shown} {text}" + (hint if kind == "box outside" else "")
            fixed, outcome = _fix(box, self.size, self.data.on_bad_box)
            self.found(kind, text + OR_CHANGE.format("clip or skip") * (outcome == "error"), outcome)
            if fixed is None:
                return
            box = fixed
        elif min(box[2] - box[0], box[3] - box[1]) < TINY:
            text = f"its box {shown} has a side below {TINY} pixels; look at it: it may be a slip of the mouse"
            self.found("box tiny", text, "noted")
        self.objects.append((box, self.index[plain_name(self.name or "")], difficult))
        self.polygons += polygon

    def no_box(self, kind: str, text: str) -> None:
        """The object has no box in pixels, whatever its file has instead: nothing can be clipped."""
        error = self.data.on_bad_box == "error"
        self.found(kind, text + OR_CHANGE.format("skip") * error, "error" if error else "skipped")

    def record(self, image_id: str, picture: Path, where: str | None = None, stated: Stated | None = None) -> Found:
        """The image with its objects, and what is wrong with it."""
        if self.polygons:
            text = f"{self.polygons} objects are polygons or turned boxes: the boxes around them are taken"
            self.problems.append(Problem("polygon", self.file, where, text, "noted"))
        return make_record(image_id, picture, *self.size, self.objects, self.file, stated), self.problems


@functools.lru_cache(maxsize=1000)
def _nearest(name: str, names: tuple[str, ...]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def put_on_edge(box: Box, right: float, bottom: float, rounding: float) -> Float64[np.ndarray, "4"]:
    """The box whose sides that leave [0, right] x [0, bottom] by no more than `rounding` are put on its edge."""
    x1, y1, x2, y2 = box.tolist()
    x1, y1 = (0.0 if -rounding <= value < 0 else value for value in (x1, y1))
    x2, y2 = (edge if edge < value <= edge + rounding else value for value, edge in ((x2, right), (y2, bottom)))
    return np.array([x1, y1, x2, y2], np.float64)


def _fault(box: Box, size: tuple[int, int]) -> tuple[str, str] | None:
    """(kind, description) of what is wrong with a box."""
    x1, y1, x2, y2 = box.tolist()
    if any(map(math.isnan, (x1, y1, x2, y2))):
        return "box unreadable", "does not hold four numbers"
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


def unreadable(problem: Problem, data: DataConfig) -> Found:
    """What a reader gives for an image without a file that can be read."""
    if data.on_unreadable_image == "skip":
        return None, [replace(problem, outcome="skipped")]
    return None, [replace(problem, text=f"{problem.text}, or set data.on_unreadable_image: skip")]


def unlabelled(record: ImageRecord, text: str, data: DataConfig, usual: Literal["error", "empty"] = "empty") -> Found:
    """What a reader gives for an image without annotations; `usual` is the way of its format."""
    choice = data.on_unlabelled_image or usual
    if choice == "error":
        text += "; restore or make it, or set data.on_unlabelled_image: skip or empty"
        return None, [Problem("missing annotation", record.path, None, text)]
    if choice == "skip":
        return None, [Problem("missing annotation", record.path, None, f"{text}: left out", "skipped")]
    text += ": taken as an image without objects"
    return record, [Problem("missing annotation", record.path, None, text, "noted")]


def turn_box(box: Box, turn: int, size: tuple[float, float]) -> Box:
    """A half-open box [4] of the stored picture in its upright frame of `size` (width, height), for EXIF `turn`."""
    x1, y1, x2, y2 = box if turn < 5 else box[[1, 0, 3, 2]]
    if turn in (2, 3, 6, 7):
        x1, x2 = size[0] - x2, size[0] - x1
    if turn in (3, 4, 7, 8):
        y1, y2 = size[1] - y2, size[1] - y1
    return np.array([x1, y1, x2, y2], np.float64)
