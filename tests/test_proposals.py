import io
import json
import logging
import os
import pickle
import signal
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_mutations import fuzzing, mutated
from safetensors.numpy import save_file
from scipy.io import savemat

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals import mat_file
from fastrcnn.proposals.mat_file import read_mat
from fastrcnn.proposals.proposals import find_problems, open_proposals, read_proposals
from fastrcnn.proposals.stored import METADATA_KEY, StoredProposals, clean, write_stored

MADE_BY = {"method": "fast", "max_per_image": 2000, "min_size": 2, "long_side": 500, "opencv": "5.0.0"}
IDS = ["a", "b", "c"]
BOXES = [  # of images of 100 x 80 pixels, half open
    np.array([[0, 0, 100, 80], [10, 20, 20, 40], [5, 6, 7, 8]]),
    np.zeros((0, 4), dtype=int),
    np.array([[90, 70, 100, 80], [1, 2, 31, 42]]),
]


def record(image_id="a", width=100, height=80):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return ImageRecord(image_id, Path(f"{image_id}.jpg"), width, height, *nothing, None)


RECORDS = [record(i) for i in IDS]


def stored(ids=IDS, boxes=BOXES, sizes=None, made_by=MADE_BY):
    return StoredProposals(
        ids=list(ids),
        offsets=np.cumsum([0] + [len(b) for b in boxes]),
        boxes=np.concatenate(boxes),
        sizes=np.array([[100, 80]] * len(ids) if sizes is None else sizes),
        digests=np.zeros((len(ids), 16), np.uint8),
        made_by=made_by,
    )


def write_json(path, boxes, **meta):
    convention = {"format": "xyxy", "origin": 0, "end": "exclusive"} | meta
    proposals = {i: np.asarray(b).tolist() for i, b in boxes.items()}
    path.write_text(json.dumps({"meta": convention, "proposals": proposals}))
    return path


def write_npz(path, boxes, **meta):
    convention = {"format": "xyxy", "origin": 0, "end": "exclusive"} | meta
    values = [np.asarray(b).reshape(-1, 4) for b in boxes.values()]
    offsets = np.cumsum([0] + [len(b) for b in values])
    np.savez_compressed(
        path, ids=np.array(list(boxes)), offsets=offsets, boxes=np.concatenate(values), meta=json.dumps(convention)
    )
    return path


def write_mat(path, boxes, ids=None, compressed=True):
    """As MATLAB has them: y1 x1 y2 x2, 1-based, both ends inside."""
    cells = np.empty((1, len(boxes)), object)
    for i, b in enumerate(boxes):
        cells[0, i] = (np.asarray(b, dtype=float).reshape(-1, 4)[:, [1, 0, 3, 2]]) + [1, 1, 0, 0]
    content = {"boxes": cells}
    if ids is not None:
        content["images"] = np.array(ids, dtype=object)[:, None]
    savemat(path, content, do_compression=compressed)
    return path


def write_any(folder, suffix):
    path = folder / f"proposals{suffix}"
    if suffix == ".safetensors":
        write_stored(path, stored())
    elif suffix == ".mat":
        write_mat(path, BOXES, IDS)
    else:
        {".npz": write_npz, ".json": write_json}[suffix](path, dict(zip(IDS, BOXES, strict=True)))
    return path


FORMATS = [".safetensors", ".mat", ".npz", ".json"]


# ---- what is read


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_boxes(tmp_path, suffix):
    proposals = open_proposals(write_any(tmp_path, suffix), RECORDS, ProposalsConfig())
    assert list(proposals) == IDS
    for image_id, boxes in zip(IDS, BOXES, strict=True):
        assert proposals[image_id].dtype == np.float32
        assert proposals[image_id].tolist() == boxes.tolist()


