"""SVMs after the fact: mining against loops, classes that can be told apart, resuming, and detection with them."""

import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights
from fastrcnn.config_files import save
from fastrcnn.data.image_set import open_data
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.run import evaluate_weights
from fastrcnn.export.onnx import export_onnx
from fastrcnn.files import read_tensors
from fastrcnn.images import read_image
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model, save_weights
from fastrcnn.train import svms
from fastrcnn.train.signals import Stop
from fastrcnn.train.svms import Mining, class_overlaps, fc7_of, train_svms

pytest.importorskip("sklearn")


def made_images(seed, width=6, classes=3, images=12, separable=False):
    """For each image: RoIs' boxes, their features, boxes and classes of its objects, which are the first RoIs.

    Features are those of the class, plus noise."""
    rng = np.random.default_rng(seed)
    centres = 10 * np.eye(classes + 1, width)
    result = []
    for _ in range(images):
        gt_classes = rng.integers(1, classes + 1, 2)
        corners = rng.integers(0, 40, (2, 2))
        objects = np.hstack((corners, corners + rng.integers(10, 30, (2, 2)))).astype(np.float32)
        shaken = np.repeat(objects, 6, axis=0) + rng.integers(-8, 2, (12, 4))
        rois = np.concatenate((objects, shaken)).astype(np.float32)
        rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2] + 1)
        nature = np.concatenate((gt_classes, np.zeros(12, int)))
        x = centres[nature] + (0.1 if separable else 8) * rng.standard_normal((14, width))
        result.append((rois, x.astype(np.float32), objects, gt_classes))
    return result


def trained(images, classes=3, seed=3):
    """The mining of these images, as _both_passes does it."""
    labels = np.concatenate([gt_classes for *_, gt_classes in images])
    mining = Mining.start(labels, classes, images[0][1].shape[1], seed)
    mining.positives[:] = np.concatenate([x[: len(gt_classes)] for _, x, _, gt_classes in images])
    for _, x, _, _ in images:
        mining.measure(x)
    for rois, x, objects, gt_classes in images:
        mining.mine(x, class_overlaps(*map(torch.from_numpy, (rois, objects)), gt_classes, classes))
    for k in range(classes):
        mining.retrain(k)
    return mining


