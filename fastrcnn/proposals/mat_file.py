"""MATLAB files, read by scipy in a process of its own.

Damaged files crash scipy together with the interpreter (59 of 3,000 mutated ones, scipy 1.17), so it reads where
nothing else is lost.
"""

import io
import json
import multiprocessing
import struct
import zlib
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from fastrcnn.processes import ctrl_c_ignored

HEADER = 128  # bytes of a MAT-file of level 5; the last two say the byte order
COMPRESSED = 15  # type of an element
PATIENCE = 600  # seconds; the published files of VOC take some 10
# Deflate stays below 1032:1, and real ids, offsets and boxes below 30:1. What is between is a decompression bomb.
MAX_COMPRESSION = 200


def read_mat(path: Path) -> tuple[list[str] | None, list[np.ndarray]]:
    """The ids in the cell array `images`, None without one, and the rows of each entry of `boxes`, float64 [P, 4].

    Raises ValueError for a file that is damaged, a decompression bomb, or of other contents, OSError for one that
    cannot be opened.
    """
    path.open("rb").close()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(path, theirs), daemon=True)
    with ctrl_c_ignored():
        process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            raise ValueError(f"reading it takes more than {PATIENCE} seconds; it is damaged")
        answer = json.loads(ours.recv_bytes())
        if "fault" in answer:
            raise ValueError(answer["fault"])
        rows = np.frombuffer(ours.recv_bytes(), np.float64).reshape(-1, 4)
    except EOFError:
        raise ValueError(
            "it is damaged: the process that read it died (or the calling script lacks `if __name__ == '__main__'`)"
        ) from None
    finally:
        process.kill()
        process.join()
        ours.close()
    return answer["ids"], np.split(rows, np.cumsum(answer["counts"])[:-1]) if answer["counts"] else []


def _send(path: Path, pipe: Connection) -> None:
    """In the process of its own: a line of JSON, then all rows, as bytes."""
    try:
        ids, boxes = _load(path.read_bytes())
    except Exception as e:  # scipy raises anything
        pipe.send_bytes(json.dumps({"fault": " ".join(str(e).split()) or type(e).__name__}).encode())
        return
    pipe.send_bytes(json.dumps({"ids": ids, "counts": [len(b) for b in boxes]}).encode())
    pipe.send_bytes(np.concatenate([np.zeros((0, 4)), *boxes]).tobytes())


def _load(data: bytes) -> tuple[list[str] | None, list[np.ndarray]]:
    from scipy.io import loadmat  # late: only who reads such a file waits for it

    _refuse_bombs(data)
    content = loadmat(io.BytesIO(data), variable_names=["boxes", "images"])
    boxes = _entries(content, "boxes")
    if boxes is None:
        raise ValueError("it has no cell array `boxes` with one entry per image")
    ids = None
    if "images" in content:
        texts = [e for e in _entries(content, "images") or () if e.dtype.kind == "U" and e.size == 1]
        ids = [str(text.item()) for text in texts]
        if len(ids) != len(boxes):
            raise ValueError(f"its `images` are not the ids of the {len(boxes)} entries of `boxes`")
    names = ids or [f"number {i}" for i in range(1, len(boxes) + 1)]
    return ids, [rows_of_four(entry, name) for entry, name in zip(boxes, names, strict=True)]


def _entries(content: dict[str, np.ndarray], name: str) -> list[np.ndarray] | None:
    """The entries of a cell array in MATLAB's order; objects and structures are no arrays of numbers or text."""
    cells = content.get(name)
    if type(cells) is not np.ndarray or cells.dtype != object:
        return None
    entries = cells.ravel(order="F").tolist()
    return entries if all(type(entry) is np.ndarray for entry in entries) else None


def rows_of_four(value: object, image_id: str) -> Float64[np.ndarray, "P 4"]:
    """From what a file holds for one image. Raises ValueError for anything else than rows of numbers."""
    rows = np.asarray(value)
    if rows.size == 0:
        return np.zeros((0, 4))
    if rows.dtype.kind not in "iuf" or rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"image {image_id}: its proposals are not rows of 4 numbers")
    return rows.astype(np.float64)


def _refuse_bombs(data: bytes) -> None:
    """Raise ValueError for another kind of file, and for a variable of more than MAX_COMPRESSION times its size."""
    if data.startswith(b"MATLAB 7.3") or b"\x89HDF" in data[:516]:
        raise ValueError("it is a MAT-file of version 7.3 (HDF5); save it in MATLAB with -v7")
    if data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError("it is not a MAT-file of level 5; save it in MATLAB with -v7")
    order = "<" if data[126:128] == b"IM" else ">"
    at = HEADER
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind == COMPRESSED:
            inflate, rest, total = zlib.decompressobj(), data[at + 8 : at + 8 + size], 0
            while rest:
                total += len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
                if total > MAX_COMPRESSION * size:
                    raise ValueError("it is a decompression bomb")
        at += 8 + size
