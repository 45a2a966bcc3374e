"""TIDE's errors against a loop-only twin and cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_analysis import errors_oracle, repaired_ap_oracle
from test_voc import BOX, FAR, HALF, LESS, detections, ground_truth, scenes

from fastrcnn.evaluate.error_kinds import GROUPED, UNGROUPED, ap_without, find_errors, similar_classes
from fastrcnn.evaluate.voc import evaluate, match

SIMILAR = np.array([[False] * 4, [False, True, True, False], [False, True, True, False], [False] * 3 + [True]])
groupings = st.sampled_from([None, SIMILAR])
CHIP = (0, 0, 10, 1)  # IoU with BOX is exactly 0.1
metrics = st.sampled_from(["11point", "area"])


def errors_of(found, objects, class_count=4, metric="11point", similar=None):
    return find_errors(match(found, objects, class_count), class_count, metric, similar)


def named(found, objects, **settings):
    """The kinds of the detections in their order, then how often each is missed."""
    errors = errors_of(found, objects, **settings)
    return [errors.kinds[kind] if kind >= 0 else None for kind in errors.kind]


def costs(found, objects, class_count=4, **settings):
    """The kinds that cost mAP."""
    errors = errors_of(found, objects, class_count, **settings)
    return {name: cost for name, cost in zip(errors.kinds, errors.map_cost.tolist(), strict=True) if cost}


@given(scenes(), groupings)
def test_kinds_equal_the_loop(scene, similar):
    errors = errors_of(*scene, similar=similar)
    kinds, about, missed = errors_oracle(*scene, similar)
    assert [errors.kinds[kind] if kind >= 0 else None for kind in errors.kind] == kinds
    assert [g if g >= 0 else None for g in errors.about] == about
    assert set(np.flatnonzero(errors.missed).tolist()) == missed
    assert errors.count[-1].sum() == len(missed)
    assert errors.count[:-1].sum() == sum(kind is not None for kind in kinds)


@given(scenes(), groupings, metrics)
def test_costs_equal_the_loop(scene, similar, metric):
    errors = errors_of(*scene, metric=metric, similar=similar)
    before = evaluate(*scene, 4, metric=metric)
    after = [repaired_ap_oracle(*scene, {name}, 4, metric, similar) for name in errors.kinds]
    expected = np.array(after, float) - before.ap
    np.testing.assert_allclose(errors.ap_cost, expected, atol=1e-12)
    assert not (errors.ap_cost < -1e-12).any()
    if (before.objects > 0).any():
        map_after = [np.nanmean(np.array(row, float)) for row in after]
        np.testing.assert_allclose(errors.map_cost, np.array(map_after) - before.mean_ap, atol=1e-12)


@given(scenes(), groupings, metrics)
def test_when_all_is_put_right_ap_is_1(scene, similar, metric):
    """But for a class of which nothing is left to ask for."""
    found, objects = scene
    errors = errors_of(*scene, metric=metric, similar=similar)
    ap = ap_without(errors, errors.kinds, match(*scene, 4), metric)
    asked = np.bincount(objects.classes[~objects.difficult], minlength=4)
    left = asked - np.bincount(objects.classes[errors.missed], minlength=4)
    np.testing.assert_allclose(ap, np.where(asked > 0, (left > 0) * 1.0, np.nan))


@pytest.mark.parametrize(
    ("number", "box", "kind"),
    [
        (1, HALF, None),
        (1, LESS, "localisation"),
        (1, CHIP, "localisation"),
        (1, (0, 0, 10, 0.99), "background"),
        (1, FAR, "background"),
        (2, HALF, "classification"),
        (2, LESS, "both"),
        (2, CHIP, "background"),
    ],
)
def test_kinds_of_one_detection_of_one_object(number, box, kind):
    assert named(detections((0, number, 0.9, box)), ground_truth((0, 1, BOX))) == [kind]


def test_an_object_that_an_error_is_about_is_not_missed():
    for number, box, missed in ((1, LESS, False), (2, BOX, False), (2, LESS, True), (1, FAR, True)):
        errors = errors_of(detections((0, number, 0.9, box)), ground_truth((0, 1, BOX)))
        assert errors.missed.tolist() == [missed]


def test_duplicates_and_the_order_of_the_rules():
    """On an object of another class, too, a duplicate is a classification error, as in TIDE's code."""
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, HALF))
    assert named(found, ground_truth((0, 1, BOX))) == [None, "duplicate"]
    assert named(found, ground_truth((0, 1, BOX), (0, 2, BOX))) == [None, "classification"]
    near = detections((0, 1, 0.9, LESS))  # of its own class 0.4, of the other 1
    assert named(near, ground_truth((0, 1, BOX), (0, 2, LESS))) == ["localisation"]


