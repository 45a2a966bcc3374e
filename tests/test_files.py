import errno
import hashlib
import os
import subprocess
import sys

import pytest
import torch

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write, file_digest, lock, read_tensors, write_json, write_tensors


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with pytest.raises(RuntimeError, match="half-way"), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("half-way")
    assert list(path.parent.iterdir()) == []
    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, step):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*(("os.fsync", full) if step == "fsync" else ("pathlib.Path.replace", full)))
    with (
        pytest.raises(FastRCNNError, match=r"a\.bin: cannot be written: No space left.*free space"),
        atomic_write(path) as file,
    ):
        file.write(b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_limit_on_file_size_leaves_what_was_there(tmp_path):
    """A real refusal of the system, as a full disk gives, in a process of its own."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    code = f"""
import resource, signal
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_write({str(path)!r}) as file:
        file.write(bytes(100_000))
except FastRCNNError as e:
    print(e)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a.bin: cannot be written: File too large" in found.stdout
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(FastRCNNError, match="cannot be written"), atomic_write(tmp_path / "x" / "y") as file:
        file.write(b"")


def test_a_lock_is_held_once_and_dies_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    code = f"""
import time
from fastrcnn.files import lock
with lock({str(path)!r}, "it"):
    print(1, flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"1\n"
    with pytest.raises(FastRCNNError, match="the run is in use by another process"), lock(path, "the run"):
        pass
    holder.kill()
    holder.wait()
    with lock(path, "the run"):
        pass


def test_tensors_and_metadata_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    write_tensors(path, {"w": weight, "half": weight.bfloat16()}, {"iteration": 3, "name": "ü"})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["w"], weight) and torch.equal(tensors["half"], weight.bfloat16())
    assert metadata == {"iteration": 3, "name": "ü"}


def test_what_was_read_does_not_follow_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(1000)}, {})
    tensors, _ = read_tensors(path)
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    assert (tensors["a"] == 1).all()


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_a_digest_is_of_all_bytes_and_of_nothing_else(tmp_path):
    content = bytes(3 << 20)
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "last byte").write_bytes(content[:-1] + b"x")
    (tmp_path / "empty").write_bytes(b"")
    one, other, last, empty = (file_digest(tmp_path / name) for name in ("one", "other", "last byte", "empty"))
    assert one == other == hashlib.blake2b(content, digest_size=16).digest()
    assert len({one, last, empty}) == 3


def test_new_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
