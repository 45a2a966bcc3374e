"""model/int8.py and compress.py: a network in int8 finds what the network finds, and serves detection alone."""

import copy

import numpy as np
import pytest
import torch
from test_detector import PICTURE, some_proposals

from fastrcnn import config as configs
from fastrcnn import load
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights, measure, to_int8
from fastrcnn.data.image_set import open_data
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.export.onnx import export_onnx
from fastrcnn.files import read_tensors, write_tensors
from fastrcnn.model import int8, int8_kernels
from fastrcnn.model.ranges import EVERY, SHARE, Histogram
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model, save_weights

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(not int8_kernels.works(), reason="this processor has no exact products of int8")


def lively(config):
    """A network whose RoIs differ: of the random start's features little arrives at the scores."""
    torch.manual_seed(3)
    model = build(config).eval()
    model.cls_score.weight.data.normal_(std=0.1)
    model.bbox_pred.weight.data.normal_(std=0.02)
    return model


def written(config, model, path):
    classes = len(config.classes) + 1
    save_weights(path, model, config, TargetStatistics(torch.zeros(classes, 4), torch.ones(classes, 4)))
    return path


KINDS = {
    "plain": {},
    "nothing frozen": {"freeze_up_to": None},
    "skip pooling": {"pool_layers": ["conv3_1", "conv3_2"]},
    "pyramid": {"roi_features": "spp", "pyramid": [2, 1]},
}


@needs_int8
@pytest.mark.parametrize("ranks", [{}, {"fc6": 24, "fc7": 16}], ids=["whole", "SVD"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_int8_finds_what_the_network_finds(tree, tmp_path, kind, ranks):
    precision = "bfloat16" if ranks else "float32"  # of what is not in int8
    config = configs.from_dict({**tree, "model": {**tree["model"], **KINDS[kind]}, "precision": precision})
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    compress_weights(weights, tmp_path / "whole.safetensors", ranks)
    done = compress_weights(weights, tmp_path / "int8.safetensors", ranks, config, pictures=5)
    assert done.pictures == 5
    assert (tmp_path / "int8.safetensors").stat().st_size < 0.4 * weights.stat().st_size or kind == "skip pooling"
    rows = []
    for name in ("whole", "int8"):
        detector = load(tmp_path / f"{name}.safetensors", "cpu")
        assert detector.model.int8 == (name == "int8")
        rows.append(detector.classify(PICTURE, torch.from_numpy(some_proposals())))
    (scores, boxes), (scores8, boxes8) = rows
    assert float(scores.std()) > 0.05
    assert float((scores - scores8).abs().mean()) < 0.05 * float(scores.std())
    assert float((boxes - boxes8).abs().mean()) < 0.5  # pixels


@needs_int8
def test_weights_in_int8_are_those_of_the_network_to_half_a_step(tree):
    config = configs.from_dict(tree)
    model = lively(config)
    whole = copy.deepcopy(model)
    to_int8(model, config, open_data(config.data.train, config))
    for name in ("conv2", "conv3_2"):
        layer, expected = getattr(model.backbone, name), getattr(whole.backbone, name).weight
        step = layer.weight_scale[:, None, None, None]
        assert layer.weight.dtype == torch.int8 and layer.weight.abs().flatten(1).amax(1).eq(127).all()
        assert ((layer.weight * step - expected).abs() <= step * 0.501).all()
        assert torch.equal(layer.bias, getattr(whole.backbone, name).bias)
    assert torch.equal(model.backbone.conv1.weight, whole.backbone.conv1.weight)
    assert torch.equal(model.cls_score.weight, whole.cls_score.weight)


@needs_int8
def test_steps_come_from_what_the_layers_give(tree):
    """Of one picture, by the plain network: the largest but for one of 20,000 numbers, up to the width of a bin."""
    config = configs.from_dict(tree)
    model = lively(config)
    images = open_data(config.data.train, config)
    images = type(images)(images.records[:1], images.proposals)
    largest = measure(Detector(model, config, CPU), images)
    assert largest.keys() == {f"backbone.{n}" for n in ("conv1", "conv2", "conv3_1", "conv3_2")} | {"fc6"}
    detector = Detector(model, config, CPU)
    seen = []
    handle = detector.model.backbone.conv1.register_forward_hook(
        lambda _, given, output: seen.append(output[..., ::EVERY, :].clone())
    )
    detector.detect(images.records[0].path, images[0][1])
    handle.remove()
    values = torch.cat([x.flatten() for x in seen]).clamp(min=0)
    exact = np.quantile(values.numpy(), SHARE, method="inverted_cdf")
    assert exact <= largest["backbone.conv1"] <= exact + float(values.max()) / Histogram.BINS


@needs_int8
def test_int8_serves_detection_alone(tree, tmp_path):
    config = configs.from_dict(tree)
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    small = tmp_path / "int8.safetensors"
    compress_weights(weights, small, {}, config)
    said = r"int8\.safetensors: is in int8, which detection alone takes; name the weights it was made from"
    again = configs.from_dict({**tree, "model": {**tree["model"], "weights": str(small)}})
    with pytest.raises(FastRCNNError, match=said):
        initialise(build(again), again)
    with pytest.raises(FastRCNNError, match=said):
        load_model(small)
    with pytest.raises(FastRCNNError, match=said):
        compress_weights(small, tmp_path / "x.safetensors", {}, config)
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with pytest.raises(FastRCNNError, match=said):
        export_onnx(small, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"backbone": "caffenet", "pool_size": 6}, "caffenet has other layers than"),
        ({"backbone": "resnet50", "weights": "IMAGENET1K_V1", "fc_width": 4096}, "resnet50 has other layers than"),
        ({"roi_features": "roi_align"}, "by roi_align are no maxima"),
    ],
)
def test_networks_without_a_form_in_int8_say_so(tree, model, said):
    config = configs.from_dict({**tree, "model": {**tree["model"], **model}})
    with torch.device("meta"):
        assert said in int8.refusal(type(build(configs.from_dict(tree)))(config.model, 6))


