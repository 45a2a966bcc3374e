"""The ONNX file against torch: RoI pooling to the bit, scores and detections; a file that says what it is."""

import json
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import fastrcnn
from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights
from fastrcnn.config import ModelConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.backbones import FrozenNorm
from fastrcnn.model.roi_features import RoIFeatures, project
from fastrcnn.model.score_thresholds import ScoreThresholds, store_thresholds
from fastrcnn.model.weights import build, load_model, save_weights

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from fastrcnn.export import onnx as export  # noqa: E402

REPO = Path(__file__).resolve().parent.parent
PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def some_proposals(count=70, width=120, height=90):
    rng = np.random.default_rng(count)
    corner = rng.integers(0, 60, (count, 2))
    boxes = np.hstack((corner, corner + rng.integers(5, 30, (count, 2))))
    return np.vstack((boxes, boxes[:20], [[0, 0, width, height]])).astype(np.float32)  # twenty stand there twice


def sure_network(tree, path) -> Path:
    """Weights of a network that is sure of something everywhere."""
    config = configs.from_dict(tree)
    model = build(config)
    torch.manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and layer.bias is not None:
            layer.bias.data.normal_(std=0.1)
        if isinstance(layer, FrozenNorm):  # keep what blocks add up to small, and so differences of rounding
            layer.weight.uniform_(0.1, 0.4)
            layer.bias.normal_(std=0.1)
    if model.merge is not None:
        model.merge.weight.data.normal_(std=0.1)
    model.cls_score.weight.data.normal_(std=0.5)
    model.bbox_pred.weight.data.normal_(std=0.02)
    k = len(config.classes) + 1
    save_weights(path, model, config, TargetStatistics(torch.zeros(k, 4), torch.full((k, 4), 0.5)))
    return path


@pytest.fixture
def weights(tree, tmp_path):
    return sure_network(tree, tmp_path / "model.safetensors")


@pytest.fixture
def exported(weights):
    export.export_onnx(weights, weights.with_suffix(".onnx"))
    return weights.with_suffix(".onnx")


def pooled_by_onnx(features, rois, scale, stride):
    """The part of the exported graph from a feature map to RoI features, alone."""
    g = export.Graph()
    (pooled,) = export.roi_features(g, ["map"], [stride], 7)
    g.add("Gather", g.add("Flatten", pooled), "inverse", output="pooled")
    value = onnx.helper.make_tensor_value_info
    inputs = [value("map", 1, [1, None, None, None]), value("rois", 1, [None, 4]), value("scale", 11, [])]
    graph = onnx.helper.make_graph(g.nodes, "pooling", inputs, [value("pooled", 1, None)], g.weights)
    opset = [onnx.helper.make_opsetid("", export.OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=export.IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"map": features[None].numpy(), "rois": rois[:0].numpy(), "scale": np.array(1.0)})
    return session.run(None, {"map": features[None].numpy(), "rois": rois.numpy(), "scale": np.array(scale)})[0]


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("scale", [1.0, 600 / 375, 600 / 333])
def test_roi_pooling_is_the_same_to_the_bit(scale, stride):
    """RoIs anywhere, with ends on half cells, and of the sizes where float32 makes the last bin read one cell past."""
    rng = np.random.default_rng(0)
    cell = stride / scale
    low = rng.integers(-6, 120, (400, 2)) / 2 * cell
    halves = np.hstack((low, low + rng.integers(0, 200, (400, 2)) / 2 * cell + 1))
    anywhere = rng.uniform(-60, 150 * cell, (400, 2))
    anywhere = np.hstack((anywhere, anywhere + rng.uniform(1, 100 * cell, (400, 2))))
    far = [
        [x * cell, x * cell, (x + s - 1) * cell + 1, (x + s - 1) * cell + 1] for s in (57, 114, 121) for x in range(9)
    ]
    rois = torch.from_numpy(np.vstack((halves, anywhere, far)).astype(np.float32))
    features = torch.relu(torch.randn(3, 130, 140))
    expected = RoIFeatures(ModelConfig(), stride, 0.0).pool([features], [project(rois, scale)]).flatten(1).numpy()
    found = pooled_by_onnx(features, rois, scale, stride)
    assert (expected == 0).any(axis=1).sum() > 10, "some bins lie off the map"
    # onnxruntime starts a bin at the smallest positive float32, 1e-38, and leaves it there when all else is 0.
    assert np.array_equal(np.where(found < 1e-37, 0, found), expected)


