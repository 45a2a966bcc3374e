"""Recall of proposals: worked by hand, and against two loops."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_evaluate import recall_oracle

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.proposals.recall import proposal_recall


def record(image_id, boxes, classes=None, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=500,
        height=375,
        boxes=boxes,
        classes=np.array(classes if classes is not None else [1] * n, np.int64),
        difficult=np.array(difficult if difficult is not None else [False] * n, bool),
        annotation=None,
    )


def test_worked_example():
    """IoU 1, exactly 0.5, exactly 0.7 and 0 with the best proposal; the difficult object is not counted."""
    records = [
        record("a", [(0, 0, 10, 10), (100, 0, 110, 10)], classes=[1, 2]),
        record("b", [(0, 0, 10, 10), (300, 300, 310, 310), (50, 50, 60, 60)], [1, 2, 2], [False, False, True]),
    ]
    proposals = {
        "a": np.array([(0, 0, 10, 10), (100, 0, 110, 5), (100, 0, 110, 2)], np.int16),
        "b": np.array([(0, 0, 7, 10), (50, 50, 60, 60)], np.float32),
    }
    recall = proposal_recall((r, proposals[r.id]) for r in records)
    assert recall.thresholds == (0.5, 0.7)
    assert recall.overall().tolist() == [3 / 4, 2 / 4]
    np.testing.assert_array_equal(recall.by_class(4), [[np.nan] * 2, [1, 1], [1 / 2, 0], [np.nan] * 2])
    assert recall.difficult == 1


def test_sizes_are_those_of_coco():
    """31 x 33 is below 32 x 32 in area, 32 x 32 is medium, 96 x 96 large."""
    sides = [(31, 33), (32, 32), (95, 96), (96, 96)]
    objects = record("a", [(0, 0, w, h) for w, h in sides])
    recall = proposal_recall([(objects, np.array([(0, 0, 32, 32), (0, 0, 96, 96)], np.float32))], (0.99,))
    assert {name: recall.of_size(name).tolist() for name in ("small", "medium", "large")} == {
        "small": [True, False, False, False],
        "medium": [False, True, True, False],
        "large": [False, False, False, True],
    }
    assert {name: value.tolist() for name, value in recall.by_size().items()} == {
        "small": [0],
        "medium": [1 / 2],
        "large": [1],
    }


def test_images_without_objects_or_proposals():
    empty = np.empty((0, 4), np.float32)
    recall = proposal_recall([(record("a", []), np.array([(0, 0, 5, 5)])), (record("b", [(0, 0, 9, 9)]), empty)])
    assert recall.overall().tolist() == [0, 0]
    assert np.isnan(proposal_recall([(record("a", []), empty)]).overall()).all()
    assert np.isnan(proposal_recall([]).overall()).all()


whole_boxes = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    max_size=8,
).map(lambda rows: np.array(rows, np.float32).reshape(-1, 4))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(whole_boxes, whole_boxes), min_size=1, max_size=4))
def test_equals_the_oracle(images):
    recall = proposal_recall((record("a", boxes), rows) for boxes, rows in images)
    objects = sum(len(boxes) for boxes, _ in images)
    for threshold, value in zip(recall.thresholds, recall.overall(), strict=True):
        found = sum(recall_oracle(rows, boxes, threshold) for boxes, rows in images)
        np.testing.assert_equal(value, found / objects if objects else np.nan)


@settings(deadline=None, max_examples=30)
@given(whole_boxes, whole_boxes)
def test_average_recall_is_the_area_under_recall(boxes, rows):
    recall = proposal_recall([(record("a", boxes), rows)])
    shares = [recall_oracle(rows, boxes, t) / max(len(boxes), 1) for t in np.arange(0.5005, 1, 0.001)]
    np.testing.assert_allclose(recall.average(), np.mean(shares) if len(boxes) else np.nan, atol=2e-3)