def test_difficult_objects():
    """Right class: not false at all. Near one, or of another class on one: an error, which vanishes when fixed."""
    objects = ground_truth((0, 1, BOX, True), (1, 1, BOX), (1, 2, BOX))
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, LESS), (0, 2, 0.7, BOX), (1, 1, 0.6, BOX), (1, 2, 0.5, BOX))
    errors = errors_of(found, objects)
    assert [errors.kinds[kind] for kind in errors.kind[1:3]] == ["localisation", "classification"]
    assert errors.kind.tolist()[0] == -1
    assert costs(found, objects) == {"localisation": pytest.approx(1 / 4), "classification": pytest.approx(1 / 4)}


def test_costs_worked_by_hand():
    """Class 1 of two objects: right, then background: AP at 11 points 6/11. The second object is missed."""
    objects = ground_truth((0, 1, BOX), (1, 1, BOX))
    found = detections((0, 1, 0.9, FAR), (0, 1, 0.8, BOX))
    assert evaluate(found, objects, 2).mean_ap == pytest.approx(6 / 11 / 2)
    assert costs(found, objects, 2) == {
        "background": pytest.approx(6 / 11 / 2),  # precision 1 up to recall 0.5
        "missed": pytest.approx(5 / 11 / 2),  # precision 1/2 up to recall 1
    }


def test_a_wrong_class_costs_both_classes():
    """A `2` on a `1`, better than the right `2`: class 1 goes from 0 to 1, class 2 from 1/2 to 1."""
    objects = ground_truth((0, 1, BOX), (1, 2, BOX))
    found = detections((0, 2, 0.9, BOX), (1, 2, 0.8, BOX))
    errors = errors_of(found, objects)
    assert errors.ap_cost[0].tolist() == pytest.approx([np.nan, 1, 0.5, np.nan], nan_ok=True)
    assert errors.map_cost[0] == pytest.approx(0.75)
    assert costs(found, objects) == {"classification": pytest.approx(0.75)}


def test_of_several_errors_about_one_object_the_best_becomes_right():
    """The others vanish: after it, precision stays 1."""
    objects = ground_truth((0, 1, BOX))
    found = detections((0, 1, 0.9, FAR), (0, 1, 0.8, LESS), (0, 1, 0.7, LESS))
    assert costs(found, objects) == {"localisation": pytest.approx(0.5)}


def test_an_error_about_an_object_that_is_found_vanishes():
    found = detections((0, 1, 0.9, LESS), (0, 1, 0.8, BOX))
    assert costs(found, ground_truth((0, 1, BOX))) == {"localisation": pytest.approx(0.5)}


def test_a_class_of_which_all_is_missed_gains_nothing():
    assert costs(detections(), ground_truth((0, 1, BOX))) == {}
    assert errors_of(detections(), ground_truth((0, 1, BOX))).count[-1].tolist() == [0, 1, 0, 0]


def test_similar_and_other_classes():
    found = detections((0, 1, 0.9, BOX), (1, 1, 0.9, BOX))
    objects = ground_truth((0, 2, BOX), (1, 3, BOX))
    assert named(found, objects, similar=SIMILAR) == ["similar class", "other class"]
    assert errors_of(found, objects, similar=SIMILAR).kinds == GROUPED
    assert named(found, objects) == ["classification", "classification"]
    assert errors_of(found, objects).kinds == UNGROUPED


def test_similar_classes_of_voc():
    names = ["Aeroplane", "bird", "car", "person", "sofa", "chair", "bottle"]
    similar = similar_classes(names)
    pairs = {(names[a - 1], names[b - 1]) for a, b in np.argwhere(similar).tolist() if a < b}
    assert pairs == {("Aeroplane", "bird"), ("Aeroplane", "car"), ("bird", "person"), ("sofa", "chair")}
    assert (similar == similar.T).all()
    assert not similar[0].any()
    assert similar_classes(["car", "lorry"]) is None


def test_nothing_found_and_nothing_to_find():
    for scene in ((detections((0, 1, 0.9, BOX)), ground_truth()), (detections(), ground_truth())):
        errors = errors_of(*scene)
        assert errors.count.sum() == len(scene[0].scores)
        assert np.isnan(errors.map_cost).all()
