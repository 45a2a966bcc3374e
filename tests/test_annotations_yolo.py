import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_annotations import CLASSES, expect_error
from oracles_mutations import fuzzing, mutated
from PIL import Image

from fastrcnn.annotations.read import read_data_sets
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

W, H = 40, 20


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H)).save(path)


def make(root, files, description=None):
    """Files under root: text, or None for a picture; `description` is data.yaml."""
    for name, text in files.items():
        if text is None:
            draw(root / name)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
    if description is not None:
        (root / "data.yaml").write_text(description, encoding="utf-8")
    return DataSetConfig(format="yolo", root=str(root))


def one(root, text, names="cat\ndog\n"):
    """A set of one picture, a.jpg."""
    return make(root, {"a.jpg": None, "a.txt": text, "classes.txt": names})


def read(dataset, problems=None, classes=CLASSES, **data):
    return read_data_sets([dataset], DataConfig(**data), classes, problems)


def kinds(problems):
    return [(p.kind, p.outcome) for p in problems]


# ---- lines


def test_lines_are_centres_and_sizes_in_fractions(tmp_path):
    problems = []
    (record,) = read(one(tmp_path, "1 0.5 0.5 1 1\n\n0 0.25 0.5\t0.25 0.1\r\n"), problems)
    assert (record.id, record.annotation, record.width, record.height) == ("a", tmp_path / "a.txt", W, H)
    np.testing.assert_allclose(record.boxes, [[0, 0, 40, 20], [5, 9, 15, 11]], rtol=1e-6)
    assert (record.classes.tolist(), record.difficult.tolist()) == ([2, 1], [False, False])
    assert kinds(problems) == [("box tiny", "noted")]


def test_six_digits_at_the_edge_end_on_the_edge(tmp_path):
    (record,) = read(one(tmp_path, "0 0.166666 0.833334 0.333334 0.333334\n"))
    assert record.boxes[0, 0] == 0 and record.boxes[0, 3] == H
    expect_error(lambda: read(one(tmp_path, "0 0.16 0.5 0.333334 0.3\n")), "a.txt: line 1", "leaves the image")


@pytest.mark.parametrize("line", ["0 0.1 0.2 0.5 0.2 0.3 0.9", "0 0.1 0.2 0.5 0.2 0.5 0.9 0.1 0.9"])
def test_polygons_and_turned_boxes_give_the_box_around_them(tmp_path, line):
    problems = []
    (record,) = read(one(tmp_path, f"{line}\n{line}\n1 0.5 0.5 0.5 0.5\n"), problems)
    np.testing.assert_allclose(record.boxes, [[4, 4, 20, 18]] * 2 + [[10, 5, 30, 15]], rtol=1e-6)
    assert kinds(problems) == [("polygon", "noted")] and "2 objects" in str(problems[0])


def test_key_points_behind_the_box_are_not_a_polygon(tmp_path):
    files = {"images/a.jpg": None, "labels/a.txt": "0 0.5 0.5 0.5 0.5 0.1 0.1 0.2 0.2\n"}
    dataset = make(tmp_path, files, "names: [cat]\nkpt_shape: [2, 2]\n")
    np.testing.assert_allclose(read(dataset)[0].boxes, [[10, 5, 30, 15]])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", ("six numbers", "confidence", "predictions")),
        ("0 0.5 0.5 0.2", ("holds 4 numbers", "class cx cy w h")),
        ("0 0.5 0.5 0.2 0.2 0.9 0.9 0.9", ("holds 8 numbers",)),
        ("0 0,5 0,5 0,2 0,2", ("numbers", "with a dot")),
        ("cat 0.5 0.5 0.2 0.2", ("'cat 0.5", "numbers")),
        ("0 nan 0.5 0.2 0.2", ("numbers",)),
        ("0 0.5 0.5 0.2 1e999", ("numbers",)),
        ("2 0.5 0.5 0.2 0.2", ("class 2", "classes.txt", "0 to 1")),
        ("-1 0.5 0.5 0.2 0.2", ("class -1", "0 to 1")),
        ("0.5 0.5 0.5 0.2 0.2", ("class 0.5",)),
        ("0 20 10 8 4", ("not in fractions", "pixels", "on_bad_box: skip")),
        ("0 0.5 0.5 -0.2 0.2", ("inside out", "on_bad_box")),
        ("0 0.5 0.5 0 0.2", ("is empty", "on_bad_box")),
        ("0 1.2 0.5 0.2 0.2", ("leaves the image",)),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path, line, words):
    expect_error(lambda: read(one(tmp_path, f"0 0.5 0.5 0.5 0.5\n\n{line}\n")), "a.txt: line 3: ", *words)


def test_pixels_are_skipped_and_never_clipped(tmp_path):
    problems = []
    (record,) = read(one(tmp_path, "0 20 10 8 4\n"), problems, on_bad_box="clip")
    assert len(record.boxes) == 0 and kinds(problems) == [("box not in fractions", "skipped")]


