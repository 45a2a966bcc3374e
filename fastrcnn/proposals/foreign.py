"""Proposal files of others: the published .mat, and a user's own .npz or .json, which must state their box convention.

Whatever they hold becomes half-open boxes in image pixels here. Nothing in them is unpickled.
"""

import contextlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.mat_file import read_mat

# Deflate stays below 1032:1, and real ids, offsets and boxes below 30:1. What is between is a decompression bomb.
MAX_COMPRESSION = 200


@dataclass(frozen=True)
class StoredProposals:
    """What a file holds, checked for consistency with itself but not with any images."""

    ids: list[str]  # I of them
    offsets: np.ndarray  # int64 [I + 1]
    boxes: Any  # [B, 4] half open, anything with slices: an array, or the safetensors file's own lazy slice
    sizes: np.ndarray | None = None  # int32 [I, 2] (width, height); None: the format does not tell
    digests: np.ndarray | None = None  # uint8 [I, DIGEST_SIZE]
    made_by: dict[str, Any] = field(default_factory=dict)  # ProposalsConfig's settings, opencv

    def rows(self, i: int, limit: int | None = None) -> np.ndarray:
        """The boxes of image i, at most `limit`, [P, 4] in the type they are stored in."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        if limit is not None:
            end = min(end, start + limit)
        # safetensors refuses an empty slice behind the last row
        return self.boxes[start:end] if end > start else np.zeros((0, 4), np.float32)


def read_foreign(path: Path, records: Sequence[ImageRecord], min_size: int) -> StoredProposals:
    """Read by suffix, convert to half-open boxes, and clean (see proposals.read_proposals). Raises anything."""
    readers = {".mat": _read_mat, ".npz": _read_npz, ".json": _read_json}
    if path.suffix not in readers:
        raise FastRCNNError(f"{path}: proposals are read from .safetensors, .mat, .npz or .json files, not from this")
    return _cleaned(readers[path.suffix](path, records), records, min_size)


def _read_mat(path: Path, records: Sequence[ImageRecord]) -> StoredProposals:
    """voc_2007_*.mat as published with fast-rcnn: a cell array `boxes` of (y1, x1, y2, x2), 1-based, both ends inside.

    The ids are in `images`, if that is there, else they are those of the data set, in its order.
    """
    content = read_mat(path.read_bytes(), MAX_COMPRESSION)
    cells, ids = content.get("boxes"), content.get("images")
    if not isinstance(cells, list):
        raise ValueError("it has no cell array `boxes` with one entry per image")
    if ids is None:
        if len(cells) != len(records):
            raise ValueError(f"it has {len(cells)} images and no ids, the data set has {len(records)} images")
        ids = [record.id for record in records]
    if not isinstance(ids, list) or len(ids) != len(cells):
        raise ValueError(f"its `images` are not the ids of the {len(cells)} entries of `boxes`")
    return _joined(
        ids,
        [_to_half_open(_rows(c, i)[:, [1, 0, 3, 2]], "xyxy", 1, "inclusive") for i, c in zip(ids, cells, strict=True)],
    )


def _read_npz(path: Path, records: Sequence[ImageRecord]) -> StoredProposals:
    """Arrays ids [I], offsets [I + 1], boxes [B, 4], and meta: a JSON string with the box convention."""
    with zipfile.ZipFile(path) as archive:
        if sum(i.file_size for i in archive.infolist()) > MAX_COMPRESSION * path.stat().st_size:
            raise ValueError("it is a decompression bomb")
    with np.load(path, allow_pickle=False) as content:
        absent = {"ids", "offsets", "boxes", "meta"} - set(content.files)
        if absent:
            raise ValueError(f"it has no array {sorted(absent)[0]}; it needs ids, offsets, boxes and meta")
        ids, offsets, boxes = content["ids"], content["offsets"], content["boxes"]
        meta = json.loads(str(content["meta"]))
    if ids.ndim != 1 or ids.dtype.kind != "U":
        raise ValueError("its ids are not a list of strings")
    check_index(ids.tolist(), offsets, boxes.shape)
    boxes = _to_half_open(_rows(boxes, "all"), *convention(meta))
    return StoredProposals(ids.tolist(), offsets.astype(np.int64), boxes)


def _read_json(path: Path, records: Sequence[ImageRecord]) -> StoredProposals:
    """{"meta": {the box convention}, "proposals": {image id: [[4 numbers], ...]}}"""
    content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeated_keys)
    if not isinstance(content, dict) or not isinstance(content.get("proposals"), dict):
        raise ValueError('it is not of the form {"meta": {...}, "proposals": {"image id": [[x1, y1, x2, y2], ...]}}')
    stated = convention(content.get("meta"))
    boxes = content["proposals"]
    return _joined(list(boxes), [_to_half_open(_rows(value, i), *stated) for i, value in boxes.items()])


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{key!r} stands in it twice")
    return result


def convention(meta: Any) -> tuple[str, int, str]:
    """(format, origin, end) as `meta` states them. Raises ValueError, saying how to state them, when it does not."""
    choices = {"format": ("xyxy", "xywh"), "origin": (0, 1), "end": ("exclusive", "inclusive")}
    for key, valid in choices.items():
        if not isinstance(meta, dict) or meta.get(key) not in valid:
            raise ValueError(
                f'its meta does not state "{key}"; add "meta": {{"format": "xyxy" or "xywh", "origin": 0 or 1, '
                '"end": "exclusive" or "inclusive"}, where origin numbers the first pixel, and an inclusive end '
                "(x2, or x + w) is the last pixel in the box, an exclusive one the first after it"
            )
    return meta["format"], meta["origin"], meta["end"]


def _rows(value: Any, image_id: str) -> np.ndarray:
    """float64 [P, 4] from what stands for one image."""
    rows = np.asarray(value)
    if rows.size == 0:
        return np.zeros((0, 4))
    if rows.dtype.kind not in "iuf" or rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"image {image_id}: its proposals are not rows of 4 numbers")
    return rows.astype(np.float64)


def _to_half_open(boxes: np.ndarray, form: str, origin: int, end: str) -> np.ndarray:
    """Boxes [P, 4] in any convention as (x1, y1, x2, y2), 0-based, half open."""
    start, stop = boxes[:, :2], boxes[:, 2:]
    if form == "xywh":
        stop = start + stop
    return np.concatenate((start - origin, stop - origin + (end == "inclusive")), axis=1)


def _joined(ids: list[str], boxes: list[np.ndarray]) -> StoredProposals:
    offsets = np.cumsum([0] + [len(b) for b in boxes])
    check_index(ids, offsets, (int(offsets[-1]), 4))
    return StoredProposals(ids, offsets, np.concatenate([np.zeros((0, 4)), *boxes]))


def _cleaned(stored: StoredProposals, records: Sequence[ImageRecord], min_size: int) -> StoredProposals:
    """Clip what is 1 pixel outside its image, leave out small and repeated boxes; what is wrong stays, to be found."""
    sizes = {record.id: (record.width, record.height) for record in records}
    cleaned = []
    for i, image_id in enumerate(stored.ids):
        boxes = stored.rows(i)
        if image_id in sizes:
            limit = np.array(sizes[image_id] * 2)
            inside = np.clip(boxes, 0, limit)
            boxes = np.where(np.abs(boxes - inside) <= 1, inside, boxes)
        cleaned.append(clean(boxes, min_size))
    offsets = np.cumsum([0] + [len(b) for b in cleaned])
    return StoredProposals(stored.ids, offsets, compact(np.concatenate([np.zeros((0, 4)), *cleaned])))


def clean(boxes: np.ndarray, min_size: int) -> np.ndarray:
    """Boxes [P, 4] without repetitions and those narrower or lower than min_size pixels; inverted ones stay."""
    size = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[~((size >= 0) & (size < min_size)).any(axis=1)]
    order = np.lexsort(boxes.T)  # stable, so the first of equal boxes is the first in the file
    repeated = (boxes[order][1:] == boxes[order][:-1]).all(axis=1)
    return boxes[np.sort(np.delete(order, np.flatnonzero(repeated) + 1))]


def compact(boxes: np.ndarray) -> np.ndarray:
    """int16 where that is exact, else float32; NaN and infinity stay, for find_problems to report."""
    with np.errstate(invalid="ignore", over="ignore"):
        small = boxes.astype(np.int16)
        return small if (small == boxes).all() else boxes.astype(np.float32)


def check_index(ids: Any, offsets: np.ndarray, shape: Sequence[int]) -> None:
    """Raise ValueError unless offsets [I + 1] divide boxes of this shape among I distinct ids."""
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise ValueError("its ids are not a list of strings")
    twice = [image_id for image_id, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f"image {twice[0]} stands in it twice")
    if offsets.shape != (len(ids) + 1,) or offsets.dtype.kind not in "iu":
        raise ValueError(f"its offsets are not {len(ids) + 1} integers for {len(ids)} images")
    if len(shape) != 2 or shape[1] != 4:
        raise ValueError(f"its boxes have the shape {list(shape)}, not [B, 4]")
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any() or offsets[-1] != shape[0]:
        raise ValueError(f"its offsets do not grow from 0 to its number of boxes, {shape[0]}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a FastRCNNError that names it."""
    try:
        with np.errstate(all="ignore"):  # damaged numbers overflow on their way to the checks
            yield
    except FastRCNNError:
        raise
    except FileNotFoundError:
        raise FastRCNNError(f"{path}: no such proposals file; make it with tools/proposals.py") from None
    except Exception as e:  # the readers of numpy, scipy, zip and JSON raise anything from KeyError to zlib.error
        reason = " ".join(str(e).split()) or type(e).__name__
        raise FastRCNNError(f"{path}: cannot be read: {reason}; mend it, fetch it or make it again") from e
