"""Pages for a browser: what is in their text, and how they behave in Chromium."""

import re
from html.parser import HTMLParser
from xml.etree.ElementTree import tostring

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import CONTRASTS, faults

from fastrcnn.evaluate.page import (
    BOTTOM,
    COLUMNS,
    LEFT,
    RIGHT,
    TOP,
    Column,
    data_table,
    element,
    facts,
    name,
    page,
    section,
    share_chart,
    thinned,
)

NASTY = [
    "<script>alert(1)</script>",
    "a & b",
    "\"'",
    "猫",
    "قطة",
    "बिल्ली",
    "🐈",
    "x" * 300,
    "\udc80",
    "\0",
    "</title>",
    "$x",
]
HEADS = [Column("run"), Column("objects", "d"), Column("AP", ".3f", bar=True)]
ROWS = [["ten", 10, 0.5], ["nine", 9, float("nan")], ["<b>", 100, 0.25], ["zero", 0, None]]


def made() -> bytes:
    return page(
        "Two & more runs",
        facts([("weights", "a.safetensors")]),
        section("Scores per class", element("p", "of ", name("<i>"), " & others"), data_table("AP", HEADS, ROWS)),
        section("Names", data_table("of classes", [Column("name")], [[text] for text in NASTY], ["all"])),
    )


class Texts(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(source)

    def handle_data(self, data):
        self.texts.append(data)


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_text_stays_a_text(text, other):
    """Whatever it holds: what a browser reads is what was said, but for what no page may hold."""
    body = element("p", text, element("b", other, title=text), other)
    source = page("t", body).decode()
    assert not faults(source)
    printable = [
        "".join("\ufffd" if ord(c) < 32 and c not in "\t\n\r" or 127 <= ord(c) < 160 else c for c in t)
        for t in (text, other)
    ]
    read = "".join(Texts(source[source.index("<p>") : source.index("</main>")]).texts)
    assert read == printable[0] + 2 * printable[1]


def test_structure():
    source = made().decode()
    assert not faults(source)
    assert "<script>alert" not in source and "<b>" not in source and "<i>" not in source
    assert source.count("aria-sort") > 3 and 'href="#scores-per-class"' in source
    assert source.index("<tfoot") > source.index("<td") and ">nan<" not in source
    assert "$" not in source.replace("$x", ""), "nothing of the template is left"


@pytest.mark.parametrize("script", [True, False])
def test_in_a_browser(browser, tmp_path, script):
    (tmp_path / "a page.html").write_bytes(made())
    browser.open(tmp_path / "a page.html", script=script)
    if script:
        assert not browser.problems()
        assert browser.evaluate("document.querySelectorAll('button:disabled').length") == 0
    assert "Two & more runs" in browser.evaluate("document.body.innerText")


def order(browser) -> str:
    return browser.evaluate(
        "[...document.querySelectorAll('table')[0].tBodies[0].rows].map(r => r.cells[0].textContent).join()"
    )


def test_a_table_is_sorted_by_its_headings(browser, tmp_path):
    """Numbers from the largest first, texts from A; what has none is last in both; by mouse and by keyboard."""
    (tmp_path / "page.html").write_bytes(made())
    browser.open(tmp_path / "page.html")
    assert order(browser) == "ten,nine,<b>,zero"
    expected = {"objects": ("<b>,ten,nine,zero", "zero,nine,ten,<b>"), "AP": ("ten,<b>,zero,nine", "<b>,ten,zero,nine")}
    for title, orders in expected.items():
        for direction, wanted in zip(("descending", "ascending"), orders, strict=True):
            browser.evaluate(
                f"[...document.querySelectorAll('th button')].find(b => b.textContent == '{title}').click()"
            )
            assert order(browser) == wanted
            said = browser.evaluate(
                "[...document.querySelectorAll('table')[0].tHead.rows[0].cells].map(c => c.ariaSort).join()"
            )
            assert said == ",".join(direction if column.title == title else "none" for column in HEADS)
    browser.evaluate("document.querySelector('th button').focus()")
    browser.press("Enter", "\r")
    assert order(browser) == "<b>,nine,ten,zero"
    browser.press(" ", " ")
    assert order(browser) == "zero,ten,nine,<b>"
    assert not browser.problems()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1600])
def test_light_and_dark_narrow_and_wide(browser, tmp_path, width, dark):
    (tmp_path / "page.html").write_bytes(made())
    browser.open(tmp_path / "page.html", width, dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = browser.evaluate(CONTRASTS)
    assert len(contrasts) > 5 and contrasts[0][1] >= 4.5, contrasts[:3]
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark


def test_the_first_key_leads_past_the_links(browser, tmp_path):
    (tmp_path / "page.html").write_bytes(made())
    browser.open(tmp_path / "page.html")
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#main"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_what_the_checks_find(browser, tmp_path):
    """They would not be worth much if they found nothing."""
    bad = "<h1>a</h1><h3>b</h3><main><img src='http://localhost:9/x.png'><th>x</th><i id=a></i><b id=a></main>"
    assert len(faults(bad)) >= 6
    (tmp_path / "bad.html").write_text(f"{bad}<script src='http://localhost:9/x.js'></script><script>x.y()</script>")
    browser.open(tmp_path / "bad.html")
    found = "\n".join(browser.problems())
    assert "x.png" in found and "x.js" in found and "x is not defined" in found


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
