"""Detections on disk, joined with annotations, and the tables, plots and files made of them."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.report import (
    FORMAT,
    ImageDetections,
    ap_table,
    join,
    plot_precision_recall,
    read_detections,
    recall_table,
    write_detections,
    write_voc_files,
)
from fastrcnn.evaluate.voc import evaluate
from fastrcnn.proposals.recall import proposal_recall

CLASSES = ["dog", "tv monitor", "cat"]


def found(*rows):
    """Rows of (class, score, box)."""
    classes, scores, boxes = zip(*rows, strict=True) if rows else [[]] * 3
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageDetections(boxes, np.array(classes, np.int64), np.array(scores, np.float32))


def record(image_id, *rows):
    """Rows of (class, box, difficult)."""
    classes, boxes, difficult = zip(*rows, strict=True) if rows else [[]] * 3
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    classes, difficult = np.array(classes, np.int64), np.array(difficult, bool)
    return ImageRecord(image_id, Path(f"{image_id}.jpg"), 100, 80, boxes, classes, difficult, None)


BOX, FAR = (0, 0, 10, 10), (50, 50, 60, 60)
RECORDS = [record("b", (1, BOX, False), (3, FAR, True)), record("a", (2, BOX, False)), record("c")]
DETECTIONS = {"a": found((2, 0.75, BOX)), "b": found((1, 0.5, BOX), (1, 0.25, FAR)), "c": found()}


def same(a, b):
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
    return True


floats = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.tuples(st.integers(1, 3), floats, floats, floats, floats, floats), max_size=5), max_size=4))
def test_reading_gives_what_was_written(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("detections") / "detections.json"
    written = {
        f"é {i}": found(*[(k, score, (min(a, c), min(b, d), max(a, c), max(b, d))) for k, score, a, b, c, d in rows])
        for i, rows in enumerate(images)
    }
    write_detections(path, CLASSES, written)
    classes, read = read_detections(path)
    assert classes == CLASSES
    assert list(read) == list(written)
    assert all(same(read[image_id], written[image_id]) for image_id in read)


def test_the_file_says_what_its_boxes_are(tmp_path):
    write_detections(tmp_path / "d.json", CLASSES, DETECTIONS)
    tree = json.loads((tmp_path / "d.json").read_text())
    assert tree["format"] == {
        "content": "fastrcnn detections",
        "boxes": "xyxy",
        "origin": 0,
        "end": "exclusive",
        "unit": "image pixels",
    }
    assert tree["classes"] == CLASSES
    assert tree["images"]["a"] == {"classes": ["tv monitor"], "scores": [0.75], "boxes": [[0, 0, 10, 10]]}
    assert tree["images"]["c"] == {"classes": [], "scores": [], "boxes": []}


IMAGE = {"classes": ["dog"], "scores": [0.5], "boxes": [[0, 0, 10, 10]]}
BAD_TREES = {
    "a list": [],
    "no header": {"classes": CLASSES, "images": {}},
    "other boxes": {"format": {**FORMAT, "boxes": "xywh"}, "classes": CLASSES, "images": {}},
    "no classes": {"format": FORMAT, "classes": [], "images": {}},
    "class names that are numbers": {"format": FORMAT, "classes": [1], "images": {}},
    "a class twice": {"format": FORMAT, "classes": ["dog", "Dog"], "images": {}},
    "images in a list": {"format": FORMAT, "classes": CLASSES, "images": [IMAGE]},
    "an image in a list": {"format": FORMAT, "classes": CLASSES, "images": {"a": [IMAGE]}},
}
BAD_IMAGES = {
    "no scores": {"classes": ["dog"], "boxes": [[0, 0, 1, 1]]},
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
    path.write_text(json.dumps({"format": FORMAT, "classes": CLASSES, "images": {"good": IMAGE, "000012": image}}))
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
    write_detections(path, CLASSES, DETECTIONS)
    content = path.read_bytes()
    place %= len(content)
    path.write_bytes(content[:place] + new + content[place + cut :])
    try:
        _, detections = read_detections(path)
    except FastRCNNError as e:
        assert "d.json" in str(e)
    else:
        assert all(len(image.scores) == len(image.boxes) == len(image.classes) for image in detections.values())


@pytest.mark.parametrize("image", [found((0, 0.5, BOX)), found((4, 0.5, BOX)), found((1, float("nan"), BOX))])
def test_what_could_not_be_read_back_is_not_written(tmp_path, image):
    with pytest.raises(FastRCNNError, match="image a: detection 1 "):
        write_detections(tmp_path / "d.json", CLASSES, {"a": image})
    assert list(tmp_path.iterdir()) == []


def test_join_numbers_images_by_sorted_id():
    detections, ground_truth = join(DETECTIONS, CLASSES, RECORDS, CLASSES)
    assert detections.images.tolist() == [0, 1, 1]
    assert detections.classes.tolist() == [2, 1, 1]
    assert detections.scores.tolist() == [0.75, 0.5, 0.25]
    assert detections.boxes.tolist() == [list(BOX), list(BOX), list(FAR)]
    assert ground_truth.images.tolist() == [0, 1, 1]
    assert ground_truth.classes.tolist() == [2, 1, 3]
    assert ground_truth.difficult.tolist() == [False, False, True]
    for records in (RECORDS[::-1], RECORDS[1:] + RECORDS[:1]):
        again = join(dict(reversed(DETECTIONS.items())), CLASSES, records, CLASSES)
        assert all(same(a, b) for a, b in zip(again, (detections, ground_truth), strict=True))


def test_join_finds_classes_by_name_without_case():
    order = ["Cat", " DOG", "TV Monitor"]
    number = np.array([0, 2, 3, 1])
    moved = {i: ImageDetections(d.boxes, number[d.classes], d.scores) for i, d in DETECTIONS.items()}
    expected = join(DETECTIONS, CLASSES, RECORDS, CLASSES)
    assert all(same(a, b) for a, b in zip(join(moved, order, RECORDS, CLASSES), expected, strict=True))


def test_join_warns_of_classes_without_objects(caplog):
    with caplog.at_level(logging.WARNING):
        join(DETECTIONS, CLASSES, RECORDS, CLASSES)
    assert "no objects to find of cat:" in caplog.text  # its only object is difficult


def test_join_of_nothing():
    detections, ground_truth = join({"c": found()}, CLASSES, [record("c")], CLASSES)
    assert np.isnan(evaluate(detections, ground_truth, 4).mean_ap)


def test_join_refuses_what_does_not_fit():
    with pytest.raises(FastRCNNError, match="horse"):
        join(DETECTIONS, ["dog", "tv monitor", "horse"], RECORDS, CLASSES)
    with pytest.raises(FastRCNNError, match=r"1 without detections \(b\), 1 without annotations \(x\)"):
        join({"a": found(), "x": found(), "c": found()}, CLASSES, RECORDS, CLASSES)
    with pytest.raises(FastRCNNError, match="stands twice"):
        join(DETECTIONS, CLASSES, [*RECORDS, RECORDS[0]], CLASSES)
    with pytest.raises(FastRCNNError, match="image c: detection 1 has a class"):
        join({**DETECTIONS, "c": found((4, 0.5, BOX))}, CLASSES, RECORDS, CLASSES)


def result():
    return evaluate(*join(DETECTIONS, CLASSES, RECORDS, CLASSES), len(CLASSES) + 1)


def test_ap_table():
    assert ap_table(result(), CLASSES).splitlines() == [
        "class       objects  detections      AP",
        "dog               1           2  1.0000",
        "tv monitor        1           1  1.0000",
        "cat               0           0  no objects",
        "mean of 2         2           3  1.0000",
        "AP: 11 recall points; left out of the mean, having no objects: cat",
    ]


def test_recall_table():
    recall = proposal_recall(zip(RECORDS, map(np.array, ([BOX], [FAR], [FAR])), strict=True))
    assert recall_table(recall, CLASSES).splitlines() == [
        "            objects  IoU 0.50  IoU 0.70",
        "dog               1     0.000     0.000",
        "tv monitor        1     1.000     1.000",
        "cat               0       nan       nan",
        "small             2     0.500     0.500",
        "medium            0       nan       nan",
        "large             0       nan       nan",
        "all               2     0.500     0.500",
        "small: below 32 x 32 pixels, large: from 96 x 96; 1 difficult objects left out",
    ]


@pytest.mark.parametrize("names", [["a"], CLASSES, [f"costs $ {i}" for i in range(7)]])
def test_plot_has_a_panel_for_each_class(tmp_path, names):
    """Panels have grid lines in the middle, places without a class are white; only what was detected has a curve."""
    empty = join({"c": found()}, names, [record("c")], names)
    plot_precision_recall(
        result() if names is CLASSES else evaluate(*empty, len(names) + 1), names, tmp_path / "pr.png"
    )
    pixels = np.array(Image.open(tmp_path / "pr.png").convert("RGB")).astype(int)
    columns = int(np.ceil(np.sqrt(len(names))))
    rows = -(-len(names) // columns)
    assert pixels.shape == (240 * rows, 240 * columns, 3)
    panels = pixels.reshape(rows, 240, columns, 240, 3).swapaxes(1, 2).reshape(-1, 240, 240, 3)
    drawn = (panels[:, 60:180, 60:180] < 255).any(axis=(1, 2, 3))
    assert drawn.tolist() == [k < len(names) for k in range(len(panels))]
    curve = (np.ptp(panels, axis=3) > 100).any(axis=(1, 2))  # colour; all else is grey
    assert np.flatnonzero(curve).tolist() == ([0, 1] if names is CLASSES else [])


def test_voc_files(tmp_path):
    paths = write_voc_files(tmp_path / "results", "test", CLASSES, DETECTIONS)
    assert [path.name for path in paths] == [f"comp4_det_test_{name}.txt" for name in CLASSES]
    assert [path.read_text() for path in paths] == ["b 0.5 1 1 10 10\nb 0.25 51 51 60 60\n", "a 0.75 1 1 10 10\n", ""]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(2**-20, 1, width=32), min_size=1, max_size=20, unique=True))
def test_voc_files_keep_scores_and_boxes_apart(tmp_path_factory, scores):
    """No two scores become one, and boxes come back as the same float32 numbers."""
    image = found(*[(1, score, (score, 1 / 3, 499 + score, 374.9)) for score in scores])
    path = write_voc_files(tmp_path_factory.mktemp("voc"), "test", ["dog"], {"a": image})[0]
    rows = np.array([line.split()[1:] for line in path.read_text().splitlines()], float)
    np.testing.assert_array_equal(rows[:, 0].astype(np.float32), image.scores)
    np.testing.assert_allclose(rows[:, 1:] - (1, 1, 0, 0), image.boxes, rtol=0, atol=1e-6)


def test_voc_files_refuse_names_that_leave_the_folder(tmp_path):
    with pytest.raises(FastRCNNError, match="a/b"):
        write_voc_files(tmp_path, "test", ["a/b"], {})


def test_voc_files_warn_of_ids_with_spaces(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_voc_files(tmp_path, "test", ["dog"], {"IMG 1": found((1, 0.5, BOX))})
    assert "IMG 1" in caplog.text
