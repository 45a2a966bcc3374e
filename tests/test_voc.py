"""Average precision against worked examples, a loop-only twin, and what must not change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_evaluate import voc_ap_oracle

from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import evaluate

BOX = (0, 0, 10, 10)
HALF = (0, 0, 10, 5)  # IoU with BOX is exactly 0.5
LESS = (0, 0, 10, 4)  # 0.4
FAR = (50, 50, 60, 60)


def detections(*rows):
    """Rows of (image, class, score, box)."""
    images, classes, scores, boxes = zip(*rows, strict=True) if rows else ([], [], [], [])
    return DetectionRows(
        np.array(images, np.int64),
        np.array(classes, np.int64),
        np.array(scores, np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


def ground_truth(*rows):
    """Rows of (image, class, box) or (image, class, box, difficult)."""
    images, classes, boxes, difficult = zip(*[(*row, False)[:4] for row in rows], strict=True) if rows else [[]] * 4
    return ObjectRows(
        np.array(images, np.int64),
        np.array(classes, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(difficult, bool),
    )


def both(found, objects, class_count=2, **settings):
    """AP of class 1 by the 11 points and by the area."""
    return tuple(
        evaluate(found, objects, class_count, metric=metric, **settings).ap[1] for metric in ("11point", "area")
    )


@st.composite
def scenes(draw):
    """Few images, classes, places and scores, so that ties, doubles, misses and exact thresholds are common."""
    coordinates = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))
    boxes = coordinates.map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    images, classes, scores = st.integers(0, 2), st.integers(1, 3), st.sampled_from([0.1, 0.5, 0.7, 0.9])
    found = draw(st.lists(st.tuples(images, classes, scores, boxes), max_size=20))
    objects = draw(st.lists(st.tuples(images, classes, boxes, st.booleans()), max_size=12))
    return detections(*found), ground_truth(*objects)


def rows_of(arrays, order):
    return type(arrays)(*(column[order] for column in vars(arrays).values()))


def test_worked_example():
    """Right, false, right of four objects: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2."""
    objects = ground_truth((0, 1, BOX), (1, 1, BOX), (2, 1, BOX), (3, 1, BOX))
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, FAR), (1, 1, 0.7, HALF))
    result = evaluate(found, objects, 2)
    np.testing.assert_array_equal(result.precision[1], [1, 1 / 2, 2 / 3])
    np.testing.assert_array_equal(result.recall[1], [1 / 4, 1 / 4, 1 / 2])
    assert result.ap[1] == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)  # recall 0, 0.1, 0.2; then 0.3, 0.4, 0.5
    assert evaluate(found, objects, 2, metric="area").ap[1] == pytest.approx(1 / 4 + 1 / 4 * 2 / 3)
    assert (result.objects[1], result.detections[1]) == (4, 3)


@pytest.mark.parametrize(("box", "ap"), [(HALF, 1), (LESS, 0), (FAR, 0), ((0, 0, 10, 4.99), 0), ((3, 3, 3, 3), 0)])
def test_iou_of_exactly_the_threshold_matches(box, ap):
    assert both(detections((0, 1, 0.5, box)), ground_truth((0, 1, BOX))) == (ap, ap)


def test_iou_is_that_of_inclusive_boxes_with_plus_one():
    """Pixels 1..10 and 1..5, both ends included: 50 common pixels of 100."""
    voc, kit = (1, 1, 10, 10), (1, 1, 10, 5)
    halves = [(x1 - 1, y1 - 1, x2, y2) for x1, y1, x2, y2 in (voc, kit)]
    assert both(detections((0, 1, 0.5, halves[1])), ground_truth((0, 1, halves[0]))) == (1, 1)


def test_other_image_or_class_does_not_match():
    found = detections((1, 1, 0.9, BOX), (0, 2, 0.9, BOX))
    result = evaluate(found, ground_truth((0, 1, BOX)), 3)
    assert result.ap[1] == 0
    assert np.isnan(result.ap[2])


def test_second_detection_of_an_object_is_false():
    objects = ground_truth((0, 1, BOX), (1, 1, BOX))
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, BOX), (1, 1, 0.7, BOX))
    np.testing.assert_array_equal(evaluate(found, objects, 2).precision[1], [1, 1 / 2, 2 / 3])


def test_a_detection_looks_only_at_its_best_object():
    """The better object is taken; the other one overlaps enough, and yet the detection is false."""
    other = (0, 1, 10, 11)
    objects = ground_truth((0, 1, BOX), (0, 1, other))
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, BOX))
    assert evaluate(found, objects, 2).recall[1][-1] == 1 / 2


def test_of_equal_overlaps_the_first_object_is_taken():
    left, right, middle = (0, 0, 10, 10), (4, 0, 14, 10), (2, 0, 12, 10)
    found = detections((0, 1, 0.9, middle), (0, 1, 0.8, left))
    assert evaluate(found, ground_truth((0, 1, left), (0, 1, right)), 2).recall[1].tolist() == [0.5, 0.5]
    assert evaluate(found, ground_truth((0, 1, right), (0, 1, left)), 2).recall[1].tolist() == [0.5, 1]


def test_difficult_is_neither_right_nor_wrong():
    """On a difficult object any number of detections vanish, the first of all too; it is no object to find."""
    objects = ground_truth((0, 1, BOX, True), (1, 1, BOX))
    found = detections((0, 1, 0.9, BOX), (0, 1, 0.8, BOX), (1, 1, 0.7, BOX), (0, 1, 0.6, FAR))
    result = evaluate(found, objects, 2)
    assert result.precision[1].tolist() == [1, 1 / 2]
    assert (result.ap[1], result.objects[1], result.detections[1]) == (1, 1, 4)


def test_best_object_may_be_difficult():
    """The detection overlaps another object by 0.5 and more, but the difficult one most: it does not count."""
    objects = ground_truth((0, 1, BOX, True), (0, 1, (0, 1, 10, 11)))
    assert evaluate(detections((0, 1, 0.9, BOX)), objects, 2).ap[1] == 0
    assert evaluate(detections((0, 1, 0.9, BOX)), objects, 2).precision[1].tolist() == []


def test_class_of_difficult_objects_only_is_absent():
    result = evaluate(detections((0, 1, 0.9, BOX)), ground_truth((0, 1, BOX, True), (0, 2, BOX)), 3)
    assert np.isnan(result.ap[1])
    assert result.absent.tolist() == [1]


def test_absent_classes_are_left_out_of_the_mean():
    objects = ground_truth((0, 1, BOX), (0, 3, BOX))
    result = evaluate(detections((0, 1, 0.9, BOX), (0, 2, 0.9, BOX)), objects, 4)
    np.testing.assert_array_equal(result.ap, [np.nan, 1, np.nan, 0])
    assert result.mean_ap == 0.5
    assert result.absent.tolist() == [2]
    assert result.detections.tolist() == [0, 1, 1, 0]


def test_no_detections_and_no_objects():
    assert both(detections(), ground_truth((0, 1, BOX))) == (0, 0)
    nothing = evaluate(detections(), ground_truth(), 3)
    assert np.isnan(nothing.ap).all() and np.isnan(nothing.mean_ap)
    assert np.isnan(evaluate(detections((5, 1, 0.9, BOX)), ground_truth(), 3).ap).all()


def test_ties_in_score_go_by_image_then_position():
    """One right and one false detection of equal score: who comes first decides the precision."""
    objects = ground_truth((1, 1, BOX))
    for found, ap in (
        (detections((1, 1, 0.5, BOX), (2, 1, 0.5, BOX)), 1),
        (detections((2, 1, 0.5, BOX), (1, 1, 0.5, BOX)), 1),
        (detections((1, 1, 0.5, BOX), (0, 1, 0.5, BOX)), 1 / 2),
        (detections((1, 1, 0.5, FAR), (1, 1, 0.5, BOX)), 1 / 2),
        (detections((1, 1, 0.5, BOX), (1, 1, 0.5, FAR)), 1),
    ):
        assert both(found, objects) == (ap, ap)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_recall_of_exact_tenths_reaches_its_point(tenths):
    """In steps of np.arange(0, 1.1, 0.1), 0.3, 0.6 and 0.7 lie above recalls of 3, 6 and 7 tenths."""
    objects = ground_truth(*[(i, 1, BOX) for i in range(10)])
    found = detections(*[(i, 1, 0.9, BOX) for i in range(tenths)])
    assert both(found, objects) == (pytest.approx((tenths + 1) / 11), pytest.approx(tenths / 10))


@settings(deadline=None, max_examples=150)
@given(scenes(), st.sampled_from(["11point", "area"]), st.sampled_from([0.3, 0.5, 0.75, 1.0]))
def test_equals_the_oracle(scene, metric, threshold):
    found, objects = scene
    expected = voc_ap_oracle(found, objects, 4, threshold, metric)
    np.testing.assert_allclose(evaluate(found, objects, 4, threshold, metric).ap, expected, rtol=0, atol=1e-12)


def test_equals_the_oracle_on_many_detections():
    rng = np.random.default_rng(0)
    objects = ObjectRows(
        np.repeat(np.arange(60), 5), rng.integers(1, 5, 300), _random_boxes(rng, 300), rng.random(300) < 0.2
    )
    near = rng.integers(0, 300, 3000)
    found = DetectionRows(
        objects.images[near],
        objects.classes[near],
        rng.random(3000).round(2).astype(np.float32),
        (objects.boxes[near] + rng.normal(0, 6, (3000, 4))).astype(np.float32),
    )
    for metric in ("11point", "area"):
        result = evaluate(found, objects, 5, metric=metric)
        np.testing.assert_allclose(result.ap, voc_ap_oracle(found, objects, 5, metric=metric), rtol=0, atol=1e-12)
        assert 0.1 < result.mean_ap < 0.9


def _random_boxes(rng, n):
    corner = rng.integers(0, 100, (n, 2))
    return np.concatenate((corner, corner + rng.integers(10, 100, (n, 2))), axis=1).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(scenes(), st.permutations(range(3)), st.randoms(use_true_random=False))
def test_the_order_of_images_changes_nothing(scene, numbers, random):
    """Other numbers for the images, and rows in another order, with the same order inside each image."""
    found, objects = scene
    scores = np.linspace(0.9, 0.1, len(found.scores), dtype=np.float32)  # without ties, which go by image on purpose
    found = DetectionRows(found.images, found.classes, scores, found.boxes)
    expected = evaluate(found, objects, 4)
    order = list(range(len(scores)))
    random.shuffle(order)
    numbers = np.array(numbers)
    moved = rows_of(DetectionRows(numbers[found.images], found.classes, found.scores, found.boxes), order)
    objects = ObjectRows(numbers[objects.images], objects.classes, objects.boxes, objects.difficult)
    objects = rows_of(objects, np.argsort(objects.images, kind="stable"))
    actual = evaluate(moved, objects, 4)
    np.testing.assert_array_equal(actual.ap, expected.ap)
    for k in range(4):
        np.testing.assert_array_equal(actual.precision[k], expected.precision[k])
        np.testing.assert_array_equal(actual.recall[k], expected.recall[k])


@settings(deadline=None, max_examples=60)
@given(scenes(), st.permutations(range(1, 4)))
def test_the_numbers_of_classes_change_nothing(scene, numbers):
    found, objects = scene
    number = np.array([0, *numbers])
    expected = evaluate(found, objects, 4)
    actual = evaluate(
        DetectionRows(found.images, number[found.classes], found.scores, found.boxes),
        ObjectRows(objects.images, number[objects.classes], objects.boxes, objects.difficult),
        4,
    )
    np.testing.assert_array_equal(actual.ap[number], expected.ap)
    np.testing.assert_array_equal(actual.detections[number], expected.detections)
    assert actual.mean_ap == pytest.approx(expected.mean_ap, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(
    scenes(),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.1, 0.5, 0.6, 0.9, 1.0]),
    st.integers(0, 20),
    st.sampled_from(["11point", "area"]),
)
def test_a_detection_on_nothing_never_raises_ap(scene, image, k, score, place, metric):
    found, objects = scene
    before = evaluate(found, objects, 4, metric=metric).ap
    place = min(place, len(found.scores))
    # (0, 0, 20, 20) overlaps every object, none of which is larger than 4 x 4, by at most 16 / 400.
    columns = zip(vars(found).values(), (image, k, score, (0, 0, 20, 20)), strict=True)
    more = DetectionRows(*(np.insert(column, place, value, axis=0) for column, value in columns))
    after = evaluate(more, objects, 4, metric=metric).ap
    assert (np.isnan(before) | (after <= before)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(FastRCNNError, match="detection 2 .* score"):
        detections((0, 1, 0.9, BOX), (0, 1, bad, BOX))
    with pytest.raises(FastRCNNError, match="detection 1 .* box"):
        detections((0, 1, 0.9, (0, 0, bad, 1)))
    with pytest.raises(FastRCNNError, match="object 1 .* box"):
        ground_truth((0, 1, (0, bad, 1, 1)))


@pytest.mark.usefixtures("unchecked")
def test_arrays_that_do_not_fit_are_refused():
    one, two, box = np.array([1]), np.array([1, 1]), np.zeros((1, 4), np.float32)
    with pytest.raises(FastRCNNError, match="same rows"):
        DetectionRows(one, two, np.zeros(1, np.float32), box)
    with pytest.raises(FastRCNNError, match="same rows"):
        DetectionRows(one, one, np.zeros(1, np.float32), np.zeros((1, 5), np.float32))
    with pytest.raises(FastRCNNError, match="same rows"):
        ObjectRows(one, one, box, np.zeros(2, bool))
    with pytest.raises(FastRCNNError, match="integers"):
        ObjectRows(one, np.array([1.0]), box, np.zeros(1, bool))
    with pytest.raises(FastRCNNError, match="floating-point"):
        DetectionRows(one, one, np.array([1]), box)
    with pytest.raises(FastRCNNError, match="bool"):
        ObjectRows(one, one, box, np.zeros(1, int))
    with pytest.raises(FastRCNNError, match="object 1 .* negative"):
        ObjectRows(np.array([-1]), one, box, np.zeros(1, bool))


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_classes_outside_the_list_are_refused(k):
    with pytest.raises(FastRCNNError, match=r"detection 1 .* 1\.\.1"):
        evaluate(detections((0, k, 0.9, BOX)), ground_truth((0, 1, BOX)), 2)
    with pytest.raises(FastRCNNError, match=r"object 1 .* 1\.\.1"):
        evaluate(detections((0, 1, 0.9, BOX)), ground_truth((0, k, BOX)), 2)


@pytest.mark.parametrize("wrong", [{"metric": "12point"}, {"iou_threshold": 0.0}, {"iou_threshold": 1.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(FastRCNNError, match=next(iter(wrong))):
        evaluate(detections(), ground_truth(), 2, **wrong)
