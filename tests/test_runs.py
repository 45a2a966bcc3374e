"""Runs compared as they lie in folders: what is told of them, and which ones are refused."""

import json
import runpy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import faults

from fastrcnn import config as configs
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.detections import DetectedImage, Detections, write_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.results import Origin, read_results
from fastrcnn.evaluate.run import evaluate_detections
from fastrcnn.evaluate.runs import compare_runs, comparison_page, different_settings, letter, verdicts

TOOLS = Path(__file__).parent.parent / "tools"


def detect(config, path, noise, seed=0):
    """A detections.json of the objects of the test set, shaken by so many pixels."""
    rng, images = np.random.default_rng(seed), []
    for record in read_data_sets(config.data.test, config.data, config.classes):
        boxes = (record.boxes + rng.normal(0, noise, record.boxes.shape)).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
        scores = rng.random(len(boxes)).astype(np.float32)
        images.append(DetectedImage(record.id, Detections(boxes, record.classes, scores, tuple(config.classes))))
    write_detections(path, config.classes, images)
    return path


@pytest.fixture
def tested(tree, tmp_path):
    """A function that tests a run: detections with noise, scored into a results folder of this name."""

    def make(name, noise=0.0, **changes):
        config = configs.from_dict({**tree, **changes})
        detections = detect(config, tmp_path / name / "detections.json", noise)
        evaluate_detections(config, detections, tmp_path / name)
        return tmp_path / name

    return make


def compare(*folders):
    return compare_runs([read_results(folder) for folder in folders], resamples=200)


def test_a_comparison_tells_what_results_json_says_and_how_far_it_holds(tested):
    first, other = tested("a", noise=90), tested("b", test={"nms_iou": 0.5})
    found = compare(first, other)
    numbers = [json.loads((folder / "results.json").read_text()) for folder in (first, other)]
    for own, said in zip(found.own, numbers, strict=True):
        assert own[0].value == pytest.approx(said["map"]) and len(own) == 1 + len(found.classes)
        for name, each in zip(found.classes, own[1:], strict=True):
            assert each.value == pytest.approx(said["ap"][name])
    assert found.differences[0][0].value == pytest.approx(numbers[1]["map"] - numbers[0]["map"])
    assert found.settings == {"test.nms_iou": [0.3, 0.5]} and found.image_count == 4
    assert found.differences[0][0].excludes_zero and verdicts(found)[0].startswith("B is better than A by")


def test_three_runs_each_against_the_first_and_equal_ones(tested):
    found = compare(tested("a", noise=90), tested("b", noise=90), tested("c"))
    assert len(found.own) == 3 and len(found.differences) == 2 and not found.settings
    assert verdicts(found)[0].startswith("B and A are equal") and "C is better than A" in verdicts(found)[1]
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "R27"]


def test_classes_in_another_order_and_case_are_the_same(tested, tree):
    first = tested("a", noise=9)
    other = tested("b", noise=9, classes=[name.upper() for name in reversed(tree["classes"])])
    found = compare(first, other)
    assert [each.value for each in found.own[0]] == [each.value for each in compare(first, first).own[0]]
    assert not {key for key in found.settings if key != "classes"}


def changed_data(tree, **changes):
    return {"data": {**tree["data"], **changes}}


def test_runs_that_cannot_be_compared_are_refused(tested, tree, shapes, tmp_path):
    first = tested("a")
    names = tree["classes"]
    some = {"classes": names[1:], "data": {**tree["data"], "on_unknown_class": "ignore"}}
    cases = {
        rf"has not the classes of .*without {names[0]}, with none": tested("classes", **some),
        r"by test.ap_rule=area, that of .* by 11point.*test.ap_rule=11point": tested("rule", test={"ap_rule": "area"}),
        r"is not of the pictures of .*: 2 missing \(\w+, \w+\), 0 more": tested("few", **changed_data(tree, limit=2)),
        r"its annotations are not those of .*: they differ in \w+, with \d+ and \d+ objects": tested(
            "moved", **changed_data(tree, xml_origin=0)
        ),
    }
    for message, folder in cases.items():
        with pytest.raises(FastRCNNError, match=message):
            compare(first, folder)
    shutil.copytree(shapes, tmp_path / "set")
    xml = next(file for file in (tmp_path / "set/Annotations").iterdir() if file.stem in cases_of_test(shapes))
    xml.write_text(xml.read_text().replace("<object>", "<object><difficult>1</difficult>", 1))
    other = tested("other", **changed_data(tree, test=[{**tree["data"]["test"][0], "root": str(tmp_path / "set")}]))
    with pytest.raises(FastRCNNError, match=f"they differ in {xml.stem}"):
        compare(first, other)


