"""The proposals of a data set: one mapping from image ids to boxes, whatever file they are in.

The stored form (stored.py) stays in its file until an image is asked for; other formats (foreign.py) are converted when
read, and stay in memory.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.foreign import read_foreign
from fastrcnn.proposals.names import keys_to_ids
from fastrcnn.proposals.stored import StoredProposals, read_stored, reading


class Proposals(Mapping[str, np.ndarray]):
    """The proposals of a data set by image id: float32 [P, 4], image pixels, half open, best first.

    A pickled copy of a stored file holds no boxes: it maps the file
    again, and refuses to when the file has changed.
    """

    def __init__(self, path: Path, stored: StoredProposals, max_per_image: int | None = None) -> None:
        self.path = path
        self.stored = stored
        self._max_per_image = max_per_image
        self._index = {image_id: i for i, image_id in enumerate(stored.ids)}
        self._stamp = _stamp(path)

    def __getitem__(self, image_id: str) -> Float32[np.ndarray, "P 4"]:
        return self.stored.rows(self._index[image_id], self._max_per_image).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored.ids)

    def __len__(self) -> int:
        return len(self.stored.ids)

    def size(self, image_id: str) -> tuple[int, int] | None:
        """(width, height) of the image that the proposals were made from, where the file states it."""
        if self.stored.sizes is None:
            return None
        width, height = self.stored.sizes[self._index[image_id]]
        return int(width), int(height)

    def __reduce__(self) -> tuple:
        if isinstance(self.stored.boxes, np.ndarray):
            return Proposals, (self.path, self.stored, self._max_per_image)
        return _reopen, (self.path, self._max_per_image, self._stamp, self.stored.ids)


def join(stores: Sequence[Proposals]) -> Mapping[str, np.ndarray]:
    """The proposals of several data sets as one mapping; nothing is read before an image is asked for."""
    return ChainMap(*cast(list[dict[str, np.ndarray]], stores))  # ChainMap writes to its first map only if told to


def _reopen(path: Path, max_per_image: int | None, stamp: tuple[int, int, int], ids: list[str]) -> Proposals:
    if _stamp(path) != stamp:
        raise FastRCNNError(f"{path}: has changed since it was opened; start again")
    return Proposals(path, replace(read_stored(path), ids=ids), max_per_image)


def _stamp(path: Path) -> tuple[int, int, int]:
    with reading(path):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


def read_proposals(
    path: str | Path, records: Sequence[ImageRecord], config: ProposalsConfig | None = None
) -> Proposals:
    """The proposals in a .safetensors, .mat, .npz or .json file, not yet checked against the images.

    Of our own search at most config.search_cap are given per image, of other files all that config.max_per_image lets
    through: who ranked them, and whether at all, we cannot know. Other files are cleaned first: boxes that reach at
    most 1 pixel outside their image in `records` are clipped (published files round that way), boxes smaller than
    config.min_size and exact repetitions are left out. A file of tools/proposals.py is refused when it was made with
    other settings than `config`. Without `config` everything that is not empty is given. Keys that are file names or
    paths serve where they fit one image only (names.py).

    Raises FastRCNNError for a file that is damaged or does not state its box convention.
    """
    path = Path(path)
    limit = config.max_per_image if config else None
    if path.suffix == ".safetensors":
        stored = read_stored(path)
        if config is not None:
            check_settings(path, stored.made_by, config)
            limit = config.search_cap
        stored = replace(stored, ids=keys_to_ids(stored.ids, records))
    else:
        with reading(path):
            stored = read_foreign(path, records, min_size=config.min_size if config else 1)
    return Proposals(path, stored, limit)


def check_settings(path: Path, made_by: dict[str, Any], config: ProposalsConfig) -> None:
    """Raise FastRCNNError unless a file with these settings holds what `config` asks for."""
    for key in ("method", "min_size", "long_side", "max_per_image"):
        have, want = made_by.get(key), getattr(config, key)
        if key == "max_per_image":  # a file capped at the paper's 2,000 will do where nothing else is asked for
            want = want or min(config.search_cap, 2000)
        if have != want and not (key == "max_per_image" and isinstance(have, int) and have > want):
            raise FastRCNNError(
                f"{path}: was made with proposals.{key} = {have}, the config says {want}; "
                "change the config, or name another file and run tools/proposals.py"
            )
