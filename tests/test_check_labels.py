from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import make_record
from fastrcnn.config import Config, DetectionConfig
from fastrcnn.data.check_labels import (
    contradictions,
    crowded,
    label_findings,
    not_pixels,
    nothing_labelled,
    refuse_errors,
)
from fastrcnn.errors import FastRCNNError

CLASSES = ["cat", "dog"]


def record(image_id, *objects, folder="labels", annotation=True):
    """objects: (box, class number)."""
    objects = [(np.array(box, np.float32), number, False) for box, number in objects]
    xml = Path(folder) / f"{image_id}.xml" if annotation else None
    return make_record(image_id, Path(f"{image_id}.jpg"), 100, 80, objects, xml)


def left_out(name, count, outcome="ignored", kind="unknown class"):
    return [Problem(kind, Path("a.xml"), i, "its class", outcome, name) for i in range(1, count + 1)]


def test_a_set_without_any_object_names_the_names_of_its_files_and_the_nearest_class():
    problem = nothing_labelled("train", [record("a")], [*left_out("kat", 3), *left_out("cow", 1)], CLASSES)
    assert problem.outcome == "error" and str(problem.file) == "data.train"
    assert "'kat' 3 times, 'cow' 1 times" in problem.text and "'cat'" in problem.text
    with pytest.raises(FastRCNNError, match="no object of any class"):
        refuse_errors([problem])


@pytest.mark.parametrize(
    ("problems", "annotation", "says"),
    [
        ([], True, "annotations of 1 images hold none"),
        ([], False, "none has an annotation"),
        (left_out("cat", 2, "skipped", "box of another shape"), True, "2 skipped (box of another shape)"),
    ],
)
def test_whatever_left_no_object_is_named(problems, annotation, says):
    problem = nothing_labelled("train", [record("a", annotation=annotation)], problems, CLASSES)
    assert says in problem.text


def test_a_test_set_without_annotations_is_only_not_scored_and_refused_objects_are_found_already():
    assert nothing_labelled("test", [record("a", annotation=False)], [], CLASSES) is None
    assert nothing_labelled("test", [record("a")], [], CLASSES) is not None
    refused = left_out("cat", 2, "error", "box in fractions")
    assert nothing_labelled("train", [record("a")], refused, CLASSES) is None
    assert label_findings("train", [record("a")], refused, Config(classes=CLASSES)) == [
        Problem(
            "no objects",
            Path("labels/a.xml"),
            None,
            "has no objects of these classes; data.drop_empty: true leaves such images out of training",
            "noted",
        )
    ]


def test_absent_classes_name_what_the_files_name_instead():
    objects = [record("a", ([0, 0, 9, 9], 2))]
    findings = label_findings("train", objects, left_out("kat", 2), Config(classes=CLASSES))
    assert [(p.kind, p.outcome) for p in findings] == [("class without objects", "noted")]
    assert "'cat'" in findings[0].text and "'kat' 2 times" in findings[0].text
    assert label_findings("train", objects, left_out("kat", 2, "error"), Config(classes=CLASSES)) == []


@given(st.integers(0, 6), st.integers(1, 6))
def test_more_objects_than_detections_are_found_with_both_numbers(objects, limit):
    boxes = [([i, 0, i + 5, 9], 1) for i in range(objects)]
    found = crowded([record("a", *boxes)], limit)
    assert len(found) == (objects > limit)
    assert all(f"{objects} objects" in p.text and f"keeps {limit} " in p.text for p in found)
    config = Config(classes=["cat"], test=DetectionConfig(max_detections=limit))
    kinds = [p.kind for p in label_findings("train", [record("a", *boxes)], [], config)]
    assert ("more objects than detections" in kinds) == (objects > limit)


def test_the_same_object_twice_and_one_box_of_two_classes():
    box, other = [1, 2, 30, 40], [1, 2, 30, 41]
    assert contradictions([record("a", (box, 1), (other, 1)), record("b", (box, 2))], CLASSES) == []
    twice, two = contradictions([record("a", (box, 1), (other, 2), (box, 1), (box, 2))], CLASSES)
    assert (twice.kind, twice.object) == ("object twice", "image a, box 1 2 30 40") and "'cat'" in twice.text
    assert two.kind == "box of two classes" and "'cat' and 'dog'" in two.text


def test_a_set_whose_boxes_are_all_within_one_pixel_is_not_in_pixels():
    small, real = ([0, 0.25, 1, 0.5], 1), ([0, 0, 3, 3], 1)
    (problem,) = not_pixels([record("a", small), record("b", small), record("c", real, folder="others")])
    assert (problem.file, problem.outcome) == (Path("labels"), "error") and "all 2 boxes" in problem.text
    assert not_pixels([record("a", small), record("b", real)]) == []
    assert not_pixels([record("a")]) == []
