import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn.errors import FastRCNNError
from fastrcnn.journal import Journal, pack, unpack

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def same(item):
    return item


def written(path, items, key="key"):
    """The journal of these items; returns the sizes of the file: with the key alone, and after each."""
    journal = Journal(path, key, same, same)
    with journal:
        sizes = [path.stat().st_size]
        for item in items:
            journal.append(item)
            sizes.append(path.stat().st_size)
    return sizes


@contextmanager
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@given(st.lists(PLAIN, max_size=5), st.data())
def test_cut_anywhere_it_gives_the_items_before_and_takes_more(items, data):
    with folder() as where:
        path = where / "j"
        sizes = written(path, items)
        length = data.draw(st.integers(0, sizes[-1]))
        path.write_bytes(path.read_bytes()[:length])
        whole = items[: sum(size <= length for size in sizes[1:])]
        journal = Journal(path, "key", same, same)
        assert journal.items == whole
        with journal:
            journal.append("another")
        assert Journal(path, "key", same, same).items == [*whole, "another"]


@given(st.lists(PLAIN, min_size=1, max_size=5), st.data())
def test_a_damaged_byte_ends_the_reading_before_its_line(items, data):
    with folder() as where:
        path = where / "j"
        sizes = written(path, items)
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        found = Journal(path, "key", same, same).items
        assert found == items[: len(found)]
        assert len(found) <= sum(size <= at for size in sizes[1:])


@pytest.mark.parametrize("byte", b"\x0b +0_")
def test_a_byte_that_int_reads_over_is_damage_too(tmp_path, byte):
    written(tmp_path / "j", ["one"])
    content = bytearray((tmp_path / "j").read_bytes())
    content[content.index(b"\n") + 1] = byte  # the first of the line
    (tmp_path / "j").write_bytes(content)
    assert Journal(tmp_path / "j", "key", same, same).items == []


def test_what_decode_refuses_ends_the_reading(tmp_path):
    def decode(value):
        if value < 0:
            raise FastRCNNError("negative")
        return value

    written(tmp_path / "j", [1, 2, -3, 4])
    assert Journal(tmp_path / "j", "key", same, decode).items == [1, 2]


def test_another_key_is_other_work(tmp_path, caplog):
    path = tmp_path / "j"
    caplog.set_level(logging.INFO)
    written(path, [1, 2], key={"seed": 1})
    assert Journal(path, {"seed": 1}, same, same).items == [1, 2] and not caplog.text
    assert Journal(path, {"seed": 2}, same, same).items == []
    assert "other work" in caplog.text and path.stat().st_size  # read only: it stays until something is written
    written(path, [3], key={"seed": 2})
    assert Journal(path, {"seed": 2}, same, same).items == [3]
    assert Journal(path, {"seed": 1}, same, same).items == []


def test_it_is_made_where_no_folder_was_and_removed(tmp_path):
    path = tmp_path / "new" / "j"
    journal = Journal(path, "key", same, same)
    assert not path.parent.exists()
    with journal:
        pass
    assert path.exists()
    journal.remove()
    journal.remove()
    assert not path.exists()


def test_a_folder_in_its_place(tmp_path):
    with pytest.raises(FastRCNNError, match=f"{tmp_path}: cannot be read"):
        Journal(tmp_path, "key", same, same)


@given(
    st.sampled_from(["<f4", ">i4", "<i8", "|b1", "<i2"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_arrays_come_back_bit_for_bit(kind, shape, chance):
    array = np.frombuffer(chance.randbytes(int(np.prod(shape)) * 8), np.uint8).reshape(*shape, 8)
    array = (array % 2).astype(bool)[..., 0] if kind == "|b1" else np.ascontiguousarray(array).view(kind)[..., 0]
    found = unpack(pack(array))
    assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("<")
    assert found.tobytes() == array.astype(found.dtype).tobytes() and found.flags.writeable


def test_damaged_arrays_are_refused():
    good = pack(np.arange(6).reshape(2, 3))
    for change in ({"base64": "?"}, {"shape": [4]}, {"type": "O"}, {"base64": "AAAA"}):
        with pytest.raises((ValueError, TypeError)):
            unpack(good | change)