def cases_of_test(root):
    return (root / "ImageSets/Main/test.txt").read_text().split()


def test_results_that_files_changed_under_are_refused(tested, tree, tmp_path):
    first, other = tested("a"), tested("b")
    detect(configs.from_dict(tree), other / "detections.json", noise=30)
    with pytest.raises(FastRCNNError, match=r"b/results.json: says AP 1.0000 of \w+, and .*has changed since"):
        compare(first, other)
    (other / "detections.json").unlink()
    with pytest.raises(FastRCNNError, match="b/detections.json: cannot be read"):
        compare(first, other)


def test_what_is_no_result_is_refused(tested, tmp_path):
    with pytest.raises(FastRCNNError, match=r"there is no results.json; give a results folder"):
        read_results(tmp_path)
    folder = tested("a")
    for path in (tmp_path / "absent", folder / "detection.json"):
        with pytest.raises(FastRCNNError, match="no such file or folder"):
            read_results(path)
    whole = json.loads((folder / "results.json").read_text())
    for text in ('{"map": 0.5, "ap": {}}', "[]", "{", json.dumps({**whole, "config": None})):
        (folder / "results.json").write_text(text)
        with pytest.raises(FastRCNNError, match="lacks what a comparison needs.*score its detections again"):
            read_results(folder)
    (folder / "results.json").write_text(json.dumps({**whole, "config": {"classes": []}}))
    with pytest.raises(FastRCNNError, match="results.json: classes"):
        read_results(folder)


def test_a_results_folder_keeps_its_detections_when_it_moves(tested, tree, tmp_path):
    folder = tested("run/results")
    again = tmp_path / "again"
    evaluate_detections(configs.from_dict(tree), folder / "detections.json", again)  # names them where they are
    assert read_results(again).detections == (folder / "detections.json").resolve()
    assert read_results(tmp_path / "run").path == read_results(folder / "detections.json").path
    shutil.copy(folder / "detections.json", again / "mine.json")
    with pytest.raises(FastRCNNError, match="mine.json: .*results.json is not of this file"):
        read_results(again / "mine.json")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert compare(tmp_path / "moved", tmp_path / "moved").own[0][0].value == 1


def test_settings_are_those_of_training_and_those_at_test(tree):
    """Both were tested with one configuration; the second's weights were trained otherwise."""
    config = configs.from_dict(tree)
    trained = configs.from_dict(
        {**tree, "solver": {"lr": 0.5}, "precision": "bfloat16", "test": {"nms_iou": 0.9}, "output": "else"}
    )
    found = different_settings([Origin(config, config, "a"), Origin(config, trained, "b")])
    assert found["solver.lr"] == [0.01, 0.5] and found["precision"] == ["float32", "bfloat16"]
    assert not {"test.nms_iou", "output"} & set(found)
    half = different_settings([Origin(config, trained, "a"), Origin(trained, trained, "b")])
    assert half == {"test.nms_iou": [0.3, 0.9], "precision": ["float32", "bfloat16"]}
    two = configs.from_dict({**tree, "precision": "bfloat16"})
    mixed = different_settings([Origin(two, config, "a"), Origin(config, two, "b")])
    assert mixed == {"precision": ["float32", "bfloat16"], "precision, at test": ["bfloat16", "float32"]}


def test_the_page(tested, browser, tmp_path):
    comparison = compare(tested("a", noise=90), tested("b", test={"nms_iou": 0.5}))
    source = comparison_page(comparison, ["<b>run</b>", "猫"])
    assert not faults(source.decode()) and "<b>run" not in source.decode() and "B is better" in source.decode()
    (tmp_path / "page.html").write_bytes(source)
    browser.open(tmp_path / "page.html", 360)
    assert not browser.problems() and browser.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_tool(tested, tmp_path, monkeypatch, capsys):
    runs = [str(tested("a", noise=90)), str(tested("b") / "detections.json")]

    def tool(*words):
        monkeypatch.setattr(sys, "argv", ["compare.py", *words])
        monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(TOOLS / "compare.py"), run_name="__main__")
        sys.modules.pop("_common")
        return stopped.value.code, capsys.readouterr()

    page = tmp_path / "pages" / "a.html"
    for _ in range(2):  # a page is replaced
        code, said = tool(*runs, "--html", str(page))
        assert not code and "B is better than A by" in said.out and "all settings are equal" in said.out
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")
    kept = Path(runs[1]).read_bytes()
    for target in (runs[1], runs[0]):
        code, said = tool(*runs, "--html", target)
        assert code == 1 and "is no page; choose another" in said.err
    assert Path(runs[1]).read_bytes() == kept
    assert tool(runs[0])[0] == "error: compare.py takes two runs or more"
