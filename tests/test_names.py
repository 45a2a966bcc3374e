import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_proposals import RECORDS, record, stored, write_json

from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.foreign import keys_to_ids
from fastrcnn.proposals.proposals import open_proposals, read_proposals
from fastrcnn.proposals.stored import write_stored


def at(path, image_id=None):
    return replace(record(image_id or Path(path).stem), path=Path(path))


KEYS = {  # keys, paths of pictures (or path and id) -> ids
    "ids": (["a", "b"], ["d/a.jpg", "d/b.jpg"], ["a", "b"]),
    "file names": (["a.jpg", "b.PNG"], ["d/a.jpg", "d/b.png"], ["a", "b"]),
    "paths": (["images/a.jpg", "C:\\x\\b.jpg"], ["d/a.jpg", "d/b.jpg"], ["a", "b"]),
    "other images beside": (["a.jpg", "z.jpg"], ["d/a.jpg"], ["a", "z.jpg"]),
    "an id wins": (["a", "x/a.jpg"], ["x/a.jpg"], ["a", "x/a.jpg"]),
    "two keys fit": (["x/a.jpg", "y/a.jpg"], ["d/a.jpg"], ["x/a.jpg", "y/a.jpg"]),
    "two images fit": (["a.jpg"], [("1/a.jpg", "1/a"), ("2/a.jpg", "2/a")], ["a.jpg"]),
    "the longer end": (["1/a.jpg", "a.jpg"], [("d/1/a.jpg", "1/a"), ("d/a.jpg", "a")], ["1/a", "a"]),
    "two sets": (["d1/a", "d2/a"], [("x/d1/a.jpg", "a")], ["a", "d2/a"]),
    "an id with its folder": (["a"], [("x/d1/a.jpg", "d1/a")], ["d1/a"]),
    "another Unicode form": (["a\u0308.jpg"], ["d/\u00e4.jpg"], ["\u00e4"]),
}


@pytest.mark.parametrize(("keys", "paths", "expected"), KEYS.values(), ids=KEYS.keys())
def test_keys_mean_the_image_that_they_fit_best(keys, paths, expected):
    records = [at(path) if isinstance(path, str) else at(*path) for path in paths]
    assert keys_to_ids(keys, records) == expected


names = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join), unique=True, max_size=6)


@given(keys=names, paths=names)
def test_no_two_keys_ever_mean_one_image(keys, paths):
    found = keys_to_ids(keys, [at(f"{path}.jpg", path) for path in paths])
    assert len(found) == len(set(found)) == len(keys)
    assert all(key == new or new in paths for key, new in zip(keys, found, strict=True))
    assert all(key in found for key in keys if key in paths)


def test_a_json_file_keyed_by_file_name_serves(tmp_path):
    path = write_json(tmp_path / "p.json", {"images/a.jpg": [[-1, 0, 9, 9]], "images/b.jpg": [], "images/c.jpg": []})
    proposals = open_proposals(path, RECORDS)
    np.testing.assert_array_equal(proposals["a"], [[0, 0, 9, 9]])  # clipped, as its image is known


def test_a_stored_file_of_ids_without_folder_serves_and_travels(tmp_path):
    path = tmp_path / "p.safetensors"
    write_stored(path, stored())
    records = [replace(r, id=f"d1/{r.id}", path=Path("d1") / r.path) for r in RECORDS]
    proposals = open_proposals(path, records)
    copy = pickle.loads(pickle.dumps(proposals))
    for image_id in ("d1/a", "d1/b", "d1/c"):
        np.testing.assert_array_equal(copy[image_id], read_proposals(path, [])[image_id[3:]])


@pytest.mark.parametrize("data", [b"MATLAB 7.3 MAT-file, Platform".ljust(512) + b"\x89HDF\r\n", b"\x89HDF\r\n\x1a\n"])
def test_a_mat_file_of_version_7_3_is_named(tmp_path, data):
    (tmp_path / "p.mat").write_bytes(data)
    with pytest.raises(FastRCNNError, match=r"p.mat: .*7\.3 .*save it in MATLAB with -v7"):
        read_proposals(tmp_path / "p.mat", RECORDS)


def test_the_order_of_keys_does_not_matter(tmp_path):
    boxes = {"y/b.jpg": [[0, 0, 5, 5]], "x/a.jpg": [[0, 0, 6, 6]], "c.jpg": []}
    for some in (boxes, dict(reversed(boxes.items()))):
        path = write_json(tmp_path / "p.json", some)
        assert open_proposals(path, RECORDS)["b"].tolist() == [[0, 0, 5, 5]]
