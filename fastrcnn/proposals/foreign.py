"""Proposal files of others: the published .mat, and a user's own .npz or .json, which must state their box convention.

Whatever they hold becomes half-open boxes in image pixels here. Nothing in them is unpickled.
"""

import json
import math
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from fastrcnn.annotations.folders import image_id
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.mat_file import MAX_COMPRESSION, read_mat, rows_of_four
from fastrcnn.proposals.stored import StoredProposals, check_index, clean, compact, convention


def read_foreign(path: Path, records: Sequence[ImageRecord], min_size: int) -> StoredProposals:
    """Read by suffix, convert to half-open boxes, and clean (see proposals.read_proposals). Raises anything."""
    readers = {".mat": _read_mat, ".npz": _read_npz, ".json": _read_json}
    if path.suffix not in readers:
        raise FastRCNNError(f"{path}: proposals are read from .safetensors, .mat, .npz or .json files, not from this")
    stored = readers[path.suffix](path, records)
    return _cleaned(replace(stored, ids=keys_to_ids(stored.ids, records)), records, min_size)


def _read_mat(path: Path, records: Sequence[ImageRecord]) -> StoredProposals:
    """voc_2007_*.mat as published with fast-rcnn: a cell array `boxes` of (y1, x1, y2, x2), 1-based, both ends inside.

    The ids are in `images`, if that is there, else they are those of the data set, in its order.
    """
    ids, cells = read_mat(path)
    if ids is None:
        if len(cells) != len(records):
            raise ValueError(f"it has {len(cells)} images and no ids, the data set has {len(records)} images")
        ids = [record.id for record in records]
    return _joined(ids, [_to_half_open(rows[:, [1, 0, 3, 2]], "xyxy", 1, "inclusive") for rows in cells])


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
    boxes = _to_half_open(rows_of_four(boxes, "all"), *convention(meta))
    return StoredProposals(ids.tolist(), offsets.astype(np.int64), boxes)


def _read_json(path: Path, records: Sequence[ImageRecord]) -> StoredProposals:
    """{"meta": {the box convention}, "proposals": {image id: [[4 numbers], ...]}}"""
    content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeated_keys)
    if not isinstance(content, dict) or not isinstance(content.get("proposals"), dict):
        raise ValueError('it is not of the form {"meta": {...}, "proposals": {"image id": [[x1, y1, x2, y2], ...]}}')
    stated = convention(content.get("meta"))
    boxes = content["proposals"]
    return _joined(list(boxes), [_to_half_open(rows_of_four(value, i), *stated) for i, value in boxes.items()])


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{key!r} is listed twice in it")
    return result


def _to_half_open(boxes: Float64[np.ndarray, "P 4"], form: str, origin: int, end: str) -> Float64[np.ndarray, "P 4"]:
    """Boxes in any convention as (x1, y1, x2, y2), 0-based, half open."""
    start, stop = boxes[:, :2], boxes[:, 2:]
    if form == "xywh":
        stop = start + stop
    return np.concatenate((start - origin, stop - origin + (end == "inclusive")), axis=1)


def _joined(ids: list[str], boxes: list[Float64[np.ndarray, "_ 4"]]) -> StoredProposals:
    offsets = np.cumsum([0] + [len(b) for b in boxes])
    check_index(ids, offsets, (int(offsets[-1]), 4))
    return StoredProposals(ids, offsets, np.concatenate([np.zeros((0, 4)), *boxes]))


def _cleaned(stored: StoredProposals, records: Sequence[ImageRecord], min_size: int) -> StoredProposals:
    """Clip what is 1 pixel outside its image, leave out small and repeated boxes; what is wrong stays, to be found."""
    sizes = {record.id: (record.width, record.height) for record in records}
    cleaned = []
    for i, key in enumerate(stored.ids):
        boxes = stored.rows(i)
        if key in sizes:
            limit = np.array(sizes[key] * 2)
            inside = np.clip(boxes, 0, limit)
            boxes = np.where(np.abs(boxes - inside) <= 1, inside, boxes)
        cleaned.append(clean(boxes, min_size))
    offsets = np.cumsum([0] + [len(b) for b in cleaned])
    return StoredProposals(stored.ids, offsets, compact(np.concatenate([np.zeros((0, 4)), *cleaned])))


# ---- which image the key of a file means: an id, or a file name or path that fits one image only


def keys_to_ids(keys: Sequence[str], records: Sequence[ImageRecord]) -> list[str]:
    """The keys of a file, with the ids of `records` in place of those that mean one of them by another name.

    A key that is no id, such as a.jpg, images/a.jpg or C:\\photos\\a, means the image whose path has the most parts
    in common with it, from the end, or whose id it is but for suffix and slashes; where two fit equally, it
    stays as it is.
    """
    known = set(keys)
    wanted = defaultdict(list)
    for record in records:
        if record.id not in known:
            path = image_id(record.path.as_posix()).split("/")[::-1]
            wanted[path[0]].append((record.id, path))
    if not wanted:
        return list(keys)
    ids = {record.id for record in records}
    claims: dict[str, list[tuple[float, str]]] = defaultdict(list)  # by image: how well each key fits
    for key in keys:
        name = image_id(key.replace("\\", "/"))
        parts = name.split("/")[::-1]
        near = wanted[parts[0]] if key not in ids else []
        fits = [(math.inf if name == identity else _in_common(parts, path), identity) for identity, path in near]
        best = max(fits, default=(0, ""))
        if sum(fit == best[0] for fit, _ in fits) == 1:
            claims[best[1]].append((best[0], key))
    renamed = {}
    for identity, some in claims.items():
        best = max(some)
        if sum(fit == best[0] for fit, _ in some) == 1:
            renamed[best[1]] = identity
    return [renamed.get(key, key) for key in keys]


def _in_common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share, from their ends; both are given in reverse."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