@pytest.mark.parametrize("kind", ["roi_align", "spp", "warp"])
def test_other_features_than_those_of_roi_pooling_are_refused(tree, tmp_path, kind):
    weights = sure_network({**tree, "model": {**tree["model"], "roi_features": kind}}, tmp_path / "model.safetensors")
    with pytest.raises(FastRCNNError, match=f"has model.roi_features {kind}, and the export does roi_pool alone"):
        export.export_onnx(weights, tmp_path / "model.onnx")


def vgg16(tree):
    return {**tree, "model": {**tree["model"], "backbone": "vgg16", "freeze_up_to": "conv2_2"}}


def caffenet(tree):
    return {**tree, "model": {**tree["model"], "backbone": "caffenet", "pool_size": 6}}


def resnet50(tree):
    return {**tree, "model": {"backbone": "resnet50", "freeze_up_to": "conv2_3", "pool_size": 3}}


CASES = {
    "tiny": lambda tree: tree,
    "vgg16": vgg16,
    "caffenet": caffenet,
    "resnet50": resnet50,
    "trained in bfloat16": lambda tree: {**tree, "precision": "bfloat16"},
    "three scales": lambda tree: {**tree, "image": {"test_short_side": [64, 96, 128], "test_long_side": 200}},
    "mirrored and a second time": lambda tree: {**tree, "test": {"flip": True, "second_pass": 30}},
    "skip pooling": lambda tree: {**tree, "model": {**tree["model"], "pool_layers": ["pool1", "conv3_1", "conv3_2"]}},
    "the boxes of the proposals": lambda tree: {**tree, "test": {"bbox_regression": False}},
    "sizes to the last pixel": lambda tree: {**tree, "model": {**tree["model"], "size_to_last_pixel": True}},
    "compressed": lambda tree: tree,
}


@pytest.mark.parametrize("case", CASES)
def test_detection_is_that_of_torch(case, tree, tmp_path):
    """Pictures of several sizes and shapes, several numbers of proposals, one of them one and one none."""
    weights, output = sure_network(CASES[case](tree), tmp_path / "model.safetensors"), tmp_path / "out.onnx"
    if case == "compressed":
        weights = tmp_path / "small.safetensors"
        compress_weights(tmp_path / "model.safetensors", weights, {"fc6": 16, "fc7": 0})
    done = export.export_onnx(weights, output)
    assert (
        done.pictures == 1
        and done.rois > 50
        and done.same == done.detections > 5
        and done.score_difference < 1e-4
        and min(done.seconds) > 0
    )
    reference, detector = fastrcnn.load(weights, "cpu", "float32"), fastrcnn.load(output)
    for pixels, boxes in (
        (PICTURE, some_proposals()),
        (PICTURE[:, :61].copy(), some_proposals(3, 61)),
        (PICTURE[:7].copy(), [[0, 0, 120, 7]]),
        (PICTURE, []),
    ):
        rois = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        (scores, moved), (others, others_moved) = (d.classify(pixels, rois) for d in (reference, detector))
        assert torch.allclose(scores, others, atol=1e-5) and torch.allclose(moved, others_moved, atol=1e-2)
        found, again = (d.detect(pixels, boxes) for d in (reference, detector))
        left = [*range(len(again))]  # scores that differ by a rounding may be in another order
        for name, box in zip(found.names, found.boxes, strict=True):
            same = [i for i in left if again.names[i] == name and np.allclose(again.boxes[i], box, atol=1e-2)]
            left.remove(same[0])
        assert not left
        assert len(found) or not len(boxes) or case == "caffenet"  # which sees background in the strip


def test_rois_that_share_their_cells_have_equal_scores(exported):
    """So that a tie is a tie in both, and NMS decides it alike."""
    scores, _ = fastrcnn.load(exported).classify(PICTURE, torch.from_numpy(some_proposals()))
    assert torch.equal(scores[:20], scores[70:90])