@pytest.mark.parametrize("write", [write_json, write_npz])
@pytest.mark.parametrize(
    ("box", "convention"),
    [  # all of them hold the columns 10 to 19 and the rows 20 to 39, counted from 0
        ([10, 20, 20, 40], ("xyxy", 0, "exclusive")),
        ([10, 20, 19, 39], ("xyxy", 0, "inclusive")),
        ([11, 21, 21, 41], ("xyxy", 1, "exclusive")),
        ([11, 21, 20, 40], ("xyxy", 1, "inclusive")),
        ([10, 20, 10, 20], ("xywh", 0, "exclusive")),
        ([10, 20, 9, 19], ("xywh", 0, "inclusive")),
        ([11, 21, 10, 20], ("xywh", 1, "exclusive")),
        ([11, 21, 9, 19], ("xywh", 1, "inclusive")),
    ],
)
def test_conventions(tmp_path, write, box, convention):
    path = tmp_path / ("p.json" if write is write_json else "p.npz")
    write(path, {"a": [box]}, **dict(zip(("format", "origin", "end"), convention, strict=True)))
    assert open_proposals(path, [record()])["a"].tolist() == [[10, 20, 20, 40]]


@pytest.mark.parametrize("key", ["format", "origin", "end"])
@pytest.mark.parametrize("value", [None, "yxyx", 2, []])
@pytest.mark.parametrize("write", [write_json, write_npz])
def test_a_convention_is_not_guessed(tmp_path, write, key, value):
    path = write(tmp_path / ("p.json" if write is write_json else "p.npz"), {"a": [[1, 2, 3, 4]]}, **{key: value})
    with pytest.raises(FastRCNNError, match=rf'p\.(json|npz).*does not state "{key}"; add "meta"'):
        open_proposals(path, [record()])


def test_mat_without_ids_takes_those_of_the_data_set(tmp_path):
    path = write_mat(tmp_path / "p.mat", BOXES)
    assert open_proposals(path, RECORDS)["c"].tolist() == BOXES[2].tolist()
    with pytest.raises(FastRCNNError, match="3 images and no ids, the data set has 2 images"):
        open_proposals(path, RECORDS[:2])


def test_boxes_a_pixel_outside_are_clipped_and_no_more(tmp_path):
    path = write_mat(tmp_path / "p.mat", [[[-1, 0, 50, 81], [99, 0, 101, 5], [100, 0, 101, 5]]], ["a"])
    assert open_proposals(path, [record()])["a"].tolist() == [[0, 0, 50, 80], [99, 0, 100, 5]]
    path = write_mat(tmp_path / "p.mat", [[[0, 0, 50, 80], [0, 0, 50, 82]]], ["a"])
    with pytest.raises(FastRCNNError, match=r"p.mat: image a: proposal 2 \(0, 0, 50, 82\) is inverted or outside"):
        open_proposals(path, [record()])


def test_cleaning_keeps_the_first_of_equals_and_the_order(tmp_path):
    boxes = [[50, 0, 60, 9], [0, 0, 9, 9], [50, 0, 60, 9], [5, 5, 6, 20], [5, 5, 20, 6], [1, 1, 3, 3], [0, 0, 9, 9]]
    path = write_json(tmp_path / "p.json", {"a": boxes})
    kept = [[50, 0, 60, 9], [0, 0, 9, 9], [1, 1, 3, 3]]
    assert read_proposals(path, [record()], ProposalsConfig(min_size=2))["a"].tolist() == kept
    assert read_proposals(path, [record()], ProposalsConfig(min_size=2, max_per_image=2))["a"].tolist() == kept[:2]
    assert len(read_proposals(path, [record()])["a"]) == 5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.integers(-2, 4)] * 4), max_size=30), st.integers(1, 3))
def test_clean_against_a_loop(boxes, min_size):
    kept = []
    for x1, y1, x2, y2 in boxes:
        tiny = 0 <= x2 - x1 < min_size or 0 <= y2 - y1 < min_size
        if not tiny and [x1, y1, x2, y2] not in kept:
            kept.append([x1, y1, x2, y2])
    assert clean(np.array(boxes, dtype=float).reshape(-1, 4), min_size).tolist() == kept


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 4), max_size=3), min_size=1, max_size=4))
def test_stored_form_returns_what_was_put_in(tmp_path_factory, boxes):
    path = tmp_path_factory.mktemp("stored") / "p.safetensors"
    ids = [f"é {i}" for i in range(len(boxes))]
    write_stored(path, stored(ids, [np.array(b).reshape(-1, 4) for b in boxes]))
    proposals = read_proposals(path, [])
    assert [list(map(tuple, proposals[i])) for i in ids] == boxes


