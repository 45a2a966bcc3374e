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
from jaxtyping import Int64

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
