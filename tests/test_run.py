import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import made_proposals

from fastrcnn import config as configs
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.data.shapes import make_shapes
from fastrcnn.detect.detector import Detector
from fastrcnn.detections import DetectedImage, Detections, write_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.analysis import analyse
from fastrcnn.evaluate.detect_set import Pass, detection_key
from fastrcnn.evaluate.keep_thresholds import keep_thresholds
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.run import evaluate_detections, evaluate_weights
from fastrcnn.model.weights import load_model
from fastrcnn.proposals.make import make_proposals
from fastrcnn.train.loop import train


@pytest.mark.parametrize(("sampling", "layers"), [({}, None), ({"hard_candidates": 100}, ["pool2", "conv3_2"])])
def test_four_images_are_learnt_by_heart(tree, tmp_path, sampling, layers):
    """All parts together, from reading to average precision: whatever is wrong in one of them keeps mAP below 1."""
    root = tmp_path / "four"
    make_shapes(root, train=4, test=1, seed=5)
    (root / "proposals.json").write_text(json.dumps(made_proposals(root)))
    dataset = {"root": str(root), "split": "train", "proposals": str(root / "proposals.json")}
    tree["data"] |= {"train": [dataset], "test": [dataset]}
    tree["image"] = {"train_short_side": [128], "test_short_side": [128], "flip": False}
    tree["model"] |= {"freeze_up_to": "", "fc_width": 64, "dropout": 0.0, "pool_layers": layers}
    tree["sampling"] = {"rois_per_batch": 64, **sampling}
    tree["solver"] = {"lr": 0.02, "steps": [180], "max_iterations": 220, "warmup_iterations": 20, "clip_gradient": 5.0}
    tree["train"] = {"checkpoint_every": 1000}
    config = configs.from_dict(tree)
    weights = train(config)
    assert evaluate_weights(config, weights, tmp_path / "results").mean_ap == pytest.approx(1.0)


def test_detections_of_other_images_are_not_scored(tree, tmp_path):
    config = configs.from_dict(tree)
    path = tmp_path / "detections.json"
    write_detections(path, config.classes, [])
    with pytest.raises(FastRCNNError, match="not of the same images: 4 without detections"):
        evaluate_detections(config, path, tmp_path / "results")
    assert not Path(tmp_path / "results" / "results.json").exists()


def test_a_result_is_never_written_over_what_is_read(tree, tmp_path):
    config = configs.from_dict(tree)
    (tmp_path / "results.json").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "results.json")
    for work in (evaluate_weights, evaluate_detections):
        for name in ("results.json", "link"):
            with pytest.raises(FastRCNNError, match="results.json: would be written over"):
                work(config, tmp_path / name, tmp_path)
    assert (tmp_path / "results.json").read_text() == "mine"


