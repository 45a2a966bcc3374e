"""F1 and its best thresholds against a loop-only twin and worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from oracles_analysis import f1_oracle
from test_voc import BOX, FAR, detections, ground_truth, scenes

from fastrcnn.evaluate.thresholds import GRID, best_thresholds
from fastrcnn.evaluate.voc import match


def numbers(best):
    return best and pytest.approx([best.score, best.precision, best.recall, best.f1])


def measured(found, objects, class_count=4):
    return best_thresholds(match(found, objects, class_count), class_count)


@given(scenes())
def test_best_thresholds_equal_the_loop_over_all_scores(scene):
    found, objects = scene
    result = measured(found, objects)
    present = set(objects.classes[~objects.difficult].tolist())
    for classes, best in [({k}, result.best[k]) for k in (1, 2, 3)] + [(present, result.overall)]:
        scores = sorted({float(s) for s, k in zip(found.scores, found.classes, strict=True) if k in classes})
        values = {s: f1_oracle(found, objects, classes & present, s) for s in scores}
        highest = max((value[2] for value in values.values() if value), default=0.0)
        if highest == 0:
            assert best is None
            continue
        score = max(s for s, value in values.items() if value and math.isclose(value[2], highest))
        # A score on difficult objects alone changes nothing: the threshold is the lowest one that counts.
        assert (best.precision, best.recall, best.f1) == pytest.approx(values[score])
        assert best.score <= score
        assert f1_oracle(found, objects, classes & present, best.score) == values[score]


@given(scenes())
def test_curves_equal_the_loop(scene):
    result = measured(*scene)
    for t in range(0, len(GRID), 10):
        for k in (1, 2, 3):
            expected = f1_oracle(*scene, {k}, np.float32(GRID[t]))
            assert result.f1[k, t] == pytest.approx(expected[2] if expected else np.nan, nan_ok=True)
    assert np.isnan(result.f1[0]).all()


def test_worked_example():
    """Right at 0.9 and 0.5, false at 0.7, two objects: F1 2/3, 2/4, 4/5."""
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.7, FAR), (1, 1, 0.5, BOX))
    result = measured(found, ground_truth((0, 1, BOX), (1, 1, BOX)))
    assert numbers(result.best[1]) == [0.5, 2 / 3, 1.0, 0.8]
    assert result.overall == result.best[1]
    assert result.f1[1, [0, 50, 60, 70, 80, 90, 91, 100]] == pytest.approx([0.8, 0.8, 0.5, 0.5, 2 / 3, 2 / 3, 0, 0])
    assert result.scores(0.05).tolist() == [0.05, 0.5, 0.05, 0.05]


def test_of_equal_f1_the_highest_threshold_is_taken():
    """1 right of 1 shown and 2 objects, and 2 right of 4 shown: F1 2/3 both."""
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, FAR), (1, 1, 0.7, FAR), (1, 1, 0.6, BOX))
    best = measured(found, ground_truth((0, 1, BOX), (1, 1, BOX))).best[1]
    assert numbers(best) == [0.9, 1.0, 0.5, 2 / 3]


def test_equal_scores_count_together():
    found = detections((0, 1, 0.5, BOX), (1, 1, 0.5, FAR))
    assert numbers(measured(found, ground_truth((0, 1, BOX))).best[1]) == [0.5, 0.5, 1.0, 2 / 3]


def test_a_class_without_objects_or_without_right_detections_has_none():
    found = detections((0, 1, 0.9, BOX), (0, 2, 0.9, BOX), (0, 3, 0.9, FAR))
    objects = ground_truth((0, 2, BOX, True), (0, 3, BOX))
    assert measured(found, objects).best == [None] * 4
    assert measured(found, objects).overall is None
    for empty in ((detections(), objects), (found, ground_truth()), (detections(), ground_truth())):
        assert measured(*empty).best == [None] * 4
        assert measured(*empty).overall is None


def test_detections_of_absent_classes_do_not_count_in_the_threshold_for_all():
    found = detections((0, 1, 0.5, BOX), *[(0, 2, 0.9, FAR)] * 9)
    assert numbers(measured(found, ground_truth((0, 1, BOX))).overall) == [0.5, 1.0, 1.0, 1.0]
