"""Files that are whole or not there: atomic writes, safe names, checked safetensors, locks."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock, Timeout

from fastrcnn.errors import FastRCNNError, NotFiniteError

if TYPE_CHECKING:
    import torch

METADATA_KEY = "fastrcnn"
DIGEST_SIZE = 16  # bytes
WAITS = (0.1, 0.2, 0.4, 0.8)  # seconds between attempts to replace a file that another program has open


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only once it is complete and on the disk.

    Writes a temporary file in the same folder, fsyncs it, and renames it. Whatever goes wrong, the file that was at
    `path` before stays. Raises FastRCNNError for a full disk, a folder that cannot be written, and, on Windows, a file
    that another program has open.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except OSError as e:
        raise FastRCNNError(
            f"{path}: cannot be written: {e.strerror or e}; free space or choose another folder. "
            "What was there before is unchanged"
        ) from e
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()
    _fsync_folder(path.parent)


def _replace(temporary: Path, path: Path) -> None:
    """Rename over `path`. Windows refuses while the file is open elsewhere; virus scanners let go after a moment."""
    for wait in WAITS:
        with contextlib.suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(wait)
    try:
        temporary.replace(path)
    except PermissionError as e:
        raise FastRCNNError(
            f"{path}: cannot be replaced: {e.strerror}; close the program that has it open (a viewer, a training run, "
            "an evaluation) and run again. What was there before is unchanged"
        ) from e


def _fsync_folder(folder: Path) -> None:
    """A rename survives a power cut only when its folder is on the disk too. Windows opens no folders, some network
    file systems sync none; the file itself is whole."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what atomic_write under `folder` left when it was killed; only for who holds the lock on these files."""
    for path in folder.glob(f".{glob.escape(name)}.????????.tmp" if name else ".*.tmp"):
        path.unlink(missing_ok=True)


def refuse_overwrite(inputs: Iterable[str | Path], outputs: Iterable[str | Path]) -> None:
    """Raise FastRCNNError, naming both, where a file to be written is one that is read: under the same name, through a
    link, or spelled otherwise. To be called before any work."""
    read = {same: path for path in inputs for same in _identities(path)}
    for path in outputs:
        for same in _identities(path):
            if same in read:
                raise FastRCNNError(f"{path}: would be written over {read[same]}, which is read; choose another output")


def _identities(path: str | Path) -> Iterator[Any]:
    """What a file shares with no other: its path without links, and, if it is there, its number on its disk."""
    yield os.path.normcase(os.path.realpath(path))
    with contextlib.suppress(OSError):
        about = Path(path).stat()
        if about.st_ino:  # some file systems do not number their files
            yield about.st_dev, about.st_ino


# ---- names

# What Windows, the strictest, forbids in names, and halves of characters, which stand for bytes that are not UTF-8.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]|[. ]$')
_DEVICES = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE | re.DOTALL
)
_CHANGED = re.compile(r"~[0-9a-f]{10}$")
_LONGEST = 200  # bytes; file systems take 255, and callers add a prefix, a suffix, a temporary's name


def safe_name(name: str) -> str:
    """A file name, yet without suffix, that every system takes, for a name that a user gave: of a class, of a picture.

    A good name comes back as it is. In others, what is forbidden becomes `_`, a long one is cut, and `~` with a digest
    of the whole name follows, so that two names never give one file. (Names that differ in case only are one file on
    Windows and macOS: who writes many compares them by str.casefold.)
    """
    safe = _FORBIDDEN.sub("_", name) or "_"
    if _DEVICES.fullmatch(safe):
        safe = f"_{safe}"
    encoded = safe.encode()
    if safe == name and len(encoded) <= _LONGEST and not _CHANGED.search(name):
        return name
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=5).hexdigest()
    return f"{encoded[: _LONGEST - 11].decode(errors='ignore')}~{digest}"


# ---- contents


def read_bytes(path: str | Path, remedy: str = "check its permissions", missing: str | None = None) -> bytes:
    """What a file holds. Raises FastRCNNError where it cannot be had, with a remedy; `missing` says that of no file."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        absent = missing is not None and isinstance(e, FileNotFoundError)
        reason = missing if absent else f"cannot be read: {e.strerror}; {remedy}"
        raise FastRCNNError(f"{path}: {reason}") from None


def file_digest(path: str | Path) -> bytes:
    """A digest of DIGEST_SIZE bytes of what a file holds, whatever its name. Raises OSError as reading it does."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


SETTLED = 3 * 10**9  # nanoseconds; some file systems count in steps of two seconds


def settled_stamp(path: str | Path) -> str | None:
    """Changes when a file does: its number, size, and times of change of its content and of its entry, to the
    nanosecond. None for a file that is not there, and for one so new that another change could have the same times."""
    try:
        about = os.stat(path)  # noqa: PTH116 (of 100,000 files, twice as fast as Path.stat)
    except OSError:
        return None
    if time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) < SETTLED:
        return None
    return f"{about.st_ino} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically. Raises FastRCNNError as atomic_write does."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode())


def write_tensors(path: str | Path, tensors: dict[str, "torch.Tensor"], metadata: dict[str, Any]) -> None:
    """Write a safetensors file atomically; `metadata` is JSON under the key `fastrcnn`.

    Raises FastRCNNError as atomic_write does, and NotFiniteError for numbers that read_tensors would refuse.
    """
    import safetensors.torch

    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise NotFiniteError(f"{path}: is not written: {name} holds numbers that are not finite")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, {METADATA_KEY: json.dumps(metadata)})
    with atomic_write(path) as file:
        file.write(data)


def read_tensors(path: str | Path) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """All tensors of a safetensors file, and the metadata that write_tensors gave it ({} for another's file).

    Raises FastRCNNError for a file that is missing, cut short, not safetensors, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            # Copies: what get_tensor gives is a view of the file. It would change if someone wrote into it later, and
            # Windows replaces no file that is mapped.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    except FileNotFoundError:
        raise FastRCNNError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, RuntimeError) as e:  # RuntimeError: a type torch cannot compute with
        raise FastRCNNError(
            f"{path}: is not a whole safetensors file ({' '.join(str(e).split())}); make or fetch it again"
        ) from None
    if not isinstance(metadata, dict):
        raise FastRCNNError(f"{path}: its metadata is not a mapping; make the file again")
    if bad:
        raise FastRCNNError(f"{path}: {bad[0]} holds numbers that are not finite; it cannot be used")
    return tensors, metadata


def _is_finite(tensor: "torch.Tensor") -> bool:
    """Whether all numbers are; without a copy of large tensors, since NaN and infinity are their own extremes."""
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex() or tensor.element_size() == 1:  # torch finds no extremes of these
        return bool((tensor if tensor.is_complex() else tensor.float()).isfinite().all())
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


# ---- locks

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def lock(path: str | Path, what: str) -> Iterator[None]:
    """Hold `path` as a lock file; the system drops it when the process dies, forked processes do not inherit it.

    `what` names the thing in the error. Raises FastRCNNError when another process holds it, and where it cannot be
    held.
    """
    path = Path(path)
    held = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        raise FastRCNNError(f"{path}: {what} is in use by another process; wait for it or choose another") from None
    except (OSError, NotImplementedError) as e:
        if isinstance(e, NotImplementedError) or e.errno in _NO_LOCKS:
            raise FastRCNNError(
                f"{path}: its file system has no locks, like some network drives; choose a folder on another disk"
            ) from e
        raise FastRCNNError(f"{path}: cannot be written: {e.strerror or e}; choose another folder") from e
    try:
        yield
    finally:
        held.release()
