"""Proposals of a data set: reading every format, checking them against the images, and the file they are stored in.

Stored form: one safetensors file with
    boxes    int16 [B, 4], or float32 where int16 does not do; image pixels, half open (x1, y1, x2, y2)
    offsets  int64 [I + 1]; image i has the rows offsets[i] to offsets[i + 1] - 1, best first
    sizes    int32 [I, 2]; width and height of the upright image that the boxes were made from
    digests  uint8 [I, 16]; of the image files' bytes
and metadata that hold the I image ids, the box format, and how the proposals were made. It is memory-mapped: processes
share it, and an image costs one slice. Other formats (proposal_formats.py) are converted when read, and stay in memory.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import DIGEST_SIZE, atomic_write
from fastrcnn.proposals.foreign import (
    StoredProposals,
    check_index,
    compact,
    convention,
    read_foreign,
    reading,
)

log = logging.getLogger(__name__)

METADATA_KEY = "fastrcnn_proposals"
VERSION = 1


class Proposals(Mapping[str, np.ndarray]):
    """The proposals of a data set by image id: float32 [P, 4], image pixels, half open, best first.

    Several sets are joined by collections.ChainMap. A pickled copy of a stored file holds no boxes: it maps the file
    anew, and refuses to when the file has changed.
    """

    def __init__(self, path: Path, stored: StoredProposals, max_per_image: int | None = None) -> None:
        self.path = path
        self.stored = stored
        self._max_per_image = max_per_image
        self._index = {image_id: i for i, image_id in enumerate(stored.ids)}
        self._stamp = _stamp(path)

    def __getitem__(self, image_id: str) -> np.ndarray:
        return self.stored.rows(self._index[image_id], self._max_per_image).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored.ids)

    def __len__(self) -> int:
        return len(self.stored.ids)

    def size(self, image_id: str) -> tuple[int, int] | None:
        """(width, height) of the image that the proposals were made from, when the file tells."""
        if self.stored.sizes is None:
            return None
        width, height = self.stored.sizes[self._index[image_id]]
        return int(width), int(height)

    def __reduce__(self) -> tuple:
        if isinstance(self.stored.boxes, np.ndarray):
            return Proposals, (self.path, self.stored, self._max_per_image)
        return _reopen, (self.path, self._max_per_image, self._stamp)


def _reopen(path: Path, max_per_image: int | None, stamp: tuple[int, int, int]) -> Proposals:
    if _stamp(path) != stamp:
        raise FastRCNNError(f"{path}: has changed since it was opened; start again")
    return Proposals(path, read_stored(path), max_per_image)


def _stamp(path: Path) -> tuple[int, int, int]:
    with reading(path):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


def open_proposals(
    path: str | Path, records: Sequence[ImageRecord], config: ProposalsConfig | None = None
) -> Proposals:
    """The proposals of the images `records`, read and checked.

    As read_proposals, and raises FastRCNNError, naming the images, when find_problems finds any problem.
    """
    proposals = read_proposals(path, records, config)
    problems = find_problems(proposals, records)
    if problems:
        for problem in problems[1:]:
            log.error("%s", problem)
        others = f" ({len(problems) - 1} more images have problems)" if len(problems) > 1 else ""
        raise FastRCNNError(f"{problems[0]}{others}")
    extra = len(proposals) - len(records)
    if extra:
        log.info("%s: holds proposals of %d images beyond the %d of the data set", path, extra, len(records))
    return proposals


def read_proposals(
    path: str | Path, records: Sequence[ImageRecord], config: ProposalsConfig | None = None
) -> Proposals:
    """The proposals in a .safetensors, .mat, .npz or .json file, not yet checked against the images.

    At most config.max_per_image are given per image. Formats other than our own are cleaned first: boxes that reach at
    most 1 pixel outside their image in `records` are clipped (published files round that way), boxes smaller than
    config.min_size and exact repetitions are left out. A file of tools/proposals.py is refused when it was made with
    other settings than `config`. Without `config` everything that is not empty is given.

    Raises FastRCNNError for a file that is damaged or does not state its box convention.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        stored = read_stored(path)
        if config is not None:
            check_settings(path, stored.made_by, config)
    else:
        with reading(path):
            stored = read_foreign(path, records, min_size=config.min_size if config else 1)
    return Proposals(path, stored, config.max_per_image if config else None)


