from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn.annotations.problems import Problem, refuse_errors
from fastrcnn.annotations.records import Stated, make_record
from fastrcnn.config import Config, DetectionConfig
from fastrcnn.data.check_labels import (
    contradictions,
    crowded,
    label_findings,
    not_pixels,
    nothing_labelled,
    other_names,
    other_origin,
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


def stated(image_id, name="", origins=()):
    return replace(record(image_id, ([0, 0, 9, 9], 1)), stated=Stated(name, tuple(origins)))


def test_files_that_show_another_origin_are_counted_by_how_they_show_it():
    records = [
        stated("a", origins=[(0, "x"), (0, "y")]),
        stated("b", origins=[(0, "x")]),
        stated("c", origins=[(1, "z")]),
    ]
    (problem,) = other_origin("train", records, 1)
    assert "2 of its 3 XML files show 0: 2 x, 1 y; set data.xml_origin: 0" in problem.text
    (problem,) = other_origin("train", records, 0)
    assert "1 of its 3 XML files show 1: 1 z; set data.xml_origin: 1" in problem.text
    assert other_origin("train", [stated("a"), record("b")], 1) == []


@pytest.mark.parametrize("name", ["", "a.jpg", "x.jpg", "a.png", "/home/me/a.jpg", "old/x.jpg"])
def test_a_stale_filename_is_no_finding(name):
    assert other_names("train", [stated("a", name), stated("b", "b.jpg"), record("c")]) == []


@pytest.mark.parametrize("name", ["b.jpg", "/home/me/b.jpg", "C:\\photos\\b.jpg"])
def test_a_filename_of_another_picture_of_the_set_is_found(name):
    (problem,) = other_names("train", [stated("a", name), stated("b", "b.jpg")])
    assert problem.file == Path("labels/a.xml") and "b.jpg" in problem.text


def test_a_renumbered_set_is_one_line_and_a_copied_template_none():
    renumbered = [stated(f"{i}", f"{i + 1}.jpg") for i in range(20)]
    (problem,) = other_names("train", renumbered)
    assert str(problem.file) == "data.train" and "19 XML files" in problem.text
    assert other_names("train", [stated(f"{i}", "0.jpg") for i in range(20)]) == []
