import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastrcnn.train import curves
from fastrcnn.train.curves import plot_losses, running_mean


def record(iteration, loss, **more):
    return {"iteration": iteration, "loss": loss, "loss_cls": loss / 2, "loss_bbox": loss / 2, "lr": 0.001} | more


def coloured(path):
    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
    return pixels, (pixels.max(axis=2) - pixels.min(axis=2)) > 60


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, 6.0, 3.0])
    assert running_mean(values, 1).tolist() == [1.5, 3.0, 11 / 3, 4.5]
    assert running_mean(values, 0).tolist() == values.tolist()
    assert running_mean(values[:0], 3).tolist() == []


@given(
    values=st.lists(st.floats(-1e6, 1e6), max_size=60).map(np.array),
    reach=st.integers(0, 80),
)
def test_running_mean_is_that_of_the_loop(values, reach):
    slow = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))]
    assert running_mean(values, reach) == pytest.approx(np.array(slow), rel=1e-9, abs=1e-6)


def test_running_mean_of_broken_values_breaks_their_windows_only():
    found = running_mean(np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0]), 1)
    assert np.isnan(found).tolist() == [False, True, True, True, False, False] and found[5] == 5.5


def test_points_are_in_order_and_the_last_record_of_an_iteration_counts():
    metrics = [record(20, 3.0), record(60, 9.0), record(40, 2.0), record(60, 1.0), {"iteration": 80, "map": 0.5}]
    assert curves.points(metrics, "loss").tolist() == [[20, 3], [40, 2], [60, 1]]
    assert curves.points(metrics, "map").tolist() == [[80, 0.5]]
    assert curves.points(metrics, "other").shape == (0, 2)


def test_the_plot_shows_the_losses_and_map_only_where_there_is_one(tmp_path):
    metrics = [record(20 * i, 3 / (1 + i)) for i in range(50)]
    plot_losses(metrics, tmp_path / "plain.png")
    plot_losses([*metrics, record(1000, 0.05, map=0.8, best_iteration=1000, best_map=0.8)], tmp_path / "map.png")
    plain, plain_marks = coloured(tmp_path / "plain.png")
    evaluated, evaluated_marks = coloured(tmp_path / "map.png")
    assert evaluated.shape[0] > plain.shape[0] and evaluated.shape[1] == plain.shape[1]
    red = np.array([214, 39, 40])  # tab:red, the mAP
    assert not (np.abs(plain - red).max(axis=2) < 20).any()
    assert (np.abs(evaluated - red).max(axis=2) < 20)[evaluated.shape[0] // 2 :].any()
    assert plain_marks.any() and evaluated_marks.any()
    plot_losses([*metrics, record(1000, 0.05, map=0.8)], tmp_path / "no_best.png")
    assert not np.array_equal(coloured(tmp_path / "no_best.png")[0], evaluated)


@pytest.mark.parametrize("metrics", [[], [record(1, 2.0)], [record(1, float("nan")), record(2, float("inf"))]])
def test_few_or_broken_values_still_give_a_plot(tmp_path, metrics):
    plot_losses(metrics, tmp_path / "new/losses.png")
    with Image.open(tmp_path / "new/losses.png") as file:
        assert file.format == "PNG" and file.width > 500


def test_the_same_metrics_give_the_same_picture_and_others_another(tmp_path):
    for name, factor in (("a", 3), ("b", 3), ("c", 5)):
        plot_losses([record(i, factor / (1 + i)) for i in range(30)], tmp_path / f"{name}.png")
    a, b, c = (coloured(tmp_path / f"{name}.png")[0] for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)
