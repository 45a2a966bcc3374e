"""The proposals of a data set: one mapping from image ids to boxes, whatever file they are in.

The stored form (stored.py) stays in its file until an image is asked for; other formats (foreign.py) are converted when
read, and stay in memory.
"""

import logging
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.dense import with_dense
from fastrcnn.proposals.foreign import keys_to_ids, read_foreign
from fastrcnn.proposals.stored import StoredProposals, read_stored, reading

log = logging.getLogger(__name__)

REMEDY = "make them again from these images with tools/proposals.py"
Visit = Callable[[ImageRecord, Float32[np.ndarray, "P 4"]], object]  # an image and its proposals
Dense: TypeAlias = tuple[ProposalsConfig, dict[str, tuple[int, int]]]  # settings, and width and height by image id


class Proposals(Mapping[str, np.ndarray]):
    """The proposals of a data set by image id: float32 [P, 4], image pixels, half open, best first.

    A pickled copy of a stored file holds no boxes: it maps the file again, and refuses to when the file has changed.
    Dense boxes are computed when an image is asked for.
    """

    def __init__(
        self, path: Path, stored: StoredProposals, max_per_image: int | None = None, dense: Dense | None = None
    ) -> None:
        self.path = path
        self.stored = stored
        self._max_per_image, self._dense = max_per_image, dense
        self._index = {image_id: i for i, image_id in enumerate(stored.ids)}
        self._stamp = None if isinstance(stored.boxes, np.ndarray) else _stamp(path)

    def __getitem__(self, image_id: str) -> Float32[np.ndarray, "P 4"]:
        boxes = self.stored.rows(self._index[image_id], self._max_per_image).astype(np.float32)
        if self._dense is None:
            return boxes
        config, sizes = self._dense
        return with_dense(boxes, *sizes[image_id], image_id, config)

    def __contains__(self, image_id: object) -> bool:  # Mapping's would read the boxes
        return image_id in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored.ids)

    def __len__(self) -> int:
        return len(self.stored.ids)

    @property
    def is_stored(self) -> bool:
        """Whether the boxes stay in a file of tools/proposals.py, where alone nothing is computed or converted."""
        return self._stamp is not None

    def size(self, image_id: str) -> tuple[int, int] | None:
        """(width, height) of the image that the proposals were made from, where the file states it."""
        if self.stored.sizes is None:
            return None
        width, height = self.stored.sizes[self._index[image_id]]
        return int(width), int(height)

    def __reduce__(self) -> tuple:
        if isinstance(self.stored.boxes, np.ndarray):
            return Proposals, (self.path, self.stored, self._max_per_image, self._dense)
        return _reopen, (self.path, self._max_per_image, self._dense, self._stamp, self.stored.ids)


def join(stores: Sequence[Proposals]) -> Mapping[str, np.ndarray]:
    """The proposals of several data sets as one mapping; nothing is read before an image is asked for."""
    return ChainMap(*cast(list[dict[str, np.ndarray]], stores))  # ChainMap writes to its first map only if told to