def test_an_evaluation_resumes_on_data_that_moved(tree, shapes, tmp_path, monkeypatch):
    weights = train(configs.from_dict(tree))
    shutil.copytree(shapes, tmp_path / "moved")
    monkeypatch.setattr("fastrcnn.evaluate.run._score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_weights(configs.from_dict(tree), weights, tmp_path / "results")
    monkeypatch.undo()
    tree["data"]["test"][0] |= {"root": str(tmp_path / "moved")}
    monkeypatch.setattr("fastrcnn.detect.detector.Detector.detect", interrupted)  # all is done: nothing to detect
    assert evaluate_weights(configs.from_dict(tree), weights, tmp_path / "results").table


@pytest.mark.parametrize("per_class", [1, 100])
def test_detections_chosen_over_the_set_are_the_same_after_a_kill(tree, tmp_path, monkeypatch, caplog, per_class):
    """No score floor, no more than asked for on average, and with 100 all that NMS leaves."""
    config = configs.from_dict(tree | {"test": {"detections_per_class": per_class}})
    weights = train(config)
    with caplog.at_level("INFO"):
        unbroken = evaluate_weights(config, weights, tmp_path / "a")
    assert "detections kept score more than" in caplog.text and "test.max_detections" not in caplog.text
    counts = np.bincount(unbroken.rows[0].classes, minlength=6)[1:]
    assert unbroken.rows[0].scores.min() < 0.2 and (counts <= 4 * per_class).all() and (counts > 0).any()
    calls = []

    def killed(detector, *asked, original=Detector.best_of_each_class):
        calls.append(asked)
        return interrupted() if len(calls) == 3 else original(detector, *asked)

    monkeypatch.setattr(Detector, "best_of_each_class", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_weights(config, weights, tmp_path / "b")
    resumed = evaluate_weights(config, weights, tmp_path / "b")
    assert len(calls) == 5
    assert [i.to_json() for i in resumed.detections] == [i.to_json() for i in unbroken.detections]
    plain = load_model(weights)[0], config, torch.device("cpu")
    assert len(Detector(*plain).detect(unbroken.detections[0].file, [[0, 0, 90, 90]])) <= 5  # alone: the plain choice


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_without_a_file_of_proposals_they_are_searched_on_the_way(tree, shapes, tmp_path, monkeypatch, caplog):
    """Killed and resumed, the evaluation is the one with the file, and so is the recall in the report."""
    first, second = ({"root": str(shapes), "split": split} for split in ("train", "test"))
    made = str(tmp_path / "made.safetensors")
    tree["data"]["test"] = [first | {"proposals": made}, second | {"proposals": made}]
    weights, config = train(configs.from_dict(tree)), configs.from_dict(tree)
    make_proposals(read_data_sets(config.data.test, config.data, config.classes), made, config.proposals, 1)
    recalls = []
    monkeypatch.setattr("fastrcnn.evaluate.run.write_report", lambda _, done: recalls.append(done.recall))
    whole = evaluate_weights(config, weights, tmp_path / "a", with_report=True)
    tree["data"]["test"] = [first, second | {"proposals": made}]
    config, calls = configs.from_dict(tree), []

    def killed(detector, *asked, original=Detector.detect):
        calls.append(len(multiprocessing.active_children()))
        return interrupted() if len(calls) == 2 else original(detector, *asked)

    monkeypatch.setattr(Detector, "detect", killed)
    with caplog.at_level("INFO"):
        with pytest.raises(KeyboardInterrupt):
            evaluate_weights(config, weights, tmp_path / "b")
        assert not multiprocessing.active_children()
        resumed = evaluate_weights(config, weights, tmp_path / "b", with_report=True)
    assert min(calls) > 0 and len(calls) == 13 and not multiprocessing.active_children()
    assert "searching for the proposals of 8 images while" in caplog.text and "of 7 images while" in caplog.text
    assert [i.to_json() for i in resumed.detections] == [i.to_json() for i in whole.detections]
    assert resumed.table == whole.table
    assert sorted(recalls[0].best_iou) == sorted(recalls[1].best_iou)
    np.testing.assert_array_equal(recalls[0].by_class(6), recalls[1].by_class(6))


def test_a_test_set_without_annotations_is_detected_in_and_not_scored(tree, shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "set")
    for line in (tmp_path / "set" / "ImageSets" / "Main" / "test.txt").read_text().split():
        (tmp_path / "set" / "Annotations" / f"{line}.xml").unlink()
    tree["data"]["test"][0]["root"] = str(tmp_path / "set")
    config = configs.from_dict(tree)
    found = evaluate_weights(config, train(config), tmp_path / "results", with_coco=True)
    assert found.table.startswith("nothing to score: the test set has no annotations")
    assert len(json.loads((tmp_path / "results" / "detections.json").read_text())["images"]) == 4
    assert len(list((tmp_path / "results" / "voc").glob("comp4_det_test_*.txt"))) == len(config.classes)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["map"] is None


def test_a_test_set_without_objects_is_an_error_and_crowded_images_are_warned_of(tree, tmp_path, caplog):
    config = configs.from_dict(tree | {"test": {"max_detections": 1}})
    path = tmp_path / "detections.json"
    write_detections(path, config.classes, [])
    with pytest.raises(FastRCNNError, match="not of the same images"):
        evaluate_detections(config, path, tmp_path / "results")
    assert "test.max_detections keeps 1 detections" in caplog.text
    tree |= {"classes": ["unicorn"], "data": {**tree["data"], "on_unknown_class": "ignore"}}
    with pytest.raises(FastRCNNError, match="data.test: holds no object of any class"):
        evaluate_detections(configs.from_dict(tree), path, tmp_path / "results")


def test_a_report_is_written_last_and_only_when_asked_for(tree, tmp_path, monkeypatch, caplog):
    config = configs.from_dict(tree)
    weights = train(config)
    evaluate_weights(config, weights, tmp_path / "a")
    assert not (tmp_path / "a" / "report.html").exists()
    evaluate_weights(config, weights, tmp_path / "a", with_report=True)
    assert "Recall of the proposals" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")

    def full(*_):
        raise FastRCNNError("the disk is full")

    monkeypatch.setattr("fastrcnn.evaluate.run.write_report", full)
    found = evaluate_weights(config, weights, tmp_path / "b", with_report=True)
    assert "the disk is full" in caplog.text and found.table
    assert (tmp_path / "b" / "results.json").is_file() and (tmp_path / "b" / "precision_recall.png").is_file()
    monkeypatch.undo()
    tree["data"]["test"][0]["proposals"] = None
    found = tmp_path / "b" / "detections.json"
    evaluate_detections(configs.from_dict(tree), found, tmp_path / "c", with_report=True)
    assert "proposals is not at hand" in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")


def key_of(config, weights):
    seen = Pass(with_recall=False)
    seen.open(config)
    return detection_key(config, weights, seen.digest)


def test_thresholds_are_stored_once_and_are_no_other_weights(tree, tmp_path, caplog):
    """Evaluated twice, the file changes once; an evaluation under way goes on over it."""
    config = configs.from_dict(tree | {"solver": {**tree["solver"], "max_iterations": 1}})
    weights = train(config)
    key = key_of(config, weights)
    found = evaluate_detections(config, sure(config, tmp_path), tmp_path / "scored")
    stated = json.loads((tmp_path / "scored" / "results.json").read_text())["score_thresholds"]
    best = found.analysis.thresholds.best
    assert {name: value and value["score"] for name, value in stated.items()} == {
        name: value and value.score for name, value in zip(config.classes, best[1:], strict=True)
    }
    assert any(stated.values()) and load_model(weights)[0].score_thresholds is None
    with caplog.at_level("INFO"):
        keep_thresholds(config, weights, found.analysis.thresholds, 4)
        content = weights.read_bytes()
        keep_thresholds(config, weights, found.analysis.thresholds, 4)
    assert weights.read_bytes() == content
    kept = load_model(weights)[0].score_thresholds
    assert kept.scores == {name: value["score"] for name, value in stated.items() if value}
    assert (kept.data, kept.images) == (f"{Path(tree['data']['test'][0]['root']).name} test", 4)
    assert "now holds score thresholds" in caplog.text and "holds the score thresholds" in caplog.text
    assert key_of(config, weights) == key

    nothing = ObjectRows(*(column[:0] for column in vars(found.rows[1]).values()))
    keep_thresholds(config, weights, analyse(found.rows[0], nothing, config.classes, 4).thresholds, 4)
    assert weights.read_bytes() == content  # nothing labelled: nothing measured
    no_detections = DetectionRows(*(column[:0] for column in vars(found.rows[0]).values()))
    keep_thresholds(config, weights, analyse(no_detections, found.rows[1], config.classes, 4).thresholds, 4)
    assert load_model(weights)[0].score_thresholds.scores == {}  # nothing found: no class has a threshold


def sure(config, folder):
    """Detections that are right, with falling scores."""
    records = read_data_sets(config.data.test, config.data, config.classes)
    images = []
    for i, r in enumerate(records):
        scores = np.linspace(0.9, 0.5, len(r.boxes), dtype=np.float32) - np.float32(i / 10)
        found = Detections(r.boxes, r.classes, scores, tuple(config.classes))
        images.append(DetectedImage(r.id, found, str(r.path), r.width, r.height))
    write_detections(folder / "sure.json", config.classes, images)
    return folder / "sure.json"


def test_thresholds_of_other_settings_and_in_checkpoints_and_protected_weights_are_not_stored(tree, tmp_path, caplog):
    config = configs.from_dict(tree)
    weights = train(config)
    thresholds = evaluate_detections(config, sure(config, tmp_path), tmp_path / "scored").analysis.thresholds
    other = configs.from_dict(tree | {"test": {"nms_iou": 0.4, "ap_rule": "area"}})
    checkpoint = max(weights.parent.glob("checkpoint_*"))
    contents = {path: path.read_bytes() for path in (weights, checkpoint)}
    weights.chmod(0o444)
    with caplog.at_level("INFO"):
        keep_thresholds(other, weights, thresholds, 4)
        keep_thresholds(config, checkpoint, thresholds, 4)
        keep_thresholds(config, weights, thresholds, 4)
    weights.chmod(0o644)
    assert "the weights detect with another test.nms_iou than this evaluation" in caplog.text
    assert "is a checkpoint; score thresholds are stored in weights only" in caplog.text
    assert "is write-protected; the score thresholds are in results.json only" in caplog.text
    assert {path: path.read_bytes() for path in contents} == contents
