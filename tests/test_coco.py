"""COCO's scores: worked by hand, and AP50 against the curves of the VOC routine."""

import numpy as np
import pytest

from fastrcnn.evaluate.coco import evaluate_coco
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import evaluate


def scene(found, objects, difficult=None):
    """found: (image, class, score, box); objects: (image, class, box)."""
    images, classes, scores, boxes = zip(*found, strict=True) if found else [[]] * 4
    gt_images, gt_classes, gt_boxes = zip(*objects, strict=True)
    return (
        DetectionRows(
            np.array(images, np.int64),
            np.array(classes, np.int64),
            np.array(scores, np.float32),
            np.array(boxes, np.float32).reshape(-1, 4),
        ),
        ObjectRows(
            np.array(gt_images),
            np.array(gt_classes),
            np.array(gt_boxes, np.float32),
            np.array(difficult or [False] * len(objects)),
        ),
    )


def test_perfect_detections_by_size(capsys):
    boxes = [(0, 0, 20, 20), (30, 30, 80, 80), (100, 100, 300, 300)]
    scores = evaluate_coco(*scene([(0, 1, 0.9, b) for b in boxes], [(0, 1, b) for b in boxes]), 3)
    assert scores == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"), 1.0))
    assert capsys.readouterr().out == ""  # what pycocotools prints goes to the log


def test_thresholds_and_absent_sizes():
    """IoU 0.6 is enough at 0.5, 0.55 and 0.6, three of the ten thresholds; class 2 has no objects."""
    found = [(0, 1, 0.9, (0, 0, 10, 6)), (0, 2, 0.9, (0, 0, 10, 10))]
    scores = evaluate_coco(*scene(found, [(0, 1, (0, 0, 10, 10))]), 3)
    assert (scores["AP50"], scores["AP75"]) == (pytest.approx(1), 0)
    assert scores["AP"] == pytest.approx(0.3)
    assert np.isnan(scores["AP_medium"]) and np.isnan(scores["AP_large"])


def test_no_detections():
    scores = evaluate_coco(*scene([], [(0, 1, (0, 0, 10, 10))]), 2)
    assert (scores["AP"], scores["AP_small"]) == (0, 0)


def test_as_many_detections_as_asked_for_are_looked_at():
    """All of 150 objects are found; COCO's own limit would see 100 of them."""
    boxes = [(12 * i, 0, 12 * i + 10, 10) for i in range(150)]
    rows = scene([(0, 1, 0.9, b) for b in boxes], [(0, 1, b) for b in boxes])
    for limit, recall in ((150, 1.0), (100, 67 / 101), (1, 1 / 101)):  # recall 0, 0.01, ... up to 100 / 150 = 0.667
        scores = evaluate_coco(*rows, 2, limit)
        assert [scores[name] for name in ("AP", "AP50", "AP_small")] == pytest.approx([recall] * 3)


def test_difficult_objects_are_neither_right_nor_wrong():
    box, other = (0, 0, 10, 10), (50, 50, 60, 60)
    found = [(0, 1, 0.9, box), (0, 1, 0.8, box), (0, 1, 0.7, other)]
    assert evaluate_coco(*scene(found, [(0, 1, box), (0, 1, other)], [True, False]), 2)["AP"] == pytest.approx(1)


def test_ap50_is_the_101_point_mean_of_the_same_curves():
    """With objects far apart and none difficult, COCO at IoU 0.5 matches as VOC does."""
    rng = np.random.default_rng(1)
    corners = np.array([(x, y) for x in range(0, 400, 100) for y in range(0, 300, 100)])
    found, objects = [], []
    for image in range(8):
        for x, y in corners[rng.random(len(corners)) < 0.5].tolist():
            k = int(rng.integers(1, 4))
            objects.append((image, k, (x, y, x + 40, y + 40)))
            for _ in range(int(rng.integers(0, 4))):
                dx, dy = rng.integers(-12, 13, 2).tolist()
                found.append((image, k, 0, (x + dx, y + dy, x + dx + 40, y + dy + 40)))
    scores = rng.permutation(len(found)) / len(found)
    arrays = scene([(i, k, s, b) for (i, k, _, b), s in zip(found, scores, strict=True)], objects)
    result = evaluate(*arrays, 4)
    aps = []
    for k in range(1, 4):
        envelope = np.append(np.maximum.accumulate(result.precision[k][::-1])[::-1], 0)
        aps.append(envelope[np.searchsorted(result.recall[k], np.linspace(0, 1, 101))].mean())
    assert 0.2 < np.mean(aps) < 0.9
    assert evaluate_coco(*arrays, 4)["AP50"] == pytest.approx(np.mean(aps))


def test_scores_are_means_over_the_classes():
    """Of a class alone, with the others' objects and detections left out; class 3 has no objects."""
    rng = np.random.default_rng(0)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in rng.integers(1, 60, (60, 4)).tolist()]
    objects = [(i % 7, 1 + i % 2, box) for i, box in enumerate(boxes)]
    found = [(i % 7, 1 + i % 3, rng.random(), box) for i, box in enumerate(boxes[::-1])]
    found += [(image, k, rng.random(), (x1 + 2, y1, x2, y2)) for image, k, (x1, y1, x2, y2) in objects]
    alone = [
        evaluate_coco(*scene([d for d in found if d[1] == k], [o for o in objects if o[1] == k]), 4) for k in (1, 2)
    ]
    together = evaluate_coco(*scene(found, objects), 4)
    assert 0 < together["AP"] < 1
    for name in ("AP", "AP50", "AP75", "AP_small"):
        assert together[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2)
