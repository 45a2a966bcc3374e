"""What explains an evaluation: reliability, sizes and images against loop-only twins, and all parts together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_analysis import confusion_oracle, errors_oracle, image_oracle, reliability_oracle, size_oracle
from test_voc import BOX, FAR, HALF, LESS, detections, ground_truth, rows_of, scenes

from fastrcnn.evaluate.analysis import (
    ImageQuality,
    OfSize,
    analyse,
    by_size,
    confusion_matrix,
    most_confident_errors,
    reliability,
)
from fastrcnn.evaluate.voc import evaluate, match
from fastrcnn.proposals.recall import SIZES

CLASSES = ["cat", "dog", "sofa"]


@given(scenes())
def test_reliability_equals_the_loop(scene):
    found = reliability(match(*scene, 4))
    rows, error = reliability_oracle(*scene)
    for b, (count, score, right) in enumerate(rows):
        assert found.count[b] == count
        if count:
            assert (found.mean_score[b], found.share_right[b]) == pytest.approx((score, right))
        else:
            assert np.isnan([found.mean_score[b], found.share_right[b]]).all()
    assert found.calibration_error == (None if error is None else pytest.approx(error))


def test_reliability_worked_by_hand():
    """Scores 0 and 1 lie in the outer bins. 0.75 half right, 0 and 1 right: errors 0.25, 0.25, 1, 0."""
    objects = ground_truth((0, 1, BOX), (1, 1, BOX), (2, 1, BOX))
    rows = [(0, 1, 0.75, BOX), (0, 1, 0.75, BOX), (1, 1, 0.0, BOX), (2, 1, 1.0, BOX)]
    result = reliability(match(detections(*rows), objects, 2))
    assert result.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 2, 0, 1]
    assert result.share_right[[0, 7, 9]].tolist() == [1, 0.5, 1]
    assert result.calibration_error == pytest.approx((0.25 + 0.25 + 1 + 0) / 4)


@given(scenes(), st.sampled_from([1, 20]))
def test_sizes_equal_the_loop(scene, scale):
    """At scale 20 the boxes of a scene are of all three sizes."""
    found, objects = (type(part)(**{**vars(part), "boxes": part.boxes * np.float32(scale)}) for part in scene)
    above = found.scores >= np.float32(0.5)
    sizes = by_size(match(found, objects, 4), above)
    assert list(sizes) == ["small", "medium", "large"]
    for name, (low, high) in SIZES.items():
        assert list(vars(sizes[name]).values()) == size_oracle(found, objects, [0.5] * 4, low, high)


def test_shares_of_nothing_are_none():
    nothing = OfSize(0, 0, 0, 0, 0)
    assert (nothing.recall, nothing.recall_above, nothing.precision) == (None, None, None)
    some = OfSize(4, 3, 2, 5, 1)
    assert (some.recall, some.recall_above, some.precision) == (0.75, 0.5, 0.2)


@given(scenes())
def test_all_parts_use_the_same_thresholds(scene):
    found, objects = scene
    analysis = analyse(found, objects, CLASSES, 4)
    limits = [best.score if best else 0.05 for best in analysis.thresholds.best]
    assert analysis.above.tolist() == [s >= limits[k] for s, k in zip(found.scores, found.classes, strict=True)]
    assert analysis.confusion.tolist() == confusion_oracle(found, objects, limits)
    for i in range(4):
        counts = [int(column[i]) for column in vars(analysis.images).values()]
        assert tuple(counts) == image_oracle(found, objects, limits, i)
    kinds, _, _ = errors_oracle(found, objects, [[False] * 4, [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    assert [analysis.errors.kinds[e] if e >= 0 else None for e in analysis.errors.kind] == kinds
    assert sum(size.objects for size in analysis.sizes.values()) == (~objects.difficult).sum()


def test_best_and_worst_images():
    #                    all right, more right, half, all wrong, more wrong, nothing to say
    quality = ImageQuality(*np.array([[1, 3, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 2, 0]]))
    assert quality.f1.tolist() == pytest.approx([1, 1, 0.5, 0, 0, np.nan], nan_ok=True)
    assert quality.best(9) == [1, 0, 2]
    assert quality.worst(9) == [4, 3, 2]
    assert quality.best(1) == [1]


def test_most_confident_errors_come_by_score_and_say_what_they_are_about():
    objects = ground_truth((0, 1, BOX), (1, 2, BOX), (1, 2, FAR, True))
    found = detections((0, 1, 0.9, HALF), (0, 1, 0.6, LESS), (0, 1, 0.8, FAR), (1, 1, 0.7, BOX), (1, 2, 0.95, FAR))
    analysis = analyse(found, objects, ["cat", "chair"], 2)
    rows = most_confident_errors(analysis.errors, analysis.matching, 9)
    assert rows == [2, 3, 1]
    assert [analysis.errors.kinds[analysis.errors.kind[d]] for d in rows] == [
        "background",
        "other class",
        "localisation",
    ]
    assert analysis.errors.about[rows].tolist() == [-1, 1, 0]
    assert most_confident_errors(analysis.errors, analysis.matching, 1) == [2]


@pytest.mark.parametrize("metric", ["11point", "area"])
def test_nothing_at_all(metric, recwarn):
    """No detections, no objects, one class, difficult ones only, and images without either."""
    everything = detections((0, 1, 0.9, BOX), (2, 1, 0.4, FAR)), ground_truth((0, 1, BOX, True), (1, 1, BOX, True))
    nothing = detections(), ground_truth()
    for found in (everything[0], nothing[0]):
        for objects in (everything[1], nothing[1]):
            analysis = analyse(found, objects, ["thing"], 3, metric)
            assert analysis.thresholds.best == [None, None]
            assert analysis.thresholds.overall is None
            assert analysis.images.missed.tolist() == [0, 0, 0]
            assert np.isnan(analysis.errors.map_cost).all()
            assert analysis.confusion[1].tolist() == [0, 0]
            assert (analysis.reliability.calibration_error is None) == (not len(found.scores))
            assert {size.recall for size in analysis.sizes.values()} == {None}
    assert not recwarn.list


def test_the_order_of_the_rows_changes_nothing():
    rng = np.random.default_rng(1)
    found = detections(
        *[
            (int(i), int(k), float(s), BOX)
            for i, k, s in zip(rng.integers(0, 5, 40), rng.integers(1, 4, 40), rng.permutation(40) / 40, strict=True)
        ]
    )
    objects = ground_truth(*[(i, k, BOX) for i in range(5) for k in (1, 2)])
    first = analyse(found, objects, CLASSES, 5)
    again = analyse(rows_of(found, rng.permutation(40)), objects, CLASSES, 5)
    np.testing.assert_array_equal(first.confusion, again.confusion)
    np.testing.assert_array_equal(first.errors.count, again.errors.count)
    np.testing.assert_array_equal(first.errors.ap_cost, again.errors.ap_cost)
    assert first.thresholds.best == again.thresholds.best
    assert (first.errors.ap_cost[0, 1:3] >= 0).all() and evaluate(found, objects, 4).mean_ap > 0


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