def test_the_file_says_what_a_caller_must_know(exported, weights, tree):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert {v.name for v in model.graph.input} == set(export.INPUTS)
    assert {v.name for v in model.graph.output} == set(export.OUTPUTS)
    about = json.loads(ort.InferenceSession(exported).get_modelmeta().custom_metadata_map["fastrcnn"])
    network, config = load_model(weights)
    assert about["settings"]["classes"] == config.classes and about["stride"] == network.stride == 8
    assert about["normalisation"] == {"mean": [*network.normalisation.mean], "std": [*network.normalisation.std]}
    assert about["settings"]["image"]["test_short_side"] == [96] and about["settings"]["precision"] == "float32"
    assert about["settings"]["test"]["nms_iou"] == 0.3 and about["version"] == fastrcnn.__version__
    assert "root" not in json.dumps(about), "no paths of who trained it"


def test_the_thresholds_of_the_weights_go_with_it(weights):
    names = load_model(weights)[1].classes
    measured = ScoreThresholds(dict.fromkeys(names, 0.9), "data.test", 4)
    store_thresholds(weights, measured)
    export.export_onnx(weights, weights.with_suffix(".onnx"))
    reference, detector = fastrcnn.load(weights, "cpu"), fastrcnn.load(weights.with_suffix(".onnx"))
    assert detector.score_thresholds == measured
    found, again = (d.detect(PICTURE, some_proposals(), score="auto") for d in (reference, detector))
    everything = detector.detect(PICTURE, some_proposals())
    assert found.names == again.names and 0 < len(again) < len(everything)


@pytest.mark.parametrize("layer", ["cls_score", "bbox_pred"])
def test_a_file_that_differs_is_not_written(layer, weights, monkeypatch):
    output = weights.with_suffix(".onnx")
    output.write_bytes(b"what was there")
    right = export.onnx_model

    def wrong(model, config):
        getattr(model, layer).weight.data[1:] *= 1.1
        result = right(model, config)
        getattr(model, layer).weight.data[1:] /= 1.1
        return result

    monkeypatch.setattr(export, "onnx_model", wrong)
    with pytest.raises(FastRCNNError, match=r"picture made: torch and onnxruntime differ.*no file is written"):
        export.export_onnx(weights, output)
    assert output.read_bytes() == b"what was there" and not list(weights.parent.glob(".*.tmp"))


def test_detections_are_counted_that_both_have(exported):
    found = fastrcnn.load(exported).detect(PICTURE, some_proposals())
    n = len(found)
    assert n > 5 and export._common(found, found[np.arange(n)[::-1]], 0.01) == n
    assert export._common(found, found[1:], 0.01) == export._common(found[1:], found, 0.01) == n - 1
    moved = fastrcnn.detections.Detections(found.boxes + 0.1, found.classes, found.scores, found.class_list)
    assert export._common(found, moved, 0.01) == 0 == export._common(found, found[:0], 0.01)


