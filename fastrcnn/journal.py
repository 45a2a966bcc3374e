"""The finished items of work that may be killed: one line each, on the disk before the next begins.

A line is JSON, [checksum, item], the CRC-32 of the item's own text first. The first line holds the key: all that the
items depend on. What was written under another key belongs to other work and is not read.
"""

import base64
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np

from fastrcnn.errors import FastRCNNError

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class Journal(Generic[Item]):
    """The items that earlier runs finished under the same key, in `items`, and room for more.

        journal = Journal(path, key, encode, decode)
        with journal:
            journal.append(item)
        journal.remove()  # when the whole is stored elsewhere

    The caller holds a lock. A last line that a kill cut is dropped; at a damaged one the reading ends, and what follows
    is finished again.
    """

    def __init__(
        self,
        path: str | Path,
        key: object,
        encode: Callable[[Item], object],
        decode: Callable[[Any], Item],
    ) -> None:
        """Read what is there. `encode` turns an item into what JSON holds, `decode` is its inverse, and raises
        ValueError, KeyError, TypeError, OverflowError or FastRCNNError for what it cannot have come from.

        Raises FastRCNNError for a file that cannot be read.
        """
        self.path, self._encode, self._decode = Path(path), encode, decode
        self.items: list[Item] = []
        self._key = _line(key)
        self._end = 0  # bytes that hold good lines
        self._file: BinaryIO | None = None
        try:
            with self.path.open("rb") as file:
                if file.readline() == self._key:
                    self._end = len(self._key)
                    self._read(file)
                elif self.path.stat().st_size:
                    log.info("%s: is of other work or damaged, and is started again", self.path)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise FastRCNNError(f"{self.path}: cannot be read: {e.strerror}; remove it or choose another folder") from e

    def _read(self, file: BinaryIO) -> None:
        for line in file:
            try:
                self.items.append(self._decode(_parse(line)))
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError, FastRCNNError):
                return
            self._end += len(line)

    def __enter__(self) -> "Journal[Item]":
        """Cut off what is not good, and be ready to append."""
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self._end)
            if not self._end:
                self._write(self._key)
        return self

    def append(self, item: Item) -> None:
        """Add an item, and return when it is on the disk. Raises FastRCNNError when there is no room."""
        with self._writing():
            self._write(_line(self._encode(item)))
            os.fsync(self._opened().fileno())

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._opened().write(rest) :]

    def _opened(self) -> BinaryIO:
        assert self._file is not None, "append goes inside `with journal:`"
        return self._file

    def __exit__(self, *_: object) -> None:
        self._opened().close()
        self._file = None

    def remove(self) -> None:
        """Of no use any more: the whole is stored elsewhere."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise FastRCNNError(
                f"{self.path}: cannot be written: {e.strerror or e}; free space and run again to resume"
            ) from e


def read_key(path: Path) -> Any:
    """The key under which a journal was written; None when it cannot be read."""
    try:
        with path.open("rb") as file:
            return _parse(file.readline())
    except (OSError, ValueError):
        return None


def _line(item: object) -> bytes:
    text = json.dumps(item, allow_nan=False)
    return f"[{zlib.crc32(text.encode())}, {text}]\n".encode()


def _parse(line: bytes) -> Any:
    """The item of a line. Raises ValueError for one that is cut or damaged."""
    checksum, _, text = line.partition(b", ")
    if not text.endswith(b"]\n") or checksum != b"[%d" % zlib.crc32(text[:-2]):
        raise ValueError("the line is damaged")
    return json.loads(text[:-2])


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON holds it, bit for bit; unpack is the inverse."""
    data = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return {"type": data.dtype.str, "shape": list(data.shape), "base64": base64.b64encode(data.tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """Raises ValueError, KeyError or TypeError for what is not of `pack`."""
    data = base64.b64decode(packed["base64"], validate=True)
    return np.frombuffer(data, np.dtype(packed["type"])).reshape(packed["shape"]).copy()