@pytest.mark.parametrize("positioned", [True, False])
def test_an_open_file_is_read_to_the_end_whatever_takes_its_name(tmp_path, monkeypatch, positioned):
    """By systems with and without reads at a position (Windows)."""
    if not positioned:
        monkeypatch.delattr(os, "pread", raising=False)
    path = tmp_path / "p.safetensors"
    write_stored(path, stored())
    opened = read_proposals(path, [])
    write_stored(tmp_path / "other", stored(["a"], [np.array([[0, 0, 40000, 5]])]))
    if sys.platform != "win32":
        (tmp_path / "other").replace(path)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert [rows.tolist() for rows in pool.map(opened.__getitem__, IDS)] == [b.tolist() for b in BOXES]


def test_whole_numbers_are_stored_in_two_bytes(tmp_path):
    path = tmp_path / "p.safetensors"
    write_stored(path, stored())
    assert read_proposals(path, []).stored.rows(0).dtype == np.int16
    write_stored(path, stored(["a"], [np.array([[0, 0, 40000, 5]])]))
    assert read_proposals(path, [])["a"].tolist() == [[0, 0, 40000, 5]]


@pytest.mark.parametrize("suffix", FORMATS)
def test_pickled_copy_reads_the_same(tmp_path, suffix):
    proposals = open_proposals(write_any(tmp_path, suffix), RECORDS, ProposalsConfig(max_per_image=2000))
    copy = pickle.loads(pickle.dumps(proposals))
    assert [copy[i].tolist() for i in IDS] == [b.tolist() for b in BOXES]


def test_pickled_copy_of_a_stored_file_holds_no_boxes_and_notices_another_file(tmp_path):
    path = tmp_path / "p.safetensors"
    write_stored(path, stored(["a"], [np.arange(40000).reshape(-1, 4)]))
    data = pickle.dumps(read_proposals(path, []))
    assert len(data) < 1000
    write_stored(path, stored(["a"], [np.arange(40000).reshape(-1, 4) + 1]))
    with pytest.raises(FastRCNNError, match="p.safetensors: has changed"):
        pickle.loads(data)


# ---- what does not fit the images


def test_problems_are_reported_by_image(tmp_path):
    path = tmp_path / "p.safetensors"
    bad = [[0, 0, 9, 9], [5, 5, 4, 9]]
    write_stored(
        path, stored(list("abcd"), [BOXES[0], np.array(bad), BOXES[2], BOXES[0]], [[100, 80]] * 3 + [[80, 100]])
    )
    problems = find_problems(read_proposals(path, []), [record(i) for i in "abxcd"])
    assert [(p.kind, p.text.split(";")[0]) for p in problems] == [
        ("proposal outside", "image b: proposal 2 (5, 5, 4, 9) is inverted or outside its image of 100x80 pixels"),
        ("proposals missing", "image x: has no proposals"),
        ("proposals of another size", "image d: proposals were made from 80x100 pixels, the image has 100x80"),
    ]
    with pytest.raises(FastRCNNError, match=r"image b: proposal 2 .*\(2 more images have problems\)"):
        open_proposals(path, [record(i) for i in "abxcd"])


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box",
    [[-1, 0, 5, 5], [0, -2, 5, 5], [0, 0, 101, 5], [0, 0, 5, 81], [5, 0, 5, 5], [6, 0, 5, 5], [0, 9, 5, 5]]
    + [[NAN, 0, 5, 5], [0, 0, NAN, 5], [0, 0, INFINITY, 5]],
)
def test_no_bad_box_gets_through(tmp_path, box):
    path = tmp_path / "p.safetensors"
    write_stored(path, stored(["a"], [np.array([[0, 0, 9, 9], box])]))
    with pytest.raises(FastRCNNError, match=r"p.safetensors: image a: proposal 2 \("):
        open_proposals(path, [record()])


def test_nan_in_a_file_of_ones_own_is_reported(tmp_path):
    path = write_npz(tmp_path / "p.npz", {"a": [[0, 0, 9, 9], [0, np.nan, 5, 5]]})
    with pytest.raises(FastRCNNError, match=r"p.npz: image a: proposal 2 \(0, nan, 5, 5\)"):
        open_proposals(path, [record()])