def find_problems(proposals: Proposals, records: Sequence[ImageRecord]) -> list[Problem]:
    """What would make training on these proposals wrong, at most one problem per image.

    Warns through the log when the file tells no image sizes, and its boxes stay far from the right and lower edges.
    """
    path = proposals.path
    remedy = "make them again from these images with tools/proposals.py"
    if records and not any(record.id in proposals for record in records):
        some = ", ".join(proposals.stored.ids[:3]) or "none"
        text = (
            f"holds proposals of another set (images {some}), none of image {records[0].id}; name the file of this set"
        )
        return [Problem("proposals of another set", path, None, text)]
    found = []
    reach = []
    for record in records:
        prefix = f"image {record.id}: "
        if record.id not in proposals:
            text = prefix + "has no proposals; run tools/proposals.py again, or leave it out of the list"
            found.append(Problem("proposals missing", path, None, text))
            continue
        size = proposals.size(record.id)
        if size is not None and size != (record.width, record.height):
            text = f"proposals were made from {size[0]}x{size[1]} pixels, the image has {record.width}x{record.height}"
            found.append(Problem("proposals of another size", path, None, f"{prefix}{text}; {remedy}"))
            continue
        boxes = proposals[record.id]
        x1, y1, x2, y2 = boxes.T
        # Comparisons with NaN are false.
        good = (x1 >= 0) & (x1 < x2) & (x2 <= record.width) & (y1 >= 0) & (y1 < y2) & (y2 <= record.height)
        if not good.all():
            first = int(np.argmin(good))
            box = ", ".join(f"{v:g}" for v in boxes[first])
            what = f"is inverted or outside its image of {record.width}x{record.height} pixels"
            text = f"{prefix}proposal {first + 1} ({box}) {what}; {remedy}"
            found.append(Problem("proposal outside", path, None, text))
        elif len(boxes):
            reach.append(boxes[:, 2:].max(axis=0) / (record.width, record.height))
    # Selective search always proposes the whole image, or nearly.
    if proposals.stored.sizes is None and reach and (np.median(reach, axis=0) < 0.9).all():
        log.warning("%s: its boxes end far from the images' edges, as if made from smaller images; %s", path, remedy)
    return found


def check_settings(path: Path, made_by: dict[str, Any], config: ProposalsConfig) -> None:
    """Raise FastRCNNError unless a file with these settings holds what `config` asks for."""
    for key in ("method", "min_size", "long_side", "max_per_image"):
        have, want = made_by.get(key), getattr(config, key)
        if have != want and not (key == "max_per_image" and isinstance(have, int) and have > want):
            raise FastRCNNError(
                f"{path}: was made with proposals.{key} = {have}, the config says {want}; "
                "change the config, or name another file and run tools/proposals.py"
            )


# ---- the stored form


def read_stored(path: Path) -> StoredProposals:
    """Open a file of write_stored. Raises FastRCNNError when it is damaged or of another kind."""
    with reading(path), safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if METADATA_KEY not in metadata:
            raise ValueError("it is a safetensors file of something else, not of proposals")
        meta = json.loads(metadata[METADATA_KEY])
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise ValueError(f"its metadata are not those of version {VERSION}")
        ids, made_by = meta.get("ids"), meta.get("made_by")
        if convention(meta) != ("xyxy", 0, "exclusive") or not isinstance(made_by, dict):
            raise ValueError("its metadata are damaged")
        names = {"boxes", "offsets", "sizes", "digests"}
        if set(file.keys()) != names:
            raise ValueError(f"it holds {', '.join(sorted(file.keys())) or 'nothing'}, not {', '.join(sorted(names))}")
        boxes = file.get_slice("boxes")
        if boxes.get_dtype() not in ("I16", "F32"):
            raise ValueError(f"its boxes are {boxes.get_dtype()}, neither I16 nor F32")
        offsets, sizes, digests = (file.get_tensor(name) for name in ("offsets", "sizes", "digests"))
        check_index(ids, offsets, boxes.get_shape())
        if sizes.dtype != np.int32 or sizes.shape != (len(ids), 2) or (sizes <= 0).any():
            raise ValueError("its image sizes are damaged")
        if digests.dtype != np.uint8 or digests.shape != (len(ids), DIGEST_SIZE):
            raise ValueError("its digests are damaged")
        return StoredProposals(ids, offsets, boxes, sizes, digests, made_by)


def write_stored(path: Path, stored: StoredProposals) -> None:
    """Write the stored form atomically; `boxes` is an array, sizes and digests are there. Raises like atomic_write."""
    meta = {"version": VERSION, "format": "xyxy", "origin": 0, "end": "exclusive"}
    meta |= {"made_by": stored.made_by, "ids": stored.ids}
    tensors = {
        "boxes": compact(stored.boxes),
        "offsets": stored.offsets.astype(np.int64),
        "sizes": stored.sizes.astype(np.int32),
        "digests": stored.digests.astype(np.uint8),
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={METADATA_KEY: json.dumps(meta)}))
