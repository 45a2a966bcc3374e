"""What was found, written as labels: the readers of annotations give back the same boxes and classes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from test_detections import same

from fastrcnn import config as configs
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.detect.labels import WRITERS, write_labels
from fastrcnn.detections import DetectedImage, Detections

CLASSES = ["dog", "tv monitor", "Æ & <b>"]


@pytest.fixture
def found(tmp_path):
    """Pictures a.jpg, a.png and b.png, of which the last has no detections; their ids in the output."""
    rng = np.random.default_rng(0)
    images, outputs = [], {}
    for name, output, count in (("a.jpg", "a", 9), ("a.png", "a_2", 5), ("b.png", "b", 0)):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(path)
        corner = rng.uniform(0.5, 60, (count, 2))
        boxes = np.hstack((corner, corner + rng.uniform(5, 29, (count, 2)))).astype(np.float32)
        scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1]
        detections = Detections(boxes, rng.integers(1, 4, count), scores, tuple(CLASSES))
        images.append(DetectedImage(path.stem, detections, str(path), 120, 90))
        outputs[path] = output
    return images, outputs


@pytest.mark.parametrize("name", WRITERS)
def test_the_readers_give_back_what_was_found(tmp_path, found, name):
    images, outputs = found
    folder = write_labels(name, images, outputs, CLASSES, tmp_path / name, 0.5)
    for path, output in outputs.items():
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{output}{path.suffix}").write_bytes(path.read_bytes())
    dataset = {"format": name, "root": str(tmp_path / name), "split": "detected"}
    if name == "voc":  # PNG, too
        dataset = {"format": "folder", "root": str(folder), "annotations": str(tmp_path / "voc/Annotations")}
    config = configs.from_dict({"classes": CLASSES, "data": {"test": [dataset]}})
    records = {record.id: record for record in read_data_sets(config.data.test, config.data, config.classes)}
    assert sorted(records) == sorted(outputs.values())
    for image, output in zip(images, outputs.values(), strict=True):
        record, shown = records[output], image.found.above(0.5)
        assert 0 < len(shown) < len(image.found) or not len(image.found)
        assert np.array_equal(record.boxes, shown.boxes) and record.boxes.dtype == np.float32
        assert np.array_equal(record.classes, shown.classes) and not record.difficult.any()
        assert (record.width, record.height) == (120, 90)


def test_coco_results_are_numbered_as_its_images(tmp_path, found):
    images, outputs = found
    write_labels("coco", images, outputs, CLASSES, tmp_path, 0.5)
    rows = json.loads((tmp_path / "results.json").read_text())
    tree = json.loads((tmp_path / "annotations/instances_detected.json").read_text())
    assert [row["bbox"] for row in rows] == [entry["bbox"] for entry in tree["annotations"]]
    columns = ("image_id", "category_id")
    assert [[row[c] for c in columns] for row in rows] == [[entry[c] for c in columns] for entry in tree["annotations"]]
    assert [row["score"] for row in rows] == [s for image in images for s in image.found.above(0.5).scores.tolist()]


def test_csv_keeps_every_digit(tmp_path, found):
    images, outputs = found
    path = write_labels("csv", images, outputs, CLASSES, tmp_path, 0.0)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for image in images:
        mine = [row for row in rows if row["file"] == image.file]
        assert all((row["width"], row["height"]) == ("120", "90") for row in mine)
        columns = {
            "classes": [row["class"] for row in mine],
            "scores": [float(row["score"]) for row in mine],
            "boxes": [[float(row[side]) for side in ("x1", "y1", "x2", "y2")] for row in mine],
        }
        assert same(Detections.from_json(columns, CLASSES), image.found)
