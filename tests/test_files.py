import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import (
    atomic_write,
    file_digest,
    lock,
    read_tensors,
    refuse_overwrite,
    remove_leftovers,
    safe_name,
    write_json,
    write_tensors,
)


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


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_new_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_leftovers_of_one_file_only_are_removed(tmp_path):
    names = [".a[1].bin.0123abcd.tmp", ".a[1].bin.x.0123abcd.tmp", ".a1.bin.0123abcd.tmp", "a[1].bin"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "a[1].bin")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a[1].bin"]


def test_what_atomic_write_leaves_when_killed_is_a_leftover(tmp_path):
    with atomic_write(tmp_path / "a[1].bin") as file:
        name = Path(file.name).name
        Path(file.name).with_name(f"{name[:-12]}{'0' * 8}.tmp").write_bytes(b"half")  # as one of a killed process
    remove_leftovers(tmp_path, "a[1].bin")
    assert [p.name for p in tmp_path.iterdir()] == ["a[1].bin"]


def refuse_replace(monkeypatch, times):
    """As Windows does while another program has the file open."""
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) <= times:
            raise PermissionError(13, "The process cannot access the file")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_a_file_that_is_open_for_a_moment_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"before")
    refuse_replace(monkeypatch, 3)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"after")
    assert (tmp_path / "a").read_bytes() == b"after" and len([*tmp_path.iterdir()]) == 1


def test_a_file_that_stays_open_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"before")
    refuse_replace(monkeypatch, 99)
    with (
        pytest.raises(FastRCNNError, match=r"a: cannot be replaced: .*close the program that has it open"),
        atomic_write(tmp_path / "a") as file,
    ):
        file.write(b"after")
    assert (tmp_path / "a").read_bytes() == b"before" and len([*tmp_path.iterdir()]) == 1


def test_a_file_system_that_syncs_no_folders(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", none)
    with (
        pytest.raises(FastRCNNError, match=r"\.lock: its file system has no locks.*another disk"),
        lock(tmp_path / ".lock", "it"),
    ):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_holds_no_lock(tmp_path):
    """Loader processes live on for seconds when the one that started them was killed."""
    code = f"""
import os, time
from fastrcnn.files import lock
with lock({str(tmp_path / ".lock")!r}, "it"):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # lives
        deadline = time.monotonic() + 20  # on a busy machine the child may not have dropped it yet
        while True:
            try:
                with lock(tmp_path / ".lock", "it"):
                    break
            except FastRCNNError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2", "complex64"]
)
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused_in_every_type(tmp_path, dtype, bad):
    tensor = torch.zeros(3, 5, dtype=torch.float32)
    path = tmp_path / "a.safetensors"
    kind = getattr(torch, dtype)
    write_tensors(path, {"a": tensor.to(kind), "empty": torch.zeros(0).to(kind), "n": torch.arange(3)}, {})
    assert read_tensors(path)[0]["a"].dtype == kind
    tensor[1, 2] = float("nan") if dtype == "float8_e4m3fn" else float(bad)  # that type has no infinity
    with pytest.raises(FastRCNNError, match="not finite"):
        write_tensors(path, {"a": tensor.to(kind)}, {})
    save_file({"a": tensor.to(kind)}, path)
    with pytest.raises(FastRCNNError, match="a holds numbers that are not finite"):
        read_tensors(path)


@pytest.mark.parametrize(
    "name", ["car", "IMG_0001", "motor bike", "żółw", "a.b", "犬", "x" * 200, "com", "CONCERT", "a~1"]
)
def test_good_names_stay(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a*",
        "a?",
        "a.",
        "a ",
        "CON",
        "con.txt",
        "Nul ",
        "COM1",
        "lpt9.x",
        "COM\u00b9",
    ]
    + ["x" * 201, "é" * 101, "a\nb", "a\x00", "a\udce9", "car~0123456789", 'say "a"', "<a>", "a|b"],
)
def test_names_that_some_system_refuses_are_changed(name, tmp_path):
    safe = safe_name(name)
    assert safe != name and safe == safe_name(name)
    (tmp_path / f"{safe}.jpg").write_bytes(b"")  # the system itself
    (tmp_path / safe).write_bytes(b"")
    with atomic_write(tmp_path / f"a_prefix_{safe}.jpg") as file:
        file.write(b"")


AWKWARD = (
    st.text(st.sampled_from('ab.~/: "CON1\u00e9\udce9\n'))
    | st.text()
    | st.sampled_from(["CON", "con.x", "~0123456789"])
)


@given(st.lists(AWKWARD, unique=True, min_size=2, max_size=2))
def test_two_names_never_give_one_file_and_each_is_safe(names):
    first, second = map(safe_name, names)
    assert first != second
    for safe in (first, second):
        assert 0 < len(safe.encode()) <= 200 and not set(safe) & set('<>:"/\\|?*') and min(safe) >= " "
        assert safe[-1] not in ". "
        stem = safe.split(".")[0].rstrip().upper()
        assert stem not in {"CON", "PRN", "AUX", "NUL"} and not (
            stem[:3] in ("COM", "LPT") and stem[3:].isdigit() and len(stem) == 4
        )


@given(AWKWARD)
def test_a_changed_name_is_never_another_s_good_name(name):
    safe = safe_name(name)
    assert safe == name or safe_name(safe) != safe


def test_no_output_takes_the_place_of_an_input(tmp_path):
    mine, link, hard = (tmp_path / name for name in ("mine.jpg", "link.jpg", "hard.jpg"))
    mine.write_bytes(b"photograph")
    link.symlink_to(mine)
    hard.hardlink_to(mine)
    for spelled in (mine, link, hard, tmp_path / ".." / tmp_path.name / "mine.jpg", str(mine)):
        for read, written in ((mine, spelled), (spelled, mine)):
            with pytest.raises(FastRCNNError, match="would be written over .*, which is read; choose another output"):
                refuse_overwrite([tmp_path / "other", read], [tmp_path / "new", written])
    refuse_overwrite([mine], [tmp_path / "new.jpg", tmp_path / "mine.png"])