def test_label_files_may_be_empty_or_missing_or_of_no_picture(tmp_path):
    files = {"a.jpg": None, "a.txt": "", "b.jpg": None, "c.txt": "0 0.5 0.5 0.5 0.5", "train.txt": "a.jpg"}
    dataset = make(tmp_path / "set", {**files, "README.txt": "hello", "classes.txt": "cat"})
    dataset.split = str(tmp_path / "set")  # a part may be any folder
    dataset.split = None
    (tmp_path / "set" / "train.txt").unlink()
    problems = []
    first, second = read(dataset, problems)
    assert first.annotation.name == "a.txt" and second.annotation is None
    assert len(first.boxes) == len(second.boxes) == 0
    assert [(p.kind, p.file.name) for p in problems] == [
        ("label without picture", "c.txt"),
        ("missing annotation", "b.jpg"),
    ]


def test_a_label_file_that_is_no_text_is_named(tmp_path):
    dataset = one(tmp_path, "")
    (tmp_path / "a.txt").write_bytes(b"0 0.5 \xff\xfe")
    expect_error(lambda: read(dataset), tmp_path / "a.txt", "not a text file")


# ---- names


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]", "names:\n  0: cat\n  1: dog", "names:\n- cat\n- dog\nnc: 2", "names: {1: dog, 0: 'cat'}"],
)
def test_names_are_a_list_or_a_mapping(tmp_path, names):
    files = {"images/a.jpg": None, "labels/a.txt": "1 0.5 0.5 0.5 0.5\n"}
    assert read(make(tmp_path, files, names))[0].classes.tolist() == [2]


def test_names_that_yaml_has_other_words_for_are_names(tmp_path):
    files = {"images/a.jpg": None, "labels/a.txt": "".join(f"{n} 0.5 0.5 0.5 0.5\n" for n in range(6))}
    names = ["off", "yes", "007", "3.10", "null", "1e3"]
    dataset = make(tmp_path, files, f"names: [{', '.join(names)}]")
    assert read(dataset, classes=names)[0].classes.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["classes.txt", "obj.names", "_darknet.labels"])
def test_names_may_be_in_a_file_of_lines(tmp_path, name):
    dataset = make(tmp_path, {"a.jpg": None, "a.txt": "1 0.5 0.5 0.5 0.5\n", name: "\ufeffcat\n dog \n\n"})
    assert read(dataset)[0].classes.tolist() == [2]
    expect_error(lambda: read(dataset, classes=["cat"]), "a.txt: line 1", "'dog'", "nearest: 'cat'")


@pytest.mark.parametrize("names", ["names: cat", "names: []", "names: [[cat]]", "names: {a: cat}", "names: {0: [cat]}"])
def test_other_names_are_refused(tmp_path, names):
    expect_error(lambda: read(make(tmp_path, {"a.jpg": None}, names)), "data.yaml", "names must be")


def test_missing_or_several_descriptions_are_named(tmp_path):
    dataset = make(tmp_path, {"a.jpg": None, "a.txt": "0 0.5 0.5 0.5 0.5\n"})
    expect_error(lambda: read(dataset), tmp_path, "data.yaml", "classes.txt")
    make(tmp_path, {"config.yaml": "classes: [cat]\n", "one.yaml": "names: [cat]\nnc: 3\n"})
    problems = []
    read(dataset, problems)
    assert kinds(problems) == [("names differ", "noted")]
    make(tmp_path, {"two.yaml": "names: [dog]\n"})
    expect_error(lambda: read(dataset), "one.yaml, two.yaml", "`annotations`")
    dataset.annotations = str(tmp_path / "two.yaml")
    assert read(dataset)[0].classes.tolist() == [2]
    (tmp_path / "two.yaml").write_text("names: [")
    expect_error(lambda: read(dataset), "two.yaml", "not YAML")


# ---- layouts