def test_pictures_of_other_classes_and_none_are_refused(tree, tmp_path):
    config = configs.from_dict(tree)
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    target = tmp_path / "int8.safetensors"

    def refused(said, count=3, **changes):
        with pytest.raises(FastRCNNError, match=said):
            compress_weights(weights, target, {}, configs.from_dict({**tree, **changes}), count)
        assert not target.exists()

    refused("has the classes .*cow.*give the configuration of the training run", classes=["cow", *config.classes[1:]])
    refused("--pictures is 0", count=0)
    refused("names no pictures", data={**tree["data"], "train": []})


def test_a_file_of_proposals_is_not_written_over(tree, shapes, tmp_path):
    config = configs.from_dict(tree)
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    before = (shapes / "proposals.json").read_bytes()
    with pytest.raises(FastRCNNError, match=r"proposals\.json"):
        compress_weights(weights, shapes / "proposals.json", {}, config)
    assert (shapes / "proposals.json").read_bytes() == before


@needs_int8
def test_a_processor_without_int8_says_what_to_do(tree, tmp_path, monkeypatch):
    config = configs.from_dict(tree)
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    compress_weights(weights, tmp_path / "int8.safetensors", {}, config)
    monkeypatch.setattr(int8_kernels, "works", lambda: False)
    with pytest.raises(
        FastRCNNError, match=r"no exact products of int8 \(VNNI on x86\); take those they were made from"
    ):
        load(tmp_path / "int8.safetensors", "cpu")


@needs_int8
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_steps_that_are_none_are_damage(tree, tmp_path, value):
    config = configs.from_dict(tree)
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    compress_weights(weights, tmp_path / "int8.safetensors", {}, config)
    tensors, metadata = read_tensors(tmp_path / "int8.safetensors")
    tensors["fc6.scale"].fill_(value)
    write_tensors(tmp_path / "int8.safetensors", tensors, metadata)
    with pytest.raises(FastRCNNError, match=r"int8\.safetensors: .*"):
        load(tmp_path / "int8.safetensors", "cpu")


@needs_int8
def test_a_file_that_claims_int8_of_another_network_is_damaged(tree, tmp_path):
    config = configs.from_dict(tree)
    weights = written(config, lively(config), tmp_path / "model.safetensors")
    tensors, metadata = read_tensors(weights)
    write_tensors(weights, tensors, metadata | {"int8": 300})
    with pytest.raises(FastRCNNError, match=r"backbone\.conv1\.scale is not there.*the file is damaged"):
        load(weights, "cpu")
    other = copy.deepcopy(metadata) | {"int8": 300}
    other["config"]["model"]["roi_features"] = "roi_align"
    write_tensors(weights, tensors, other)
    with pytest.raises(FastRCNNError, match="by roi_align are no maxima.*the file is damaged"):
        load(weights, "cpu")