def _reopen(
    path: Path, max_per_image: int | None, dense: Dense | None, stamp: tuple[int, int, int], ids: list[str]
) -> Proposals:
    if _stamp(path) != stamp:
        raise FastRCNNError(f"{path}: has changed since it was opened; start again")
    return Proposals(path, replace(read_stored(path), ids=ids), max_per_image, dense)


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
    paths serve where they fit one image only (keys_to_ids). With config.dense, boxes are added or replaced; with
    config.method dense, no file is read, and `path` is but a name.

    Raises FastRCNNError for a file that is damaged or does not state its box convention.
    """
    path = Path(path)
    limit = config.max_per_image if config else None
    dense = None
    if config and (config.dense or config.method == "dense"):
        dense = config, {record.id: (record.width, record.height) for record in records}
    if config and config.method == "dense":
        nothing = np.zeros(len(records) + 1, np.int64), np.zeros((0, 4), np.float32)
        return Proposals(path, StoredProposals([record.id for record in records], *nothing), None, dense)
    if path.suffix == ".safetensors":
        stored = read_stored(path)
        if config is not None:
            check_settings(path, stored.made_by, config)
            limit = config.search_cap
        stored = replace(stored, ids=keys_to_ids(stored.ids, records))
    else:
        with reading(path):
            stored = read_foreign(path, records, min_size=config.min_size if config else 1)
    return Proposals(path, stored, limit, dense)


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


# ---- whether proposals fit the images that they are used for


def open_proposals(
    path: str | Path,
    records: Sequence[ImageRecord],
    config: ProposalsConfig | None = None,
    also: Visit | None = None,
) -> Proposals:
    """The proposals of the images `records`, as read_proposals and refuse_problems have them."""
    proposals = read_proposals(path, records, config)
    refuse_problems(proposals, records, also)
    return proposals


def refuse_problems(proposals: Proposals, records: Sequence[ImageRecord], also: Visit | None = None) -> None:
    """Raises FastRCNNError, naming the images, when find_problems, which see, finds any problem."""
    problems = find_problems(proposals, records, also)
    if problems:
        for problem in problems[1:]:
            log.error("%s", problem)
        others = f" ({len(problems) - 1} more images have problems)" if len(problems) > 1 else ""
        raise FastRCNNError(f"{problems[0]}{others}")
    extra = len(proposals) - len(records)
    if extra:
        log.info("%s: holds proposals of %d images beyond the %d of the data set", proposals.path, extra, len(records))


def find_problems(proposals: Proposals, records: Sequence[ImageRecord], also: Visit | None = None) -> list[Problem]:
    """What would make training on these proposals wrong, at most one problem per image.

    `also` is called with each image and its proposals if nothing is wrong with them: reading all proposals takes long,
    so who needs them too shares this one pass. Warns through the log when the file states no image sizes, and its boxes
    stay far from the right and lower edges.
    """
    path = proposals.path
    if records and not any(record.id in proposals for record in records):
        some = ", ".join(proposals.stored.ids[:3]) or "none"
        text = (
            f"holds proposals of another set (images {some}), none of image {records[0].id}; name the file of this set"
        )
        return [Problem("proposals of another set", path, None, text)]
    found = []
    reach = []
    for record in tqdm(records, desc="proposals", unit="image", leave=False, delay=1):
        problem, boxes = _check_image(proposals, record)
        if problem is not None:
            found.append(problem)
            continue
        if proposals.stored.sizes is None and len(boxes):
            reach.append(boxes[:, 2:].max(axis=0) / (record.width, record.height))
        if also is not None:
            also(record, boxes)
    # Selective search always proposes the whole image, or nearly.
    if reach and (np.median(reach, axis=0) < 0.9).all():
        log.warning("%s: its boxes end far from the images' edges, as if made from smaller images; %s", path, REMEDY)
    return found


def _check_image(proposals: Proposals, record: ImageRecord) -> tuple[Problem | None, Float32[np.ndarray, "P 4"]]:
    """What is wrong with the proposals of one image, and these."""
    nothing = np.zeros((0, 4), np.float32)
    prefix = f"image {record.id}: "
    if record.id not in proposals:
        text = prefix + "has no proposals; make them: run tools/proposals.py again"
        return Problem("proposals missing", proposals.path, None, text), nothing
    size = proposals.size(record.id)
    if size is not None and size != (record.width, record.height):
        text = f"proposals were made from {size[0]}x{size[1]} pixels, the image has {record.width}x{record.height}"
        return Problem("proposals of another size", proposals.path, None, f"{prefix}{text}; {REMEDY}"), nothing
    boxes = proposals[record.id]
    x1, y1, x2, y2 = boxes.T
    # Comparisons with NaN are false.
    good = (x1 >= 0) & (x1 < x2) & (x2 <= record.width) & (y1 >= 0) & (y1 < y2) & (y2 <= record.height)
    if good.all():
        return None, boxes
    first = int(np.argmin(good))
    box = ", ".join(f"{v:g}" for v in boxes[first])
    what = f"is inverted or outside its image of {record.width}x{record.height} pixels"
    text = f"{prefix}proposal {first + 1} ({box}) {what}; {REMEDY}"
    return Problem("proposal outside", proposals.path, None, text), boxes