@pytest.mark.parametrize("seed", range(4))
def test_mining_is_that_of_the_loops(seed, monkeypatch):
    """With several trainings of each class on the way, and negatives that are dropped."""
    monkeypatch.setattr(svms, "RETRAIN", 30)
    images, sizes = made_images(seed), []
    mining = trained(images)
    weights, negatives = oracles.svm_mining(images, 3, 30, svms.fit, sizes)
    assert len(sizes) > 3 * 2 and min(np.diff(sizes)) < 0
    for k in range(3):
        w, b = weights[k + 1]
        np.testing.assert_allclose(mining.weight[k], w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(mining.bias[k], b, rtol=1e-4, atol=1e-6)
        kept = mining.negatives[mining.cached[:, k]].tolist()
        assert sorted(kept) == sorted(row.tolist() for row in negatives[k + 1])
    assert mining.cached.any(axis=1).all() and len(np.unique(mining.negatives, axis=0)) == len(mining.negatives)


def test_features_that_can_be_separated_are():
    images = made_images(0, images=40, separable=True)
    mining = trained(images)
    for rois, x, objects, gt_classes in images:
        scores = x @ mining.weight.T + mining.bias
        overlaps = class_overlaps(*map(torch.from_numpy, (rois, objects)), gt_classes, 3)
        assert (scores[:2][np.arange(2), gt_classes - 1] > 0).all()
        assert (scores[overlaps < 0.3] < 0).all()


@pytest.fixture
def weights(tree, tmp_path) -> Path:
    """A network at its random start."""
    config = configs.from_dict(tree)
    statistics = TargetStatistics(torch.zeros(6, 4), torch.ones(6, 4))
    save_weights(tmp_path / "start.safetensors", build(config), config, statistics)
    return tmp_path / "start.safetensors"


def test_killed_at_any_image_it_ends_the_same(tree, tmp_path, weights, monkeypatch):
    """In each pass, and the second time with the frozen layers from the feature cache."""
    monkeypatch.setattr(svms, "RETRAIN", 150)
    monkeypatch.setattr(svms, "NORM_IMAGES", 3)
    tree["precision"] = "bfloat16"
    whole = read_tensors(train_svms(configs.from_dict(tree), weights, tmp_path / "whole.safetensors"))[0]
    monkeypatch.setattr(svms, "SAVED", -1)
    tree |= {"cache_features": True, "feature_cache": str(tmp_path / "features")}
    config, output, fc7 = configs.from_dict(tree), tmp_path / "parts.safetensors", Detector.fc7
    for calls in (4, 7):  # of 8 in each pass
        left = iter(range(calls))

        def killed(*args, left=left):
            if next(left, None) is None:
                raise MemoryError
            return fc7(*args)

        monkeypatch.setattr(Detector, "fc7", killed)
        with pytest.raises(MemoryError):
            train_svms(config, weights, output)
        assert not output.exists()
    left = iter(range(8 + 8 - 4 - 7))  # finished images are not looked at again
    monkeypatch.setattr(Detector, "fc7", lambda *args: next(left) >= 0 and fc7(*args))
    parts = read_tensors(train_svms(config, weights, output))[0]
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    before = read_tensors(weights)[0]
    assert [n for n in sorted(whole) if not torch.equal(whole[n], before[n])] == ["cls_score.bias", "cls_score.weight"]
    assert not output.with_name("parts.safetensors.partial").exists()


def test_a_signal_saves_the_state(tree, tmp_path, weights, monkeypatch):
    config, output = configs.from_dict(tree), tmp_path / "svms.safetensors"
    stop = Stop()
    monkeypatch.setattr(svms, "stop_signals", lambda: nullcontext(stop))
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        train_svms(config, weights, output)
    assert read_tensors(tmp_path / "svms.safetensors.partial")[1]["done"] == 1
    stop.clear()
    tree["seed"] = 5  # other work
    assert train_svms(configs.from_dict(tree), weights, output).exists()


def test_detection_by_svms(tree, tmp_path, weights, monkeypatch, capsys):
    """Raw scores through the logistic function, which keeps their order, wherever the network is used."""
    config, path = configs.from_dict(tree), tmp_path / "run/svms.safetensors"
    save(config, tmp_path / "run.yaml")
    tool = Path(__file__).parent.parent / "tools/svms.py"
    monkeypatch.syspath_prepend(tool.parent)
    monkeypatch.setattr(sys, "argv", ["svms.py", str(tmp_path / "run.yaml"), str(weights), "seed=4"])
    runpy.run_path(str(tool))["main"]()
    assert capsys.readouterr().out == f"wrote {path}\n"
    model, _ = load_model(path)
    detector = Detector(model, config, torch.device("cpu"))
    record, proposals = open_data(config.data.test, config)[0]
    pixels, rois = read_image(record.path), torch.from_numpy(proposals)
    probabilities, _ = detector.classify(pixels, rois)
    (fc7,) = fc7_of(detector, config, path, [record], Stop())(0, rois)[None]
    raw = torch.from_numpy(fc7) @ model.cls_score.weight.T + model.cls_score.bias
    torch.testing.assert_close(probabilities, raw.sigmoid())
    assert (raw[:, 0] == 0).all()
    assert np.isfinite(evaluate_weights(config, path, tmp_path / "results").mean_ap)

    compress_weights(path, tmp_path / "small.safetensors", {"fc6": 8, "fc7": 8})
    assert load_model(tmp_path / "small.safetensors")[0].svms and not load_model(weights)[0].svms
    again = build(config)
    tree["model"]["weights"] = str(path)
    assert "bbox_pred" in (loaded := initialise(again, configs.from_dict(tree))) and "cls_score" not in loaded


def test_the_exported_network_has_svms_too(tree, tmp_path, weights):
    pytest.importorskip("onnxruntime")
    path = train_svms(configs.from_dict(tree), weights, tmp_path / "svms.safetensors")
    verified = export_onnx(path, tmp_path / "svms.onnx")
    assert verified.score_difference < 1e-5


def test_what_cannot_be_is_refused_before_any_work(tree, tmp_path, weights, monkeypatch):
    config, output = configs.from_dict(tree), tmp_path / "svms.safetensors"
    with pytest.raises(FastRCNNError, match="start.safetensors"):
        train_svms(config, weights, weights)
    config.image.test_short_side = [96, 120]
    with pytest.raises(FastRCNNError, match="image.test_short_side: SVMs are trained at one scale"):
        train_svms(config, weights, output)
    config = configs.from_dict({**tree, "data": tree["data"] | {"limit": 1}})
    with pytest.raises(FastRCNNError, match="data.train has no object of"):
        train_svms(config, weights, output)
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(FastRCNNError, match="SVMs need scikit-learn; pip install"):
        train_svms(config, weights, output)
    assert not output.exists()