LABEL = "0 0.5 0.5 0.5 0.5\n"
LAYOUTS = {
    "Ultralytics": (
        {"images/train/s/a.jpg": None, "labels/train/s/a.txt": LABEL, "images/val/b.jpg": None, "labels/val/b.txt": ""},
        "path: .\ntrain: images/train\nval: images/val\ntest:\nnames: [cat]",
    ),
    "Ultralytics, moved": (
        {"images/train/s/a.jpg": None, "labels/train/s/a.txt": LABEL, "images/val/b.jpg": None},
        "path: /home/me/datasets/mine\ntrain: images/train\nval: images/val\nnames: [cat]",
    ),
    "Roboflow": (
        {"train/images/s/a.jpg": None, "train/labels/s/a.txt": LABEL, "valid/images/b.jpg": None},
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']",
    ),
    "absolute": (
        {"train/images/s/a.jpg": None, "train/labels/s/a.txt": LABEL, "valid/images/b.jpg": None},
        "train: C:\\Users\\me\\train\\images\nval: /somewhere/valid/images\nnames: ['cat']",
    ),
    "folders only": (
        {"images/train/s/a.jpg": None, "labels/train/s/a.txt": LABEL, "images/val/b.jpg": None, "classes.txt": "cat"},
        None,
    ),
    "Roboflow Darknet": ({"train/s/a.jpg": None, "train/s/a.txt": LABEL, "train/_darknet.labels": "cat"}, None),
    "list": (
        {"images/s/a.jpg": None, "labels/s/a.txt": LABEL, "images/b.jpg": None, "t.txt": "./images/s/a.jpg\n\n"},
        "train: t.txt\nval: [images/none]\nnames: [cat]",
    ),
    "CVAT": (
        {
            "obj_train_data/s/a.jpg": None,
            "obj_train_data/s/a.txt": LABEL,
            "obj.names": "cat",
            "obj.data": "classes = 1",
            "train.txt": "data/obj_train_data/s/a.jpg\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_tools(tmp_path, layout):
    files, description = LAYOUTS[layout]
    dataset = make(tmp_path, files, description)
    dataset.split = "train"
    (record,) = read(dataset)
    np.testing.assert_allclose(record.boxes, [[10, 5, 30, 15]])
    assert record.id == {"CVAT": "obj_train_data/s/a"}.get(layout, "s/a")


def test_several_folders_are_one_part_and_a_part_is_named(tmp_path):
    files = {"one/images/a.jpg": None, "one/labels/a.txt": LABEL, "two/images/b.jpg": None}
    dataset = make(tmp_path, files, "train: [one/images, two/images]\nval: two/images\nnames: [cat]")
    expect_error(lambda: read(dataset), "train, val", "`split`")
    dataset.split = "train"
    assert [(r.id, len(r.boxes)) for r in read(dataset)] == [("a", 1), ("b", 0)]
    dataset.split = "valid"  # Roboflow's folder is so called, its key is val
    assert [r.id for r in read(dataset)] == ["b"]
    dataset.split = "test"
    expect_error(lambda: read(dataset), "no part test", "train, val")


def test_what_was_moved_is_said_once(tmp_path):
    files, description = LAYOUTS["Roboflow"]
    dataset, problems = make(tmp_path, files, description), []
    dataset.split = "train"
    read(dataset, problems)
    assert kinds(problems) == [("moved", "noted")] and str(tmp_path / "train/images") in str(problems[0])
    (tmp_path / "data.yaml").write_text("train: ../gone\nnames: [cat]")
    expect_error(lambda: read(dataset), "data.yaml", "gone", "is not there")


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path):
    files = {"pictures/s/a.jpg": None, "labelled/s/a.txt": LABEL, "labelled/classes.txt": "dog"}
    make(tmp_path, files)
    dataset = DataSetConfig(format="yolo", root=str(tmp_path / "pictures"), annotations=str(tmp_path / "labelled"))
    assert [(r.id, r.classes.tolist()) for r in read(dataset)] == [("s/a", [2])]


def test_two_pictures_of_one_label_are_named(tmp_path):
    dataset = one(tmp_path, LABEL)
    draw(tmp_path / "a.png")
    expect_error(lambda: read(dataset), "a.jpg", "a.png", "its id a")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    logging.getLogger("fastrcnn").setLevel(logging.ERROR)
    root = tmp_path_factory.mktemp("damaged")
    yield make(root, {"images/a.jpg": None, "labels/a.txt": ""}, "names: [cat, dog]")
    logging.getLogger("fastrcnn").setLevel(logging.NOTSET)


def check_damaged(dataset, on_bad_box):
    try:
        records = read(dataset, on_bad_box=on_bad_box, on_unknown_class="ignore")
    except FastRCNNError as e:
        assert dataset.root in str(e)
        return
    for record in records:
        assert record.boxes.shape == (len(record.classes), 4) and record.classes.shape == record.difficult.shape
        x1, y1, x2, y2 = record.boxes.T
        assert np.all((x1 >= 0) & (x1 < x2) & (x2 <= W) & (y1 >= 0) & (y1 < y2) & (y2 <= H))


LINES = b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.2 0.2\n\n0 0.1 0.2 0.3 0.4 0.5 0.6\n1 1.0 0.5 2.5e-1 3\n"


@fuzzing
@given(data=mutated([LINES, LINES.decode().encode("utf-16")]), on_bad_box=st.sampled_from(["error", "clip", "skip"]))
def test_mutated_labels_are_read_or_refused(damaged, data, on_bad_box):
    Path(damaged.root, "data.yaml").write_text("names: [cat, dog]")
    Path(damaged.root, "labels", "a.txt").write_bytes(data)
    check_damaged(damaged, on_bad_box)


YAML = b"path: .\ntrain: images\nval: [images, 'images']\nnc: 2\nkpt_shape: [1, 2]\nnames:\n  0: &x cat\n  1: *x\n"


@fuzzing
@given(data=mutated([YAML, b"train: images\nnames: [cat, dog]\n"]), split=st.sampled_from([None, "train", "val"]))
def test_a_mutated_description_is_read_or_refused(damaged, data, split):
    Path(damaged.root, "data.yaml").write_bytes(data)
    Path(damaged.root, "labels", "a.txt").write_bytes(LINES)
    check_damaged(DataSetConfig(format="yolo", root=damaged.root, split=split), "skip")
