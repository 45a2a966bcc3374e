"""What a data set lists, before any of its files is opened, and choosing a part of it.

{part: train, of: [0.8, 0.2], seed: 0} decides for each picture on its own, by a hash of what its file holds: pictures
that are added or renamed move no other one, and equal pictures are in the same part. The shares are met on average.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config_data import DataConfig, DataSetConfig, SplitConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import file_digest

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


def choose(sources: list[Source], dataset: DataSetConfig, data: DataConfig) -> list[Source]:
    """Those of the part that `split` asks for, if it asks for a share; of these the first data.limit.

    Raises FastRCNNError when the part is empty.
    """
    split = dataset.split
    if isinstance(split, SplitConfig) and sources:
        every = len(sources)
        sources = [source for source in sources if part_of(source.path, split) == split.part]
        if not sources:
            raise FastRCNNError(
                f"{dataset.label}: none of its {every} images is in this part; choose larger shares or another seed"
            )
    return sources[: data.limit]


def part_of(path: Path, split: SplitConfig) -> str:
    """The part a picture is in. One that cannot be read is put in a part by its name."""
    try:
        content = file_digest(path)
    except OSError:
        content = path.name.encode(errors="surrogateescape")
    digest = hashlib.blake2b(content, digest_size=8, key=str(split.seed).encode()).digest()
    position = int.from_bytes(digest, "big") / 2**64
    ends = zip(split.parts, accumulate(split.parts.values()), strict=True)
    return next((part for part, end in ends if position < end), list(split.parts)[-1])
