"""The confusion matrix against a loop-only twin and worked examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_analysis import confusion_oracle
from test_voc import BOX, FAR, HALF, LESS, detections, ground_truth, scenes

from fastrcnn.evaluate.confusion import confusion_matrix

thresholds = st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), min_size=4, max_size=4).map(np.array)


def cells(found, objects, threshold=0.5, class_count=4):
    """The cells that are not 0."""
    matrix = confusion_matrix(found, objects, np.full(class_count, threshold))
    return {(int(row), int(column)): int(matrix[row, column]) for row, column in np.argwhere(matrix)}


@given(scenes(), thresholds)
def test_equals_the_loop(scene, limits):
    assert confusion_matrix(*scene, limits).tolist() == confusion_oracle(*scene, limits)


@given(scenes(), thresholds)
def test_rows_add_up_to_objects_and_columns_to_detections(scene, limits):
    found, objects = scene
    matrix = confusion_matrix(found, objects, limits)
    asked = np.bincount(objects.classes[~objects.difficult], minlength=4)
    shown = np.bincount(found.classes[found.scores >= limits[found.classes]], minlength=4)
    assert matrix[0, 0] == 0
    assert matrix[1:].sum(axis=1).tolist() == asked[1:].tolist()
    assert (matrix[:, 1:].sum(axis=0) <= shown[1:]).all()
    if not objects.difficult.any():
        assert matrix[:, 1:].sum(axis=0).tolist() == shown[1:].tolist()


@pytest.mark.parametrize(("box", "expected"), [(HALF, {(1, 1): 1}), (LESS, {(0, 1): 1, (1, 0): 1})])
def test_right_false_and_missed(box, expected):
    assert cells(detections((0, 1, 0.9, box)), ground_truth((0, 1, BOX))) == expected


def test_a_wrong_class_that_scores_more_takes_the_object():
    found = detections((0, 1, 0.8, BOX), (0, 2, 0.9, BOX))
    assert cells(found, ground_truth((0, 1, BOX))) == {(1, 2): 1, (0, 1): 1}


def test_where_the_best_object_is_taken_the_next_one_is_given():
    near = (0, 1, 10, 11)
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, BOX), (0, 1, 0.7, BOX))
    assert cells(found, ground_truth((0, 1, BOX), (0, 3, near))) == {(1, 1): 1, (3, 1): 1, (0, 1): 1}


def test_what_scores_too_little_is_not_there():
    found = detections((0, 1, 0.4, BOX), (0, 2, 0.9, FAR))
    assert cells(found, ground_truth((0, 1, BOX))) == {(1, 0): 1, (0, 2): 1}
    assert cells(detections((0, 1, 0.5, BOX)), ground_truth((0, 1, BOX))) == {(1, 1): 1}  # exactly the threshold


def test_difficult_objects_take_any_number_of_detections_of_any_class():
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, BOX), (0, 2, 0.7, BOX), (0, 2, 0.7, FAR))
    assert cells(found, ground_truth((0, 1, BOX, True))) == {(0, 2): 1}


def test_nothing_found_and_nothing_to_find():
    assert cells(detections(), ground_truth((0, 1, BOX), (0, 2, BOX, True))) == {(1, 0): 1}
    assert cells(detections((0, 1, 0.9, BOX)), ground_truth()) == {(0, 1): 1}
    assert cells(detections(), ground_truth()) == {}
