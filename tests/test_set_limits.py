"""The choice of detections over a whole set against the 2015 code's way through it, with a heap and loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles_evaluate import set_choice_oracle
from oracles_roi import select_detections_oracle

from fastrcnn.detect.nms import best_of_each_class
from fastrcnn.detections import DetectedImage, Detections
from fastrcnn.evaluate.set_limits import chosen, class_limits

NAMES = ("a", "b", "c")


def made(seed, count, rois):
    """Scores [R, 4], no two of them equal, and boxes [R, 4, 4] of so many images."""
    rng = np.random.default_rng(seed)
    numbers = iter(rng.permutation(4 * count * rois) / np.float32(4 * count * rois))
    scores = [np.array([[next(numbers) for _ in range(4)] for _ in range(rois)], np.float32) for _ in range(count)]
    corner = rng.integers(0, 12, (count, rois, 4, 2))
    return scores, np.concatenate((corner, corner + rng.integers(3, 9, corner.shape)), axis=3).astype(np.float32)


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 7), st.integers(1, 4), st.integers(1, 5))
def test_a_set_keeps_what_the_heap_keeps(seed, count, rois, per_image, best):
    scores, boxes = made(seed, count, rois)

    def suppressed(i, k, candidates):
        low = np.full_like(scores[i], -1)
        low[candidates, k] = scores[i][candidates, k]
        return [r for r, _ in select_detections_oracle(low, boxes[i], -0.5, 0.3, 1000)]

    expected = set_choice_oracle(scores, 4, per_image, best, suppressed)
    images, top = [], []
    for i in range(count):
        kept, scored = best_of_each_class(torch.tensor(scores[i]), torch.tensor(boxes[i]), 0.3, best)
        found, classes, values = (part.numpy() for part in kept)
        images.append(DetectedImage(str(i), Detections(found, classes, values, NAMES)))
        top.append(scored.numpy())
    got = chosen(images, top, per_image)
    pairs = [(int(image.id), k, s) for image in got for _, k, s in rows_of(image.found)]
    assert sorted(pairs) == sorted((i, k, scores[i][r, k]) for i, k, r in expected)
    assert [image.id for image in got] == [image.id for image in images]


def rows_of(found):
    return zip(found.boxes.tolist(), found.classes.tolist(), found.scores, strict=True)


def test_limits_by_hand():
    """Two images, one detection each on average: of class 1 the second best score is the limit; class 2 has no more
    than two scores, and keeps all."""
    none = -np.inf
    top = [
        np.array(rows, np.float32) for rows in ([[none] * 2, [0.5, 0.25], [0.125, none]], [[none], [0.75], [0.0625]])
    ]
    assert class_limits(top, 1).tolist() == [none, 0.5, none]
    assert class_limits(top, 2).tolist() == [none] * 3
    assert class_limits(top[:1], 1).tolist() == [none, 0.5, none]
