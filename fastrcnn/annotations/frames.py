"""The frame that boxes are in where EXIF turns a picture: as it stands upright, or as its pixels are stored.

Most labelling tools show pictures upright; some ignore EXIF. A file that states the picture's size as it is stored does
not tell which: the tool may have read that size and shown the picture upright. data.boxes_drawn_on decides.
"""

from pathlib import Path

import numpy as np

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Box
from fastrcnn.config_data import DataConfig
from fastrcnn.images import image_orientation

UNKNOWN = "boxes upright or stored"


def turn_to_apply(
    picture: Path, size: tuple[int, int], stated: tuple[object, object], data: DataConfig, file: Path, where: str
) -> tuple[int, list[Problem]]:
    """The EXIF orientation 1..8 that the boxes of a picture must be turned by; 1: none. And what is not known.

    `size` is the picture's (width, height) upright, `stated` what the file of its objects says, with None for what it
    does not. Raises FastRCNNError for a picture that cannot be read.
    """
    lies = stated == size[::-1] and size[0] != size[1]
    if data.boxes_drawn_on == "upright" or (data.boxes_drawn_on is None and not lies):
        return 1, []
    turn = image_orientation(picture)
    if data.boxes_drawn_on == "stored":
        says_upright = turn >= 5 and stated == size and size[0] != size[1]
        return (1 if says_upright else turn), []
    if turn < 5:
        return 1, []
    text = (
        f"EXIF turns the picture (orientation {turn}) to {size[0]} x {size[1]}, its size is stated as it is stored: "
        "whether its boxes were drawn on it upright or as stored is not known; look at tools/check_data.py --pictures, "
        "then set data.boxes_drawn_on: upright or stored"
    )
    return 1, [Problem(UNKNOWN, file, where, text)]


def turn_box(box: Box, turn: int, size: tuple[float, float]) -> Box:
    """A half-open box [4] of the stored picture in its upright frame of `size` (width, height), for EXIF `turn`."""
    x1, y1, x2, y2 = box if turn < 5 else box[[1, 0, 3, 2]]
    if turn in (2, 3, 6, 7):
        x1, x2 = size[0] - x2, size[0] - x1
    if turn in (3, 4, 7, 8):
        y1, y2 = size[1] - y2, size[1] - y1
    return np.array([x1, y1, x2, y2], np.float64)
