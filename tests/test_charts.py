"""Charts as SVG: what is drawn, and what is left out of long curves."""

import re
from xml.etree.ElementTree import tostring

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn.evaluate.charts import BOTTOM, COLUMNS, LEFT, RIGHT, TOP, share_chart, thinned


def drawn(*curves, marks=()):
    return share_chart("key", "Curves", "of numbers", ("x", "y"), curves, marks)


def test_a_chart_has_its_points_and_says_what_it_is():
    chart = drawn(([0, 0.5, 1], [0, 1, 0.25]), ([], []), marks=[(1, 1)])
    path, nothing = (part.get("d") for part in chart.iter("path") if "curve" in part.get("class"))
    assert (
        path == f"M{LEFT:.1f},{BOTTOM:.1f} {(LEFT + RIGHT) / 2:.1f},{TOP:.1f} {RIGHT:.1f},{BOTTOM * 0.75 + TOP / 4:.1f}"
    )
    assert nothing == "", "a class without detections has no curve"
    assert [(dot.get("cx"), dot.get("cy")) for dot in chart.iter("circle")] == [(f"{RIGHT:.1f}", f"{TOP:.1f}")]
    ids = {part.get("id"): part.text for part in chart.iter() if part.get("id")}
    assert [ids[key] for key in chart.get("aria-labelledby").split()] == ["Curves", "of numbers"]


def test_numbers_that_are_not_finite_are_not_drawn():
    assert "nan" not in tostring(drawn(([0, 0.5, 1], [np.nan, 1, np.nan])), "unicode")


@given(st.integers(0, 3000), st.integers(0, 10))
def test_a_long_curve_keeps_what_can_be_seen(count, seed):
    """In each column its first, last, lowest and highest point, in their order; a short one keeps all."""
    rng = np.random.default_rng(seed)
    points = np.column_stack((np.sort(rng.random(count)), rng.random(count)))
    kept = thinned(points)
    assert len(kept) == count if count <= 2 * COLUMNS else len(kept) <= 4 * (COLUMNS + 1)
    assert all((row == points).all(axis=1).any() for row in kept[:: max(1, len(kept) // 20)])
    assert (np.diff(kept[:, 0]) >= 0).all()
    for column in range(0, COLUMNS, 7):
        some, left = (p[np.floor(p[:, 0] * COLUMNS) == column] for p in (points, kept))
        assert len(some) == 0 or (some[0] == left[0]).all() and (some[-1] == left[-1]).all()
        assert len(some) == 0 or (np.ptp(some[:, 1]) == np.ptp(left[:, 1]))


def test_a_curve_of_many_points_is_small():
    shares = np.linspace(0, 1, 100_000)
    text = tostring(drawn((shares, shares)), "unicode")
    assert len(text) < 10_000 and len(re.findall(r"\d,\d", text)) > COLUMNS
