"""Score thresholds that an evaluation measured, kept in the metadata of the weights file they were measured with.

Only the header of the file changes; its tensors stay, byte for byte. Where work under way is known by what its weights
file holds, thresholds do not count: they make no other network.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import DIGEST_SIZE, METADATA_KEY, atomic_write, file_digest

KEY = "score_thresholds"  # in the metadata


@dataclass(frozen=True)
class ScoreThresholds:
    """The score that a detection of each class must have, and on what that was measured."""

    scores: dict[str, float]  # by class name; a class of which nothing was found there has none
    data: str  # the data set, in words
    images: int

    def limits(self, classes: Sequence[str], otherwise: float) -> Float32[np.ndarray, "K"]:
        """For K - 1 classes, from index 1 on; `otherwise` for a class without a threshold and for background."""
        return np.array([otherwise, *(self.scores.get(name, otherwise) for name in classes)], np.float32)

    @classmethod
    def from_json(cls, value: Any) -> "ScoreThresholds":
        """The inverse of dataclasses.asdict. Raises ValueError, TypeError or KeyError for anything else."""
        scores = {str(name): float(score) for name, score in dict(value["scores"]).items()}
        if not all(0 <= score <= 1 for score in scores.values()):
            raise ValueError("a score threshold is outside 0..1")
        return cls(scores, str(value["data"]), int(value["images"]))


def store_thresholds(path: str | Path, thresholds: ScoreThresholds) -> bool:
    """Write the thresholds into a weights file, atomically; False where it holds these already and stays as it is.

    Raises FastRCNNError for a file that cannot be written.
    """
    path = Path(os.path.realpath(path))  # what a link stands for, not the link
    header, start = _read_header(path)
    metadata = json.loads(header["__metadata__"][METADATA_KEY])
    if metadata.get(KEY) == asdict(thresholds):
        return False
    if not (os.access(path, os.W_OK) and path.stat().st_mode & stat.S_IWUSR):  # renaming over it would need neither
        raise FastRCNNError(f"{path}: is write-protected")
    header["__metadata__"][METADATA_KEY] = json.dumps({**metadata, KEY: asdict(thresholds)})
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to 8 bytes
    with atomic_write(path) as after:
        after.write(len(text).to_bytes(8, "little") + text)
        with path.open("rb") as before:  # closed before it is replaced: Windows wants that
            before.seek(start)
            shutil.copyfileobj(before, after, 1 << 20)
        shutil.copymode(path, after.name)
    return True


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a weights file or checkpoint, without its tensors."""
    metadata = json.loads(_read_header(Path(path))[0]["__metadata__"][METADATA_KEY])
    assert isinstance(metadata, dict), "the file was loaded before"
    return metadata


def network_digest(path: str | Path) -> bytes:
    """A digest of DIGEST_SIZE bytes of a weights file without its thresholds; of another file, of all that it holds."""
    try:
        header, start = _read_header(Path(path))
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
        metadata.pop(KEY, None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return file_digest(path)
    header["__metadata__"][METADATA_KEY] = metadata
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=DIGEST_SIZE)
    with Path(path).open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors start. Raises ValueError for another file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file")
    return header, 8 + size