def test_what_cannot_be_exported_is_one_sentence(weights, tmp_path, monkeypatch):
    with pytest.raises(FastRCNNError, match="would be written over"):
        export.export_onnx(weights.rename(tmp_path / "w.onnx"), tmp_path / "w.onnx")
    weights = (tmp_path / "w.onnx").rename(weights)
    with pytest.raises(FastRCNNError, match=r"ends in \.onnx"):
        export.export_onnx(weights, tmp_path / "model.bin")
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
    with pytest.raises(FastRCNNError, match="would be written over"):
        export.export_onnx(weights, tmp_path / "a.onnx", [tmp_path / "a.png", tmp_path / "a.onnx"])
    with pytest.raises(FastRCNNError, match="no such image"):
        export.export_onnx(weights, tmp_path / "x.onnx", [tmp_path / "b.png"])
    (tmp_path / "old.onnx").write_bytes(b"0")
    with pytest.raises(FastRCNNError, match=r"old\.onnx: is an ONNX file, which serves detection only"):
        export.export_onnx(tmp_path / "old.onnx", tmp_path / "x.onnx")
    with pytest.raises(FastRCNNError, match="not a whole safetensors file"):
        export.export_onnx(tmp_path / "a.png", tmp_path / "x.onnx")
    monkeypatch.setattr(export, "LIMIT", 1000)
    with pytest.raises(FastRCNNError, match="an ONNX file holds 2"):
        export.export_onnx(weights, tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(FastRCNNError, match=r'export needs onnx; pip install "fastrcnn\[onnx\]"'):
        export.export_onnx("nothing", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_what_cannot_be_loaded_is_one_sentence(exported, tmp_path, monkeypatch):
    data = exported.read_bytes()
    other = tmp_path / "other.ONNX"
    for length in (0, 10, len(data) // 2, len(data) - 1):
        other.write_bytes(data[:length])
        with pytest.raises(FastRCNNError, match=r"other\.ONNX: is not a whole ONNX file|of another program"):
            fastrcnn.load(other)
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, other)
    with pytest.raises(FastRCNNError, match="is an ONNX file of another program"):
        fastrcnn.load(other)
    for damaged, words in (
        ({"format": "fastrcnn onnx 1"}, "metadata is damaged"),
        ({"format": "2"}, "another program"),
    ):
        onnx.helper.set_model_props(model, {"fastrcnn": json.dumps(damaged)})
        onnx.save(model, other)
        with pytest.raises(FastRCNNError, match=words):
            fastrcnn.load(other)
    with pytest.raises(FastRCNNError, match="no such file"):
        fastrcnn.load("nothing.onnx")
    with pytest.raises(FastRCNNError, match="leave precision bfloat16 out"):
        fastrcnn.load(exported, precision="bfloat16")
    with pytest.raises(FastRCNNError, match="leave device cuda out"):
        fastrcnn.load(exported, device="cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FastRCNNError, match=r'pip install "fastrcnn\[onnx\]"'):
        fastrcnn.load(exported)


def test_the_tools(weights, tmp_path, monkeypatch, capsys):
    """export and detect, in this process."""
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(PICTURE, (240, 180)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    for words in (
        ["export", "model.safetensors", "out.onnx", "--pictures", "a.png"],
        ["detect", "model.safetensors", "a.png", "--output", "by_torch", "--precision", "float32"],
        ["detect", "out.onnx", "a.png", "--output", "by_onnx"],
    ):
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPO / f"tools/{words[0]}.py"), run_name="__main__")
        assert not stopped.value.code
    said = capsys.readouterr().out
    assert "1 pictures" in said and "scores differ by at most" in said and "the same " in said
    assert "wrote out.onnx" in said
    found, again = (
        json.loads((tmp_path / f"by_{k}/detections.json").read_text())["images"][0] for k in ("torch", "onnx")
    )
    assert found["classes"] == again["classes"] and len(found["classes"]) > 5
    assert np.allclose(found["boxes"], again["boxes"], atol=1e-2)


def test_the_example_of_the_readme_detects_the_same(weights, tmp_path, monkeypatch):
    """It uses numpy, OpenCV and onnxruntime only."""
    text = (REPO / "tools/README.md").read_text(encoding="utf-8")
    [code] = [body for body in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "onnxruntime" in body]
    assert re.findall(r"^(?:import|from) (.+)", code, re.M) == ["json", "cv2, numpy as np, onnxruntime"]
    assert len(code.splitlines()) <= 32
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    export.export_onnx(weights, "runs/demo/model.onnx")
    cv2.imwrite("street.jpg", cv2.resize(PICTURE, (240, 180)))
    Path("example.py").write_text(code, encoding="utf-8")
    made = runpy.run_path("example.py")
    assert len(made["found"]) > 5
    pixels = made["picture"][:, :, ::-1].copy()
    for rois in (some_proposals(), made["proposals"]):
        mine = made["detect"](made["session"], pixels, rois)
        expected = fastrcnn.load("runs/demo/model.onnx").detect(pixels, rois)
        assert [name for name, _, _ in mine] == expected.names
        assert np.array_equal([score for _, score, _ in mine], expected.scores)
        assert np.array_equal([box for _, _, box in mine], expected.boxes)