@pytest.mark.parametrize("suffix", FORMATS)
def test_proposals_of_another_set_are_refused(tmp_path, suffix):
    with pytest.raises(FastRCNNError, match=r"another set \(images a, b, c\), none of image x"):
        open_proposals(write_any(tmp_path, suffix), [record("x"), record("y"), record("z")])


def test_further_images_are_only_noted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    open_proposals(write_any(tmp_path, ".npz"), RECORDS[:1])
    assert "2 images beyond the 1 of the data set" in caplog.text


def test_boxes_of_smaller_images_give_a_warning(tmp_path, caplog):
    path = write_json(tmp_path / "p.json", {"a": [[0, 0, 50, 40]], "b": [[10, 10, 50, 39]]})
    open_proposals(path, [record("a", 100, 80), record("b", 100, 80)])
    assert "as if made from smaller images" in caplog.text
    caplog.clear()
    open_proposals(path, [record("a", 50, 40), record("b", 50, 40)])
    assert "smaller" not in caplog.text


def test_settings_of_the_file_must_be_those_of_the_config(tmp_path):
    path = write_any(tmp_path, ".safetensors")
    assert len(open_proposals(path, RECORDS, ProposalsConfig(max_per_image=2))["a"]) == 2  # the first of those made
    for wrong in ({"method": "quality"}, {"min_size": 3}, {"long_side": 400}, {"max_per_image": 3000}):
        key = next(iter(wrong))
        with pytest.raises(FastRCNNError, match=rf"proposals.{key} = .*the config says {wrong[key]}"):
            open_proposals(path, RECORDS, ProposalsConfig(**wrong))


def test_the_cap_is_for_our_own_search(tmp_path):
    """All boxes of other files are used, unless the user set a cap; a file of another cap than 2,000 has its own."""
    rows = np.array([[0, 0, x, y] for x in range(2, 101) for y in range(2, 42)])
    path = write_json(tmp_path / "p.json", {"a": rows})
    assert len(read_proposals(path, [record()], ProposalsConfig())["a"]) == 3960
    assert len(read_proposals(path, [record()], ProposalsConfig(max_per_image=5))["a"]) == 5
    cases = ("fast", 2000, 2000), ("fast", 5000, 2000), ("quality", 2000, 2000), ("quality", 10000, 3960)
    for method, cap, used in cases:
        made_by = MADE_BY | {"method": method, "max_per_image": cap}
        write_stored(tmp_path / "p.safetensors", stored(["a"], [rows[:cap]], made_by=made_by))
        config = ProposalsConfig(method=method)
        assert len(read_proposals(tmp_path / "p.safetensors", [record()], config)["a"]) == used
    write_stored(tmp_path / "p.safetensors", stored(["a"], [rows[:100]], made_by=MADE_BY | {"max_per_image": 100}))
    with pytest.raises(FastRCNNError, match="max_per_image = 100, the config says 2000"):
        read_proposals(tmp_path / "p.safetensors", [record()], ProposalsConfig())


# ---- what is damaged or hostile


