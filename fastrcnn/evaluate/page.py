"""Pages to read in a browser: one file without outside requests, light and dark, narrow and wide, for every reader.

A page is a tree of elements, so that a text can never become markup, whatever is in it. The look, and the few lines of
script that sort a table, are in page.html; all is readable without the script.

    page("Runs", section("Scores", data_table("mAP of each run", [Column("run"), Column("mAP", ".4f")], rows)))
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike

Content: TypeAlias = Element | str
Cell: TypeAlias = Element | str | float | None  # None and NaN: nothing to say

# Control characters, which no page may hold, and halves of characters, which stand for bytes that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def element(tag: str, *content: Content, **attributes: object) -> Element:
    """An element of HTML or SVG with what is in it, texts or elements.

    Names of attributes are written class_ for class and aria_label for aria-label.
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): _text(value) for name, value in attributes.items()})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _text(part)
        else:
            made.text = (made.text or "") + _text(part)
    return made


def _text(value: object) -> str:
    return _UNPRINTABLE.sub("\ufffd", str(value))


def name(text: str, tag: str = "bdi") -> Element:
    """A name that a user gave, in any script: its direction does not turn what stands around it."""
    return element(tag, text, dir="auto")


def section(title: str, *content: Content) -> Element:
    """A part of a page under its heading; the page links to it."""
    anchor = re.sub(r"\W+", "-", title.lower()).strip("-")
    return element(
        "section", element("h2", title, id=f"{anchor}-title"), *content, id=anchor, aria_labelledby=f"{anchor}-title"
    )


def page(title: str, *content: Element) -> bytes:
    """A whole page: its heading, links to its sections, and its content."""
    links = [
        element("li", element("a", part.findtext("h2") or "", href=f"#{part.get('id')}"))
        for part in content
        if part.tag == "section"
    ]
    head = element("header", element("h1", title), element("nav", element("ul", *links), aria_label="Sections"))
    body = "".join(tostring(part, "unicode", "html") for part in (head, element("main", *content, id="main")))
    template = Template(files("fastrcnn.evaluate").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(_text(title)), body=body).encode()


def facts(entries: Iterable[tuple[str, Content]]) -> Element:
    """Terms with what they are."""
    return element(
        "dl", *(element(*row) for term, what in entries for row in (("dt", term), ("dd", what))), class_="facts"
    )


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers where `form`, as format() takes it, is given, else texts."""

    title: str
    form: str = ""
    bar: bool = False  # numbers of 0..1 with a bar behind them


def data_table(
    caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], foot: Sequence[Cell] = ()
) -> Element:
    """A table that the reader sorts by its headings. The first cell of a row is its heading; `foot` stays below."""
    heads = [
        element(
            "th",
            element("button", column.title, type="button", disabled=""),  # the script enables it
            scope="col",
            aria_sort="none",
            **({"class_": "number"} if column.form else {}),
        )
        for column in columns
    ]
    parts = [element("thead", element("tr", *heads)), element("tbody", *(_row(columns, row) for row in rows))]
    if foot:
        parts.append(element("tfoot", _row(columns, foot)))
    return scrolling(caption, element("table", element("caption", caption), *parts))


def _row(columns: Sequence[Column], cells: Sequence[Cell]) -> Element:
    row = [
        _cell(column, value, "td" if i else "th") for i, (column, value) in enumerate(zip(columns, cells, strict=True))
    ]
    row[0].set("scope", "row")
    return element("tr", *row)


def _cell(column: Column, value: Cell, tag: str) -> Element:
    if value is None or isinstance(value, float) and math.isnan(value):
        return element(tag, "\u2013", data_value="", **({"class_": "number"} if column.form else {}))
    if isinstance(value, Element | str):
        return element(tag, value if isinstance(value, Element) else name(value))
    made = element(tag, format(value, column.form), class_="number", data_value=f"{value:.9g}")
    if column.bar:
        share = 100 * min(max(value, 0), 1)
        made.set("class", "number bar")
        made.set("style", f"background:linear-gradient(to right,var(--bar) {share:.0f}%,transparent {share:.0f}%)")
    return made


def heat_table(caption: str, rows: Sequence[str], columns: Sequence[str], numbers: Int64[np.ndarray, "R C"]) -> Element:
    """Counts under names on both sides; the darker a cell, the larger its share of its row."""
    heads = [element("td"), *(element("th", name(label), scope="col") for label in columns)]
    body = []
    for label, row in zip(rows, numbers, strict=True):
        shares = (row / max(row.sum(), 1) / 2).tolist()  # at most half of the colour: the number stays readable
        cells = [
            element("td", str(n) if n else "", class_="number", style=f"background:rgba(var(--heat),{share:.2f})")
            for n, share in zip(row.tolist(), shares, strict=True)
        ]
        body.append(element("tr", element("th", name(label), scope="row"), *cells))
    parts = (element("caption", caption), element("thead", element("tr", *heads)), element("tbody", *body))
    return scrolling(caption, element("table", *parts, class_="matrix"))


def scrolling(label: str, content: Element) -> Element:
    """Content that may be wider than the screen: it scrolls by itself, also by keyboard."""
    return element("div", content, class_="wide", role="group", aria_label=label, tabindex="0")


# ---- line charts of shares, 0..1 on both axes, as SVG within a page: sharp at any size, in the page's colours


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
