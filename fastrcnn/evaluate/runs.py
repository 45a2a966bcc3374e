"""Runs side by side that were tested on the same pictures: what differs in their settings, and what in their AP."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from fastrcnn import config as configs
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.config_rules import dotted
from fastrcnn.detections import plain_name, read_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.compare import RESAMPLES, Interval, draw, interval, resampled_ap, verdict
from fastrcnn.evaluate.page import Column, data_table, element, facts, name, page, section
from fastrcnn.evaluate.results import AGAIN, Origin, Results
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, few, join

TOLERANCE = 0.05  # image pixels: a box that went through another format, such as YOLO's fractions, is the same
# Of a configuration, what training depends on is not read at test, and the other way round.
ONLY_TEST = ("test.", "data.test", "image.test_")
AT_TEST = (*ONLY_TEST, "data.", "proposals.", "precision")
# No weight depends on these.
NEVER = ("output", "device", "feature_cache", "data.workers", "data.validation", "train.", "expected")
MARK = "* 0 is outside the interval; of 20 classes that do not differ, one is marked by chance"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs on one test set. In lists of intervals the mean comes first, then each class."""

    classes: list[str]
    image_count: int
    settings: dict[str, list[Any]]  # by dotted key, where they differ: the value of each run
    own: list[list[Interval]]  # AP of each run
    differences: list[list[Interval]]  # of each run but the first to the first


@dataclass(frozen=True, eq=False)
class _Scored:
    """What a run found and should have found, with the first run's numbers of classes; images by sorted id."""

    run: Results
    ids: list[str]
    detections: DetectionRows
    objects: ObjectRows


def compare_runs(runs: Sequence[Results], resamples: int = RESAMPLES) -> Comparison:
    """Compare each run with the first one.

    The annotations are read as each run's configuration says. Raises FastRCNNError, naming what differs, for runs of
    other classes, another rule of AP, other pictures or other objects, and where a run's files no longer give the AP
    in its results.json.
    """
    first = runs[0].origin.config
    records: dict[str, list[ImageRecord]] = {}
    scored = []
    for run in runs:
        _check_rules(runs[0], run)
        scored.append(_scored(run, first.classes, records))
        _check_pictures(scored[0], scored[-1])
        _check_objects(scored[0], scored[-1])
    weights = draw(len(scored[0].ids), resamples)
    found = [
        resampled_ap(each.detections, each.objects, len(first.classes) + 1, weights, first.test.ap_rule)
        for each in scored
    ]
    for run, ap in zip(runs, found, strict=True):
        _check_scores(run, first.classes, ap[0, 1:])
    return Comparison(
        first.classes,
        len(scored[0].ids),
        different_settings([run.origin for run in runs]),
        [[interval(column) for column in ap.T] for ap in found],
        [[interval(column) for column in (ap - found[0]).T] for ap in found[1:]],
    )


def _scored(run: Results, classes: Sequence[str], read: dict[str, list[ImageRecord]]) -> _Scored:
    """`read` keeps the annotations that were read before: runs of one data set share them."""
    config = run.origin.config
    data = configs.to_dict(config.data)
    key = json.dumps([data[name] for name in data if name not in ("train", "validation", "workers")])
    if key not in read:
        read[key] = read_data_sets(config.data.test, config.data, classes)
    _, images = read_detections(run.detections)
    try:
        return _Scored(run, sorted(record.id for record in read[key]), *join(images, read[key], classes))
    except FastRCNNError as e:
        raise FastRCNNError(f"{run.detections}: {e}") from None


