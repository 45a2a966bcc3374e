"""Files that are whole or not there: atomic writes, locks that die with their process, checked safetensors."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastrcnn.errors import FastRCNNError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "fastrcnn"
DIGEST_SIZE = 16  # bytes


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only once it is complete and on the disk.

    Writes a temporary file in the same folder, fsyncs it, and renames it. Whatever goes wrong, the file that stood at
    `path` before stays. Raises FastRCNNError for a full disk or a folder that cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        os.fchmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
        _fsync_folder(path.parent)
    except OSError as e:
        raise FastRCNNError(
            f"{path}: cannot be written: {e.strerror or e}; free space or choose another folder. "
            "What was there before is unchanged"
        ) from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what atomic_write under `folder` left when it was killed; only for who holds the lock on these files."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    """A rename survives a power cut only when its folder is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: str | Path) -> bytes:
    """A digest of DIGEST_SIZE bytes of what a file holds, whatever its name. Raises OSError as reading it does."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically. Raises FastRCNNError as atomic_write does."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode())


def write_tensors(path: str | Path, tensors: dict[str, "Tensor"], metadata: dict[str, Any]) -> None:
    """Write a safetensors file atomically; `metadata` is JSON under the key `fastrcnn`.

    Raises FastRCNNError as atomic_write does.
    """
    import safetensors.torch

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, {METADATA_KEY: json.dumps(metadata)})
    with atomic_write(path) as file:
        file.write(data)


def read_tensors(path: str | Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """All tensors of a safetensors file, and the metadata that write_tensors gave it ({} for another's file).

    Raises FastRCNNError for a file that is missing, cut short, not safetensors, or holds numbers that are not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            # Copies: what get_tensor gives is a view of the file, and would change if someone wrote into it later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    except FileNotFoundError:
        raise FastRCNNError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, RuntimeError) as e:  # RuntimeError: a type torch cannot compute with
        raise FastRCNNError(
            f"{path}: is not a whole safetensors file ({' '.join(str(e).split())}); make or fetch it again"
        ) from None
    if not isinstance(metadata, dict):
        raise FastRCNNError(f"{path}: its metadata is not a mapping; make the file again")
    if bad:
        raise FastRCNNError(f"{path}: {bad[0]} holds numbers that are not finite; the file is of no use")
    return tensors, metadata


_held: set[int] = set()


def _drop_locks() -> None:
    """A forked process does not inherit locks: it may live on when the one that took them was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_drop_locks)


@contextlib.contextmanager
def lock(path: str | Path, what: str) -> Iterator[None]:
    """Hold `path` as a lock file; the system drops it when the process dies. `what` names the thing in the error.

    Raises FastRCNNError when another process holds it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as e:
        raise FastRCNNError(f"{path}: cannot be written: {e.strerror}; choose another folder") from e
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise FastRCNNError(f"{path}: {what} is in use by another process; wait for it or choose another") from None
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # not so in a forked process
            _held.remove(handle)
            os.close(handle)
