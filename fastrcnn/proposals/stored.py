"""The stored form of proposals: one safetensors file with

    boxes    int16 [B, 4], or float32 where int16 does not do; image pixels, half open (x1, y1, x2, y2)
    offsets  int64 [I + 1]; image i has the rows offsets[i] to offsets[i + 1] - 1, best first
    sizes    int32 [I, 2]; width and height of the upright image that the boxes were made from
    digests  uint8 [I, 16]; of the image files' bytes

and metadata that hold the I image ids, the box format, and how the proposals were made. The boxes stay in the file: an
image costs one read, and no process holds what it has read before.
"""

import contextlib
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Real
from safetensors import safe_open
from safetensors.numpy import save

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import DIGEST_SIZE, atomic_write

METADATA_KEY = "fastrcnn_proposals"
VERSION = 1


@dataclass(frozen=True)
class StoredProposals:
    """What a file holds, checked for consistency with itself but not with any images."""

    ids: list[str]  # I of them
    offsets: Integer[np.ndarray, "_"]  # I + 1
    boxes: Any  # [B, 4] half open, an array, or RowsInFile
    sizes: Integer[np.ndarray, "I 2"] | None = None  # (width, height); None: the format does not state them
    digests: Integer[np.ndarray, "I 16"] | None = None  # DIGEST_SIZE bytes
    made_by: dict[str, Any] = field(default_factory=dict)  # ProposalsConfig's settings, opencv

    def rows(self, i: int, limit: int | None = None) -> Real[np.ndarray, "P 4"]:
        """The boxes of image i, at most `limit`, in the type they are stored in."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        if limit is not None:
            end = min(end, start + limit)
        return self.boxes[start:end] if end > start else np.zeros((0, 4), np.float32)


def read_stored(path: Path) -> StoredProposals:
    """Open a file of write_stored. Raises FastRCNNError when it is damaged or of another kind."""
    with reading(path), safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if METADATA_KEY not in metadata:
            raise ValueError("it is a safetensors file of something else, not of proposals")
        meta = json.loads(metadata[METADATA_KEY])
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise ValueError(f"its metadata are not those of version {VERSION}")
        ids: Any = meta.get("ids")  # check_index looks at them
        made_by = meta.get("made_by")
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
        return StoredProposals(ids, offsets, RowsInFile(path), sizes, digests, made_by)


class RowsInFile:
    """The boxes [B, 4] of a file of write_stored, by slices that are not empty.

    Each is read on its own: a mapping of the whole, 1.6 GB for 100,000 images, would count as memory of every process
    that has gone through them all. The file that was opened is read even when another one has taken its name since;
    threads and forked processes may share it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        length = int.from_bytes(self._file.read(8), "little")  # safetensors: so many bytes of JSON, then the tensors
        about = json.loads(self._file.read(length))["boxes"]
        self._dtype = np.dtype({"I16": "<i2", "F32": "<f4"}[about["dtype"]])
        self._start = 8 + length + about["data_offsets"][0]

    def __getitem__(self, rows: slice) -> Real[np.ndarray, "_ 4"]:
        row = 4 * self._dtype.itemsize
        start, size = self._start + rows.start * row, (rows.stop - rows.start) * row
        if hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), size, start)
        else:  # Windows, where no process is forked and shares the position
            with self._lock:
                self._file.seek(start)
                data = self._file.read(size)
        return np.frombuffer(data, self._dtype).reshape(-1, 4)


def write_stored(path: Path, stored: StoredProposals) -> None:
    """Write the stored form atomically; `boxes` is an array, sizes and digests are there. Raises like atomic_write."""
    assert stored.sizes is not None and stored.digests is not None
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


def clean(boxes: Real[np.ndarray, "_ 4"], min_size: int) -> Real[np.ndarray, "_ 4"]:
    """Boxes without repetitions and those narrower or lower than min_size pixels; inverted ones stay."""
    size = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[~((size >= 0) & (size < min_size)).any(axis=1)]
    order = np.lexsort(boxes.T)  # stable, so the first of equal boxes is the first in the file
    repeated = (boxes[order][1:] == boxes[order][:-1]).all(axis=1)
    return boxes[np.sort(np.delete(order, np.flatnonzero(repeated) + 1))]


def compact(boxes: Real[np.ndarray, "P 4"]) -> Real[np.ndarray, "P 4"]:
    """int16 where that is exact, else float32; NaN and infinity stay, for find_problems to report."""
    if boxes.dtype == np.int16:
        return boxes
    with np.errstate(invalid="ignore", over="ignore"):
        small = boxes.astype(np.int16)
        return small if (small == boxes).all() else boxes.astype(np.float32)


def check_index(ids: Any, offsets: np.ndarray, shape: Sequence[int]) -> None:
    """Raise ValueError unless offsets [I + 1] divide boxes of this shape among I distinct ids."""
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise ValueError("its ids are not a list of strings")
    twice = [image_id for image_id, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f"image {twice[0]} is listed twice in it")
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
        raise FastRCNNError(f"{path}: cannot be read: {reason}; fix it, fetch it or make it again") from e
