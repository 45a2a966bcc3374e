"""The one type for what was found in an image, and its file."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrcnn.detections import FORMAT, DetectedImage, Detections, read_detections, write_detections
from fastrcnn.drawing import draw_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.coco import _annotations
from fastrcnn.evaluate.rows import DetectionRows

CLASSES = ["dog", "tv monitor", "cat"]
BOX, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


def found(*rows, class_list=CLASSES):
    """Rows of (class, score, box)."""
    classes, scores, boxes = zip(*rows, strict=True) if rows else [[]] * 3
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.array(classes, np.int64), np.array(scores, np.float32), tuple(class_list))


IMAGES = [
    DetectedImage("a", found((2, 0.75, BOX)), "photos/a.jpg", 100, 80),
    DetectedImage("b", found((1, 0.5, BOX), (1, 0.25, FAR))),
    DetectedImage("c", found()),
]


def same(a, b):
    if isinstance(a, Detections):
        arrays = [(getattr(a, name), getattr(b, name)) for name in ("boxes", "classes", "scores")]
        return a.class_list == b.class_list and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in arrays)
    about = [(getattr(a, name), getattr(b, name)) for name in ("id", "file", "width", "height")]
    return same(a.found, b.found) and all(x == y for x, y in about)


THREE = found((2, 0.75, BOX), (1, 0.5, FAR), (2, 0.25, FAR))


def test_rows_names_and_length():
    assert len(THREE) == 3 and THREE.names == ["tv monitor", "dog", "tv monitor"]
    assert [(name, score, box.tolist()) for name, score, box in THREE] == [
        ("tv monitor", 0.75, list(BOX)),
        ("dog", 0.5, list(FAR)),
        ("tv monitor", 0.25, list(FAR)),
    ]


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        (0, [0.75]),
        (-1, [0.25]),
        (np.int64(1), [0.5]),
        (slice(1, None), [0.5, 0.25]),
        ([2, 0], [0.25, 0.75]),
        ([], []),
        ([True, False, True], [0.75, 0.25]),
        (np.array([False, False, False]), []),
    ],
)
def test_selection(rows, scores):
    chosen = THREE[rows]
    assert chosen.scores.tolist() == scores and chosen.boxes.shape == (len(scores), 4)
    assert chosen.class_list == THREE.class_list and chosen.classes.dtype == np.int64


def test_selection_by_class_and_score():
    assert THREE.of_class("tv monitor").scores.tolist() == [0.75, 0.25] and len(THREE.of_class("cat")) == 0
    assert THREE.above(0.5).names == ["tv monitor", "dog"]  # at least
    with pytest.raises(FastRCNNError, match="'horse' is not a class; the classes are dog, tv monitor, cat"):
        THREE.of_class("horse")


def test_it_shows_itself_in_one_line():
    assert repr(THREE) == "Detections(3: 2 tv monitor, 1 dog; scores 0.25 to 0.75)"
    assert repr(found()) == "Detections(0)"


def test_a_class_is_not_an_index():
    with pytest.raises(FastRCNNError, match=r"found\['dog'\]: takes indices and masks; found.of_class\('dog'\)"):
        THREE["dog"]


def test_a_notebook_shows_a_bounded_table_with_names_escaped():
    many = found(*[(1, 0.5, BOX)] * 30, class_list=["<script>&"])
    text = many._repr_html_()
    assert text.count("<tr>") == 1 + 20 and text.count("<td>&lt;script&gt;&amp;</td><td>0.500</td>") == 20
    assert "<script" not in text and "and 10 more" in text
    assert found()._repr_html_().count("<tr>") == 1 and "more" not in THREE._repr_html_()


def test_a_plot_is_the_picture_with_boxes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    before = pixels.copy()
    drawn = THREE.plot(pixels, tmp_path / "a.png")
    expected = draw_detections(pixels, THREE.boxes, THREE.names, THREE.scores)
    assert np.array_equal(drawn, expected) and np.array_equal(Image.open(tmp_path / "a.png"), expected)
    assert np.array_equal(pixels, before)
    assert np.array_equal(THREE.plot(Image.fromarray(pixels)), expected)
    written = (tmp_path / "a.png").read_bytes()
    with pytest.raises(FastRCNNError, match="a.png: would be written over"):
        THREE.plot(tmp_path / "a.png", tmp_path / "a.png")
    with pytest.raises(FastRCNNError, match="a.txt: images are written as"):
        THREE.plot(pixels, tmp_path / "a.txt")
    assert (tmp_path / "a.png").read_bytes() == written


def test_rows_of_coco_are_those_of_its_evaluation():
    boxes = np.array([[0.1, 0.2, 10.7, 33.3], [1e-3, 5, 1e4, 6]], np.float32)
    some = Detections(boxes, np.array([3, 1]), np.array([0.7, 0.1], np.float32), tuple(CLASSES))
    rows = DetectionRows(np.array([4, 4]), some.classes, some.scores, some.boxes)
    for own, theirs in zip(some.to_coco(4), _annotations(rows, score=rows.scores), strict=True):
        assert own == {name: theirs[name] for name in own} and len(own) == 4
    ids = {"cat": 17, "dog": 18, "tv monitor": 72}
    assert [row["category_id"] for row in some.to_coco(4, ids)] == [17, 18]
    assert json.loads(json.dumps(some.to_coco(4))) == some.to_coco(4) and found().to_coco(1) == []
    with pytest.raises(FastRCNNError, match="category_ids has no number for cat, dog"):
        some.to_coco(4, {})


def test_supervision_takes_them():
    pytest.importorskip("supervision")
    taken = THREE.to_supervision()
    assert taken.xyxy.tolist() == THREE.boxes.tolist() and taken.confidence.tolist() == THREE.scores.tolist()
    assert taken.class_id.tolist() == [1, 0, 1] and taken.data["class_name"].tolist() == THREE.names
    taken.xyxy += 1
    assert THREE.boxes[0].tolist() == list(BOX) and len(found().to_supervision()) == 0


def test_supervision_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(FastRCNNError, match="pip install supervision"):
        THREE.to_supervision()


def test_another_order_of_the_same_classes():
    moved = THREE.in_classes(["Cat", " DOG", "TV Monitor"])
    assert moved.classes.tolist() == [3, 2, 3] and moved.names == ["TV Monitor", " DOG", "TV Monitor"]
    assert same(moved.in_classes(CLASSES), THREE) and THREE.in_classes(CLASSES) is THREE
    with pytest.raises(FastRCNNError, match="horse"):
        THREE.in_classes(["dog", "tv monitor", "horse"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"boxes": np.zeros((3, 5), np.float32)}, r"`boxes` is float32 \[3, 5\]; with 3 scores it must be"),
        ({"boxes": THREE.boxes.astype(np.float64)}, "`boxes` is float64"),
        ({"boxes": THREE.boxes[:, ::-1]}, "detection 1 has a box that ends before it starts"),
        ({"classes": THREE.classes[:2]}, "`classes` is"),
        ({"classes": np.array([1, 0, 1])}, r"detection 2 has a class outside 1\.\.3"),
        ({"classes": np.array([1, 1, 4])}, r"detection 3 has a class outside 1\.\.3"),
        ({"scores": np.float32(0.5)}, "it must be"),
        ({"scores": np.array([0.5, 0.5, np.nan], np.float32)}, "detection 3 has a score or box that is not finite"),
    ],
)
def test_what_cannot_be_is_refused(columns, words):
    with pytest.raises(FastRCNNError, match=words):
        Detections(**{**vars(THREE), **columns})


floats = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.tuples(st.integers(1, 3), floats, floats, floats, floats, floats), max_size=5), max_size=4))
def test_reading_gives_what_was_written(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("detections") / "detections.json"
    rows = [[(k, score, (min(a, c), min(b, d), max(a, c), max(b, d))) for k, score, a, b, c, d in i] for i in images]
    written = [DetectedImage(f"é {i}", found(*row), f"é/{i}\udcff.jpg", 10**6, 1) for i, row in enumerate(rows)]
    write_detections(path, CLASSES, written)
    class_list, read = read_detections(path)
    assert class_list == CLASSES
    assert all(same(a, b) for a, b in zip(read, written, strict=True))


def test_the_file_says_what_its_boxes_are(tmp_path):
    write_detections(tmp_path / "d.json", CLASSES, IMAGES)
    tree = json.loads((tmp_path / "d.json").read_text())
    assert tree["format"] == {
        "content": "fastrcnn detections",
        "boxes": "xyxy",
        "origin": 0,
        "end": "exclusive",
        "unit": "image pixels",
    }
    assert tree["classes"] == CLASSES
    about = {"id": "a", "file": "photos/a.jpg", "width": 100, "height": 80}
    assert tree["images"][0] == {**about, "classes": ["tv monitor"], "scores": [0.75], "boxes": [[0, 0, 10, 10]]}
    about = dict.fromkeys(("file", "width", "height"))
    assert tree["images"][2] == {"id": "c", **about, "classes": [], "scores": [], "boxes": []}
    lines = (tmp_path / "d.json").read_text().splitlines()
    assert [line.startswith('{"id": ') for line in lines].count(True) == len(IMAGES)  # one line per image


def test_files_of_older_versions_are_read(tmp_path):
    """The layout that tools/test.py wrote: images by id, without file and size."""
    images = {
        "a": {"classes": ["tv monitor"], "scores": [0.75], "boxes": [[0, 0, 10, 10]]},
        "c": {"classes": [], "scores": [], "boxes": []},
    }
    (tmp_path / "d.json").write_text(json.dumps({"format": FORMAT, "classes": CLASSES, "images": images}))
    class_list, read = read_detections(tmp_path / "d.json")
    assert class_list == CLASSES
    assert all(same(a, b) for a, b in zip(read, [DetectedImage("a", IMAGES[0].found), IMAGES[2]], strict=True))


IMAGE = {"id": "000012", "classes": ["dog"], "scores": [0.5], "boxes": [[0, 0, 10, 10]]}
BAD_TREES = {
    "a list": [],
    "no header": {"classes": CLASSES, "images": {}},
    "other boxes": {"format": {**FORMAT, "boxes": "xywh"}, "classes": CLASSES, "images": {}},
    "no classes": {"format": FORMAT, "classes": [], "images": {}},
    "class names that are numbers": {"format": FORMAT, "classes": [1], "images": {}},
    "a class twice": {"format": FORMAT, "classes": ["dog", "Dog"], "images": {}},
    "images as text": {"format": FORMAT, "classes": CLASSES, "images": "a"},
    "an image without id": {"format": FORMAT, "classes": CLASSES, "images": [{**IMAGE, "id": None}]},
    "an image in two lists": {"format": FORMAT, "classes": CLASSES, "images": [[IMAGE]]},
    "an image in a list": {"format": FORMAT, "classes": CLASSES, "images": {"a": [IMAGE]}},
}
BAD_IMAGES = {
    "no scores": {"id": "000012", "classes": ["dog"], "boxes": [[0, 0, 1, 1]]},
    "file that is a number": {**IMAGE, "file": 1},
    "width that is a fraction": {**IMAGE, "width": 1.5},
    "unknown class": {**IMAGE, "classes": ["horse"]},
    "class that is a list": {**IMAGE, "classes": [["dog"]]},
    "too many scores": {**IMAGE, "scores": [0.5, 0.5]},
    "score that is text": {**IMAGE, "scores": ["0.5"]},
    "score that is true": {**IMAGE, "scores": [True]},
    "score that is null": {**IMAGE, "scores": [None]},
    "score that is NaN": {**IMAGE, "scores": [float("nan")]},
    "score beyond float32": {**IMAGE, "scores": [1e300]},
    "score beyond int64": {**IMAGE, "scores": [10**30]},
    "one number for scores": {**IMAGE, "scores": 0.5},
    "box of three": {**IMAGE, "boxes": [[0, 0, 10]]},
    "ragged boxes": {**IMAGE, "classes": ["dog", "dog"], "scores": [1, 1], "boxes": [[0, 0, 10], [0, 0, 10, 10]]},
    "flat box": {**IMAGE, "boxes": [0, 0, 10, 10]},
    "box inside out": {**IMAGE, "boxes": [[10, 0, 0, 10]]},
    "box with infinity": {**IMAGE, "boxes": [[0, 0, float("inf"), 10]]},
}


@pytest.mark.parametrize("tree", BAD_TREES.values(), ids=BAD_TREES.keys())
def test_a_file_that_is_no_detections_is_refused_by_name(tmp_path, tree):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(FastRCNNError, match="bad.json: "):
        read_detections(path)


@pytest.mark.parametrize("image", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_refused_by_name(tmp_path, image):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"format": FORMAT, "classes": CLASSES, "images": [{**IMAGE, "id": "good"}, image]}))
    with pytest.raises(FastRCNNError, match="bad.json: image 000012: "):
        read_detections(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"format": ', b"[" * 100_000])
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(FastRCNNError, match="bad.json: "):
        read_detections(path)
    with pytest.raises(FastRCNNError, match="absent.json: cannot be read"):
        read_detections(tmp_path / "absent.json")


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 8))
def test_mutated_files_give_detections_or_our_error(tmp_path_factory, place, new, cut):
    path = tmp_path_factory.mktemp("mutated") / "d.json"
    write_detections(path, CLASSES, IMAGES)
    content = path.read_bytes()
    place %= len(content)
    path.write_bytes(content[:place] + new + content[place + cut :])
    try:
        _, images = read_detections(path)
    except FastRCNNError as e:
        assert "d.json" in str(e)
    else:
        assert all(isinstance(image.found, Detections) for image in images)
