"""Line charts of shares, 0..1 on both axes, as SVG within a page: sharp at any size, in the page's colours."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fastrcnn.evaluate.page import element

WIDTH, HEIGHT = 220, 180  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 36, 212, 8, 146  # where 0 and 1 lie
CURVES = ("curve", "curve second", "curve third")  # colour and dashes, see page.html
COLUMNS = 100  # of the plot; a curve keeps the first, the last, the lowest and the highest point in each


def share_chart(
    key: str,
    title: str,
    description: str,
    axes: tuple[str, str],
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    marks: Sequence[tuple[float, float]] = (),
) -> Element:
    """Curves of (x [n], y [n]) and single points. `key`, an id of the page, differs from chart to chart; `description`
    says the numbers to who cannot see them."""
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-description"),
        *_axes(*axes),
        *(element("path", d=_path(*curve), class_=kind) for curve, kind in zip(curves, CURVES, strict=False)),
        *(element("circle", cx=f"{_x(x):.1f}", cy=f"{_y(y):.1f}", r="2.2", class_="mark") for x, y in marks),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        aria_labelledby=f"{key}-title {key}-description",
    )


def _x(share: float) -> float:
    return LEFT + share * (RIGHT - LEFT)


def _y(share: float) -> float:
    return BOTTOM - share * (BOTTOM - TOP)


def _axes(x_title: str, y_title: str) -> list[Element]:
    lines = "".join(f"M{_x(s):g} {TOP}V{BOTTOM}M{LEFT} {_y(s):g}H{RIGHT}" for s in (0, 0.25, 0.5, 0.75, 1))
    ticks = [(s, f"{s:g}") for s in (0, 0.5, 1)]
    middle = (TOP + BOTTOM) / 2
    return [
        element("path", d=lines, class_="grid"),
        *(element("text", text, x=_x(s), y=BOTTOM + 12, text_anchor="middle") for s, text in ticks),
        *(element("text", text, x=LEFT - 4, y=f"{_y(s) + 3:g}", text_anchor="end") for s, text in ticks),
        element("text", x_title, x=(LEFT + RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle"),
        element("text", y_title, x=10, y=middle, text_anchor="middle", transform=f"rotate(-90 10 {middle:g})"),
    ]


def _path(x: ArrayLike, y: ArrayLike) -> str:
    points = np.column_stack((np.asarray(x, np.float64), np.asarray(y, np.float64)))
    points = thinned(points[np.isfinite(points).all(axis=1)])
    return "M" + " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in points.tolist()) if len(points) else ""


def thinned(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "_ 2"]:
    """The points of a curve that an eye can tell apart: x must not fall along it."""
    if len(points) <= 2 * COLUMNS:
        return points
    column = np.floor(points[:, 0] * COLUMNS)
    kept = set()
    for part in np.split(np.arange(len(points)), np.flatnonzero(np.diff(column)) + 1):
        kept |= {part[0], part[-1], part[points[part, 1].argmin()], part[points[part, 1].argmax()]}
    return points[sorted(kept)]
