from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import make_record
from fastrcnn.data.check_report import report_text
from fastrcnn.data.checks import CheckedSet, Report
from fastrcnn.proposals.recall import proposal_recall

BOX = np.array([10, 5, 20, 15], np.float32)


def report(findings=(), names=None, objects=(), proposals=None):
    record = make_record("a", Path("a.jpg"), 40, 30, [(BOX, number, False) for number in objects], Path("a.xml"))
    recall = None if proposals is None else proposal_recall([(record, np.array(proposals, np.float32))])
    sets = [CheckedSet("train", "train data", [record], recall, None)]
    return Report(["cat", "dog"], sets, list(findings), Counter(names or {}))


def noted(text, count=1, files=1):
    return [Problem("kind", Path(f"{i % files}.xml"), i + 1, text, "noted") for i in range(count)]


def test_lines_that_say_the_same_are_one_with_their_number():
    findings = [*noted("is odd", 10, files=4), *noted("is even", 3)]
    lines = report_text(report(findings)).splitlines()
    assert lines[:5] == [
        "kind: 13 (noted)",
        "    0.xml: object 1: is odd (and 9 more, in 4 files: the same)",
        "    0.xml: object 1: is even",
        "    0.xml: object 2: is even",
        "    0.xml: object 3: is even",
    ]
    assert report_text(report(findings), per_kind=None).count("is odd") == 10


def test_what_is_not_shown_is_counted():
    text = report_text(report([*noted("is odd", 10), *noted("a"), *noted("b"), *noted("c", 5)]), per_kind=2)
    assert "and 6 more; --all lists them" in text


def test_names_of_the_files_can_be_pasted_as_classes():
    names = {"cat": 3, "no": 2, "traffic: light": 1, "7": 1, "Straße": 4}
    text = report_text(report(names=names))
    (line,) = [line for line in text.splitlines() if line.startswith("classes: ")]
    assert yaml.safe_load(line) == {"classes": sorted(names)}
    assert "names in the files: Straße 4 (not in classes), cat 3, no 2 (not in classes)" in text
    assert "no class" in report_text(report())


def test_parts_without_data_sets_and_rows_without_objects_are_not_shown():
    text = report_text(report(objects=[1, 1], proposals=[[10, 5, 20, 15]]))
    assert "nothing to report" in text and "test" not in text and "nan" not in text
    assert [line.split()[0] for line in text.split("\n\n")[-1].splitlines()[2:]] == ["all", "small", "cat"]
    assert "recall of train data: it has no objects to find" in report_text(report(proposals=[[0, 0, 5, 5]]))
