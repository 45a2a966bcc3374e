"""What a data set lists, before any of its files is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord

Found = tuple[ImageRecord | None, list[Problem]]  # no record: a file of the image is missing or unreadable


@dataclass(frozen=True)
class Source:
    """One image of a data set, not yet read."""

    path: Path  # where its picture is, or should be
    read: Callable[[], Found]


@dataclass(frozen=True)
class Listing:
    """The images of a data set in its order, and what is wrong with the set as a whole."""

    sources: list[Source]
    problems: list[Problem]