def _check_rules(first: Results, run: Results) -> None:
    a, b = first.origin.config, run.origin.config
    ours, theirs = ({plain_name(name) for name in config.classes} for config in (a, b))
    if ours != theirs:
        raise FastRCNNError(
            f"{run.path}: has not the classes of {first.path} (without {few(sorted(ours - theirs))}, with "
            f"{few(sorted(theirs - ours))}); only runs of the same classes can be compared"
        )
    if a.test.ap_rule != b.test.ap_rule:
        raise FastRCNNError(
            f"{run.path}: its AP is by test.ap_rule={b.test.ap_rule}, that of {first.path} by {a.test.ap_rule}; "
            f"{AGAIN} test.ap_rule={a.test.ap_rule}"
        )


def _check_pictures(first: _Scored, other: _Scored) -> None:
    ours, theirs = set(first.ids), set(other.ids)
    if ours != theirs:
        raise FastRCNNError(
            f"{other.run.path}: is not of the pictures of {first.run.path}: {len(ours - theirs)} missing "
            f"({few(sorted(ours - theirs))}), {len(theirs - ours)} more ({few(sorted(theirs - ours))}); test both on "
            "the same data.test"
        )


def _check_objects(first: _Scored, other: _Scored) -> None:
    a, b = (_sorted_objects(each.objects) for each in (first, other))
    if len(a) == len(b):
        unlike = (np.abs(a - b) > TOLERANCE).any(axis=1)
        if not unlike.any():
            return
    counts = [np.bincount(rows[:, 0].astype(np.int64), minlength=len(first.ids)) for rows in (a, b)]
    image = int(np.argmax(counts[0] != counts[1])) if len(a) != len(b) else int(a[np.argmax(unlike), 0])
    raise FastRCNNError(
        f"{other.run.path}: its annotations are not those of {first.run.path}: they differ in {first.ids[image]}, with "
        f"{counts[0][image]} and {counts[1][image]} objects; test both on the same data.test"
    )


def _sorted_objects(objects: ObjectRows) -> np.ndarray:
    """Rows of image, class, difficult and box, in an order that does not depend on that in a file."""
    rows = np.column_stack((objects.images, objects.classes, objects.difficult, objects.boxes.astype(np.float64)))
    return rows[np.lexsort(np.rint(rows).T[::-1])]


def _check_scores(run: Results, classes: Sequence[str], ap: np.ndarray) -> None:
    said = {plain_name(name): np.nan if value is None else value for name, value in run.ap.items()}
    for label, value in zip(classes, ap.tolist(), strict=True):
        was = said.get(plain_name(label), np.nan)
        if not np.isclose(was, value, rtol=0, atol=1e-9, equal_nan=True):
            raise FastRCNNError(
                f"{run.path}: says AP {was:.4f} of {label}, and {run.detections} gives {value:.4f} on the annotations "
                f"of today; one of the two has changed since: {AGAIN}"
            )


def different_settings(origins: Sequence[Origin]) -> dict[str, list[Any]]:
    """The keys in which runs differ, dotted, with the value of each run; None where a run does not have the key.

    What a network was trained with comes from its weights, what it was tested with from the evaluation. A key of both,
    such as precision, that differs otherwise at test comes again as `precision, at test`. Keys that change no result
    are left out.
    """
    trained = _differences([origin.trained or origin.config for origin in origins], (), (*ONLY_TEST, *NEVER))
    found = dict(trained)
    left_out = ("data.train", "data.drop_", *NEVER)
    for key, values in _differences([origin.config for origin in origins], AT_TEST, left_out).items():
        if trained.get(key) != values:
            found[f"{key}, at test" if key in trained else key] = values
    return found


def _differences(runs: Sequence[Config], only: tuple[str, ...], left_out: tuple[str, ...]) -> dict[str, list[Any]]:
    """Of the keys that start as `only` says, all for (), and not as `left_out` says."""
    trees = [dotted(configs.to_dict(config)) for config in runs]
    keys = dict.fromkeys(key for tree in trees for key in tree if key.startswith(only or ""))
    columns = {key: [tree.get(key) for tree in trees] for key in keys if not key.startswith(left_out)}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


# ---- the comparison as a page; its parts are those of the text that tools/compare.py prints


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
