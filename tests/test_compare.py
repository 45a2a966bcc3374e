"""The paired bootstrap against resampling for real, and what an interval must and must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_evaluate import resampled_oracle
from test_voc import BOX, FAR, detections, ground_truth, scenes

from fastrcnn.evaluate.compare import Interval, draw, interval, resampled_ap, verdict
from fastrcnn.evaluate.voc import evaluate, match

METRICS = pytest.mark.parametrize("metric", ["11point", "area"])


def made(images=40, seed=0):
    """Three classes, ties between images, right, wrong and double detections, difficult objects."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            x, y, k = *rng.integers(0, 200, 2).tolist(), int(rng.integers(1, 4))
            objects.append((image, k, (x, y, x + 30, y + 30), bool(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 3)):
                dx = int(rng.integers(0, 20))
                found.append((image, k, round(float(rng.random()), 2), (x + dx, y, x + dx + 30, y + 30)))
    return detections(*found), ground_truth(*objects)


@METRICS
@given(scene=scenes(), seed=st.integers(0, 9))
@settings(deadline=None)
def test_resampling_is_as_if_images_were_copied(metric, scene, seed):
    weights = draw(3, 8, seed)
    fast, slow = resampled_ap(*scene, 4, weights, metric), resampled_oracle(*scene, 4, weights, metric)
    np.testing.assert_allclose(fast, slow, rtol=1e-12)


@METRICS
def test_resampling_is_as_if_images_were_copied_in_a_larger_set(metric):
    scene, weights = made(), draw(40, 30, seed=1)
    fast, slow = resampled_ap(*scene, 4, weights, metric), resampled_oracle(*scene, 4, weights, metric)
    np.testing.assert_allclose(fast, slow, rtol=1e-12)
    result = evaluate(*scene, 4, metric=metric)
    np.testing.assert_allclose(fast[0], [result.mean_ap, *result.ap[1:]], rtol=1e-12)  # row 0 is the set as it is


def test_draws_are_of_as_many_images_and_follow_the_seed():
    weights = draw(50, 200, seed=4)
    assert weights.shape == (201, 50) and (weights.sum(axis=1) == 50).all() and (weights[0] == 1).all()
    assert (weights[1:] == draw(50, 200, seed=4)[1:]).all() and (weights[1:] != draw(50, 200, seed=5)[1:]).any()
    assert abs(weights[1:].mean() - 1) < 1e-12 and 0.9 < weights[1:].var() < 1.1  # of a binomial: 1 - 1 / N


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    """Class 2 is in image 1 alone and never found; where that image is not drawn, the mean is class 1's."""
    found, objects = detections((0, 1, 0.9, BOX), (1, 1, 0.8, BOX)), ground_truth((0, 1, BOX), (1, 1, BOX), (1, 2, FAR))
    ap = resampled_ap(found, objects, 4, np.array([[1, 1], [2, 0], [0, 2]]))
    np.testing.assert_array_equal(ap, [[0.5, 1, 0, np.nan], [1, 1, np.nan, np.nan], [0.5, 1, 0, np.nan]])
    assert interval(ap[:, 2]) == Interval(0, 0, 0)  # from the resamples that have it
    assert all(np.isnan(value) for value in vars(interval(ap[:, 3])).values())


def test_nothing_found_and_nothing_to_find():
    weights = draw(2, 5)
    assert (resampled_ap(detections(), ground_truth((0, 1, BOX)), 2, weights[:1]) == 0).all()
    assert np.isnan(resampled_ap(detections((0, 1, 0.9, BOX)), ground_truth(), 2, weights)).all()


def test_interval_is_the_middle_95_percent_around_the_sets_own_value():
    samples = np.concatenate(([0.3], np.linspace(0, 1, 1001)))
    found = interval(samples)
    assert (found.value, round(found.low, 9), round(found.high, 9)) == (0.3, 0.025, 0.975)
    assert not Interval(0.1, -0.01, 0.2).excludes_zero and not Interval(0.1, 0.0, 0.2).excludes_zero
    assert Interval(0.1, 0.01, 0.2).excludes_zero and Interval(-0.1, -0.2, -0.01).excludes_zero


def test_a_pair_is_told_apart_where_each_alone_is_not():
    """B finds what A finds and a little more: their own intervals overlap, that of the difference excludes 0."""
    found, objects = made(images=150)
    right = np.flatnonzero(match(found, objects, 4).right)
    kept = np.setdiff1d(np.arange(len(found.scores)), right[::8])
    worse = type(found)(*(column[kept] for column in vars(found).values()))
    weights = draw(150, 400)
    a, b = (resampled_ap(rows, objects, 4, weights)[:, 0] for rows in (worse, found))
    assert interval(a).high > interval(b).low and interval(b - a).excludes_zero
    same = interval(a - a)
    assert same == Interval(0, 0, 0)


def test_verdicts():
    assert (
        verdict(Interval(0.0213, 0.0061, 0.0372), "A", "B", 600) == "B is better than A by 0.021 (95 %: 0.006 to 0.037)"
    )
    assert verdict(Interval(-0.0213, -0.0372, -0.0061), "A", "B", 600).startswith(
        "B is worse than A by 0.021 (95 %: 0.006"
    )
    nothing = verdict(Interval(0.004, -0.0004, 0.012), "A", "B", 600)
    assert nothing == "no difference of B to A that 600 pictures can show (95 %: 0.000 to 0.012)"
    assert "equal" in verdict(Interval(0.0, 0.0, 0.0), "A", "B", 600)
    assert "there are no objects" in verdict(Interval(*3 * [float("nan")]), "A", "B", 600)