@pytest.mark.parametrize("suffix", [*FORMATS, ".txt"])
def test_missing_empty_or_unknown_file(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    with pytest.raises(FastRCNNError, match=rf"p\{suffix}: "):
        open_proposals(path, RECORDS)
    path.touch()
    with pytest.raises(FastRCNNError, match=rf"p\{suffix}: "):
        open_proposals(path, RECORDS)


@pytest.mark.parametrize("suffix", FORMATS)
def test_cut_files_are_refused(tmp_path, suffix):
    path = write_any(tmp_path, suffix)
    data = path.read_bytes()
    steps = 4 if suffix == ".mat" else 40  # each reading of a .mat file starts a process
    for length in range(0, len(data) - 1, max(1, len(data) // steps)):
        path.write_bytes(data[:length])
        with pytest.raises(FastRCNNError, match=r"proposals\."):
            open_proposals(path, RECORDS)


META = {"version": 1, "format": "xyxy", "origin": 0, "end": "exclusive", "made_by": MADE_BY, "ids": IDS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 3, -1, 5])}, "offsets do not grow"),
        ({"offsets": np.array([0, 2**62, 3, 5])}, "offsets do not grow"),
        ({"offsets": np.array([0, 3, 3, 6])}, "offsets do not grow from 0 to its number of boxes, 5"),
        ({"offsets": np.array([1, 3, 3, 5])}, "offsets do not grow"),
        ({"offsets": np.array([0, 3, 5])}, "offsets are not 4 integers for 3 images"),
        ({"offsets": np.array([0.0, 3, 3, 5])}, "offsets are not 4 integers"),
        ({"boxes": np.zeros((5, 5), np.int16)}, r"\[5, 5\], not \[B, 4\]"),
        ({"boxes": np.zeros((5, 4), np.float64)}, "F64"),
        ({"sizes": np.zeros((3, 2), np.int32)}, "sizes are damaged"),
        ({"sizes": np.ones((2, 2), np.int32)}, "sizes are damaged"),
        ({"digests": np.ones((3, 2), np.uint8)}, "digests are damaged"),
        ({"more": np.ones(3)}, "it holds boxes, digests, more"),
        ({"ids": ["a", "b", "a"]}, "image a is listed twice in it"),
        ({"ids": [1, 2, 3]}, "ids are not a list of strings"),
        ({"version": 2}, "version 1"),
        ({"origin": 1}, "metadata are damaged"),
        ({"made_by": None}, "metadata are damaged"),
    ],
)
def test_stored_numbers_that_do_not_fit(tmp_path, change, message):
    tensors = {
        "boxes": np.concatenate(BOXES).astype(np.int16),
        "offsets": np.array([0, 3, 3, 5]),
        "sizes": np.full((3, 2), 100, np.int32),
        "digests": np.zeros((3, 16), np.uint8),
    }
    path = tmp_path / "p.safetensors"
    is_array = isinstance(next(iter(change.values())), np.ndarray)
    meta = META if is_array else META | change
    save_file(tensors | (change if is_array else {}), path, metadata={METADATA_KEY: json.dumps(meta)})
    with pytest.raises(FastRCNNError, match=rf"p.safetensors: cannot be read: .*{message}"):
        open_proposals(path, RECORDS)


def test_safetensors_of_something_else(tmp_path):
    save_file({"fc6.weight": np.zeros((2, 2))}, tmp_path / "p.safetensors")
    with pytest.raises(FastRCNNError, match="not of proposals"):
        open_proposals(tmp_path / "p.safetensors", RECORDS)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def test_npz_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {"ids": np.array(["a"]), "offsets": np.array([0, 1]), "meta": np.array("{}")}
    np.savez("p.npz", boxes=np.array([Bomb()], dtype=object), **arrays)
    with pytest.raises(FastRCNNError, match="p.npz: cannot be read"):
        open_proposals("p.npz", RECORDS)
    assert not Path("unpickled").exists()


def test_npz_bomb_is_refused(tmp_path):
    path = tmp_path / "p.npz"
    np.savez_compressed(path, boxes=np.zeros((10**6, 4)))
    with pytest.raises(FastRCNNError, match="p.npz: cannot be read: it is a decompression bomb"):
        open_proposals(path, RECORDS)


def test_npz_header_that_asks_for_more_than_there_is(tmp_path):
    path = write_npz(tmp_path / "p.npz", {"a": [[1, 2, 3, 4]]})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**14, 4)})
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, header.getvalue() if name == "boxes.npy" else data)
    with pytest.raises(FastRCNNError, match="p.npz: cannot be read"):
        open_proposals(path, RECORDS)


def test_mat_bomb_is_refused(tmp_path):
    write_mat(tmp_path / "p.mat", [np.zeros((10**6, 4))], ["a"])
    with pytest.raises(FastRCNNError, match="p.mat: cannot be read: it is a decompression bomb"):
        open_proposals(tmp_path / "p.mat", [record()])


