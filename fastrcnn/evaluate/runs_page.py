"""The comparison of runs as a page for a browser; its parts are those of the text that tools/compare.py prints."""

from collections.abc import Sequence
from typing import Any

import yaml

from fastrcnn.evaluate.compare import Interval, verdict
from fastrcnn.evaluate.page import Column, data_table, element, facts, name, page, section
from fastrcnn.evaluate.runs import Comparison

MARK = "* 0 is outside the interval; of 20 classes that do not differ, one is marked by chance"


def letter(index: int) -> str:
    """A short name for a run: A to Z, then R27 and so on."""
    return chr(ord("A") + index) if index < 26 else f"R{index + 1}"


def shown_value(value: Any) -> str:
    """A value of a configuration as it is written on a command line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n")).strip()


def row_names(comparison: Comparison) -> list[str]:
    """What the intervals of a run are of: the mean, then each class."""
    present = sum(each.value == each.value for each in comparison.own[0][1:])
    return [f"mean of {present}", *comparison.classes]


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each run but the first."""
    return [
        verdict(against[0], letter(0), letter(i), comparison.image_count)
        for i, against in enumerate(comparison.differences, start=1)
    ]


def comparison_page(comparison: Comparison, names: Sequence[str]) -> bytes:
    """The page of runs with these names."""
    runs = facts(
        (f"{letter(i)}: mAP {own[0].value:.4f} (95 %: {own[0].low:.4f} to {own[0].high:.4f})", name(title))
        for i, (title, own) in enumerate(zip(names, comparison.own, strict=True))
    )
    answers = [element("p", element("strong", sentence)) for sentence in verdicts(comparison)]
    heads = [Column("key"), *(Column(letter(i)) for i in range(len(names)))]
    rows = [[key, *map(shown_value, values)] for key, values in comparison.settings.items()]
    settings = data_table("Settings that differ", heads, rows) if rows else element("p", "All settings are equal.")
    tables = [
        section(f"{letter(i)} and A", data_table(f"AP of A and {letter(i)}", *_table(comparison, i)))
        for i in range(1, len(names))
    ]
    method = (
        f"AP on {comparison.image_count} pictures. An interval holds 95 % of the values that resamples of these "
        "pictures give (paired bootstrap); it says nothing of another seed of training."
    )
    parts = [section("Settings", settings), section("AP", element("p", method), element("p", MARK)), *tables]
    return page("Comparison of runs", runs, *answers, *parts)


def _table(comparison: Comparison, i: int) -> tuple[list[Column], list[list[Any]], list[Any]]:
    heads = [Column("class"), Column("A", ".4f", bar=True), Column(letter(i), ".4f", bar=True)]
    heads += [Column(f"{letter(i)} - A", "+.4f"), Column("from", "+.4f"), Column("to", "+.4f"), Column("marked")]

    def row(title: str, a: Interval, b: Interval, difference: Interval) -> list[Any]:
        mark = "*" if difference.excludes_zero else ""
        return [title, a.value, b.value, difference.value, difference.low, difference.high, mark]

    columns = (row_names(comparison), comparison.own[0], comparison.own[i], comparison.differences[i - 1])
    mean, *rows = [row(*each) for each in zip(*columns, strict=True)]
    return heads, rows, mean
