"""Detections joined with annotations, as the columns that are scored."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_detections import BOX, CLASSES, FAR, IMAGES, found

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.detections import DetectedImage
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.rows import join
from fastrcnn.evaluate.voc import evaluate


def record(image_id, *rows):
    """Rows of (class, box, difficult)."""
    classes, boxes, difficult = zip(*rows, strict=True) if rows else [[]] * 3
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    classes, difficult = np.array(classes, np.int64), np.array(difficult, bool)
    return ImageRecord(image_id, Path(f"{image_id}.jpg"), 100, 80, boxes, classes, difficult, None)


RECORDS = [record("b", (1, BOX, False), (3, FAR, True)), record("a", (2, BOX, False)), record("c")]


def same(a, b):
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
    return True


def test_join_numbers_images_by_sorted_id():
    rows, objects = join(IMAGES, RECORDS, CLASSES)
    assert rows.images.tolist() == [0, 1, 1]
    assert rows.classes.tolist() == [2, 1, 1]
    assert rows.scores.tolist() == [0.75, 0.5, 0.25]
    assert rows.boxes.tolist() == [list(BOX), list(BOX), list(FAR)]
    assert objects.images.tolist() == [0, 1, 1]
    assert objects.classes.tolist() == [2, 1, 3]
    assert objects.difficult.tolist() == [False, False, True]
    for records in (RECORDS[::-1], RECORDS[1:] + RECORDS[:1]):
        again = join(IMAGES[::-1], records, CLASSES)
        assert all(same(a, b) for a, b in zip(again, (rows, objects), strict=True))


def test_join_finds_classes_by_name_without_case():
    moved = [replace(image, found=image.found.in_classes(["Cat", " DOG", "TV Monitor"])) for image in IMAGES]
    expected = join(IMAGES, RECORDS, CLASSES)
    assert all(same(a, b) for a, b in zip(join(moved, RECORDS, CLASSES), expected, strict=True))


def test_join_warns_of_classes_without_objects(caplog):
    with caplog.at_level(logging.WARNING):
        join(IMAGES, RECORDS, CLASSES)
    assert "no objects to find of cat:" in caplog.text  # its only object is difficult


def test_join_of_nothing():
    rows, objects = join([DetectedImage("c", found())], [record("c")], CLASSES)
    assert np.isnan(evaluate(rows, objects, 4).mean_ap)


def test_join_refuses_what_does_not_fit():
    a, b, c = IMAGES
    with pytest.raises(FastRCNNError, match="horse"):
        join(IMAGES, RECORDS, ["dog", "tv monitor", "horse"])
    with pytest.raises(FastRCNNError, match=r"1 without detections \(b\), 1 without annotations \(x\)"):
        join([a, replace(b, id="x"), c], RECORDS, CLASSES)
    with pytest.raises(FastRCNNError, match="images with annotations listed twice: b;"):
        join(IMAGES, [*RECORDS, RECORDS[0]], CLASSES)
    with pytest.raises(FastRCNNError, match="images with detections listed twice: a, b;"):
        join([a, a, b, b, c], RECORDS, CLASSES)