@pytest.mark.parametrize("dtype", ["f8", "f4", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_mat_of_every_type_of_number(tmp_path, dtype):
    rows = np.array([[1, 2, 30, 40], [5, 6, 70, 80]], dtype)
    savemat(tmp_path / "p.mat", {"boxes": cells(rows, rows[:0]), "images": cells("é x", "b"), "more": {"a": rows}})
    ids, boxes = read_mat(tmp_path / "p.mat")
    assert ids == ["é x", "b"] and [b.tolist() for b in boxes] == [rows.tolist(), []]


def crash(*_):
    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)


def test_a_reader_that_dies_takes_nothing_along(tmp_path, monkeypatch):
    monkeypatch.setattr(mat_file, "_send", crash)
    with pytest.raises(FastRCNNError, match=r"p\.mat: cannot be read: it is damaged: the process that read it died"):
        open_proposals(write_mat(tmp_path / "p.mat", BOXES, IDS), RECORDS)


def cells(*values):
    result = np.empty((1, len(values)), object)
    result[0, :] = values
    return result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"boxes": np.ones((3, 4))}, "no cell array `boxes`"),
        ({"proposals": cells(np.ones((3, 4)))}, "no cell array `boxes`"),
        ({"boxes": cells({"a": 1})}, "are not rows of 4 numbers"),
        ({"boxes": cells(cells(np.ones((1, 4))))}, "are not rows of 4 numbers"),
        ({"boxes": cells(np.ones((1, 4)) * 1j)}, "are not rows of 4 numbers"),
        ({"boxes": cells(np.ones((2, 5)))}, "image number 1: its proposals are not rows of 4 numbers"),
        ({"boxes": cells("text")}, "image number 1: its proposals are not rows of 4 numbers"),
        ({"boxes": cells(np.ones((1, 4))), "images": cells("a", "b")}, "not the ids of the 1 entries"),
        ({"boxes": cells(np.ones((1, 4))), "images": np.ones((1, 1))}, "not the ids of the 1 entries"),
        ({"boxes": cells(np.ones((1, 4))), "images": cells(np.ones(1))}, "not the ids of the 1 entries"),
        ({"boxes": cells(*[np.ones((1, 4))] * 2), "images": cells("a", "a")}, "image a is listed twice in it"),
    ],
)
def test_mat_of_other_contents(tmp_path, content, message):
    savemat(tmp_path / "p.mat", content)
    with pytest.raises(FastRCNNError, match=f"p.mat: cannot be read: .*{message}"):
        open_proposals(tmp_path / "p.mat", [record()])


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"proposals": {"a": [[0, 0, 5, 5]]}}',
        '{"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": {"a": [["0", "0", "5", "5"]]}}',
        '{"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": {"a": [[0, 0, 5]]}}',
        '{"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": {"a": [[0, 0, 5, 5], [1]]}}',
        '{"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": {"a": [[0, 0, 5, true]]}}'
        .replace("[0, 0, 5, true]", "[false, false, true, true]"),
        '{"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": {"a": [[0, 0, 5, 1e999]]}}',
        '{"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": {"a": [], "a": []}}',
        "[" * 100000,
        "\xff",
    ],
)  # fmt: skip
def test_json_of_other_contents(tmp_path, text):
    (tmp_path / "p.json").write_text(text, encoding="latin-1")
    with pytest.raises(FastRCNNError, match=r"p.json: "):
        open_proposals(tmp_path / "p.json", [record()])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".json"])
@fuzzing
@given(data=st.data())
def test_fuzz(tmp_path, suffix, data):
    check_fuzzed(write_any(tmp_path, suffix), data)


@pytest.mark.parametrize("compressed", [True, False])
@settings(fuzzing, max_examples=fuzzing.max_examples // 20)  # each starts a process
@given(data=st.data())
def test_fuzz_mat(tmp_path, compressed, data):
    check_fuzzed(write_mat(tmp_path / "proposals.mat", BOXES, IDS, compressed), data)


def check_fuzzed(path, data):
    """A mutated file gives a result that fits the images, or our own error that names it."""
    path.write_bytes(data.draw(mutated([path.read_bytes()])))
    try:
        proposals = open_proposals(path, RECORDS, ProposalsConfig())
    except FastRCNNError as e:
        assert str(path) in str(e)
    else:
        for image_id in IDS:
            x1, y1, x2, y2 = proposals[image_id].T
            assert ((x1 >= 0) & (x1 < x2) & (x2 <= 100) & (y1 >= 0) & (y1 < y2) & (y2 <= 80)).all()
