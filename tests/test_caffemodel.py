import runpy
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_caffemodel import encoded, write_caffemodel

from fastrcnn import config as configs
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors
from fastrcnn.model import caffemodel
from fastrcnn.model.backbones import BUILDERS, NORMALISATIONS
from fastrcnn.model.caffemodel import NETWORKS, import_caffemodel, read_caffemodel
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model

TINY = ("conv1", [32, 3, 5, 5], {"backbone": "tiny", "freeze_up_to": "conv1", "pool_size": 2})
CLASSES = ["cat", "dog"]
TOOLS = Path(caffemodel.__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A fourth network, small enough to be written many times."""
    monkeypatch.setitem(NETWORKS, "T", TINY)


def made(network, classes=3, released=False):
    """The layers of a small network by their names in Caffe: real convolutions, narrow fc layers."""
    rng, widths = np.random.default_rng(1), (8, 6) if network in "MT" else (8, 8)
    backbone = BUILDERS[NETWORKS[network][2]["backbone"]]()
    shapes = {name: layer.weight.shape for name, layer in backbone.named_children() if hasattr(layer, "weight")}
    channels, size = [*shapes.values()][-1][0], NETWORKS[network][2]["pool_size"]
    shapes |= {"fc6": (widths[0], channels * size**2), "fc7": widths[::-1]}
    if released:
        shapes |= {"cls_score": (classes, widths[1]), "bbox_pred": (4 * classes, widths[1])}
    else:
        shapes |= {"fc8": (10, widths[1])}
    layers = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        layers[name] = [(scale * rng.standard_normal(part)).astype(np.float32) for part in (shape, shape[:1])]
    return layers


def expected(layers, name, part):
    array = layers[name][part == "bias"]
    return torch.from_numpy(array[:, ::-1].copy() if array.shape[1:2] == (3,) else array)


@pytest.mark.parametrize(("network", "old"), [("T", True), ("T", False), ("S", True), ("M", False), ("L", True)])
def test_a_released_model_becomes_weights_that_detect(network, old, tmp_path):
    layers = made(network, released=True)
    source = write_caffemodel(tmp_path / "frcn.caffemodel", layers, old=old)
    done = import_caffemodel(source, tmp_path / "w.safetensors", CLASSES)
    assert (done.network, done.detects, done.left_out) == (network, True, [])
    model, config = load_model(tmp_path / "w.safetensors")
    assert config.classes == CLASSES and config.model.backbone == NETWORKS[network][2]["backbone"]
    assert model.normalisation == NORMALISATIONS["caffe"] and model.config.size_to_last_pixel
    for key, tensor in model.state_dict().items():
        if key != "feature_scale":
            name, _, part = key.removeprefix("backbone.").rpartition(".")
            assert torch.equal(tensor, expected(layers, name, part)), key


@pytest.mark.parametrize("kind", [{}, {"old": True}, {"double": True}])
def test_an_imagenet_model_becomes_a_file_to_start_from(kind, tmp_path):
    layers = made("T")
    source = write_caffemodel(tmp_path / "net.caffemodel", layers, **kind)
    done = import_caffemodel(source, tmp_path / "start.safetensors", CLASSES)
    assert (done.network, done.detects, done.left_out) == ("T", False, ["fc8"])
    settings = {**TINY[2], "fc_width": [8, 6], "weights": str(tmp_path / "start.safetensors")}
    config = configs.from_dict({"classes": CLASSES, "model": settings})
    model = build(config)
    assert initialise(model, config) == layers.keys() - {"fc8"}
    assert model.normalisation == NORMALISATIONS["caffe"]
    for name in layers.keys() - {"fc8"}:
        layer = getattr(model.backbone, name, None) or getattr(model, name)
        assert torch.equal(layer.weight, expected(layers, name, "weight")), name


def test_a_fully_connected_layer_cast_into_a_convolution_is_the_same_layer(tmp_path):
    layers = made("T")
    plain = write_caffemodel(tmp_path / "plain.caffemodel", layers)
    layers["fc6"][0] = layers["fc6"][0].reshape(8, 128, 2, 2)
    cast = write_caffemodel(tmp_path / "cast.caffemodel", layers)
    for path in (plain, cast):
        import_caffemodel(path, path.with_suffix(".safetensors"), CLASSES)
    a, b = (read_tensors(path.with_suffix(".safetensors"))[0] for path in (plain, cast))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_layers_that_do_not_fit_are_refused_by_name(tmp_path):
    for name, change, said in [
        ("conv3_2", lambda blobs: [blobs[0][:, :5], blobs[1]], r"conv3_2: its weight is .* \[128, 5, 3, 3\]"),
        ("conv3_1", lambda blobs: blobs[:1], "layer conv3_1 has no bias"),
        ("fc7", lambda blobs: [blobs[0].T, blobs[1]], r"layer fc7: its weight is .* \[8, 6\]; .* needs \[6, 8\]"),
        ("cls_score", lambda blobs: [blobs[0][1:], blobs[1]], r"layer cls_score: its weight is of shape \[2, 6\]"),
        ("conv1", lambda blobs: [blobs[0][:, :1], blobs[1]], "none of the networks S, M and L"),
    ]:
        layers = made("T", released=True)
        layers[name] = change(layers[name])
        source = write_caffemodel(tmp_path / "bad.caffemodel", layers)
        with pytest.raises(FastRCNNError, match=rf"bad\.caffemodel: .*{said}"):
            import_caffemodel(source, tmp_path / "w.safetensors", CLASSES)
    for missing in ("fc6", "conv2"):
        layers = made("T")
        del layers[missing]
        source = write_caffemodel(tmp_path / "bad.caffemodel", layers)
        with pytest.raises(FastRCNNError, match=rf"bad\.caffemodel: .*{missing}"):
            import_caffemodel(source, tmp_path / "w.safetensors", CLASSES)
    assert not (tmp_path / "w.safetensors").exists()


def test_another_number_of_classes_is_said(tmp_path):
    source = write_caffemodel(tmp_path / "coco.caffemodel", made("T", classes=5, released=True))
    with pytest.raises(FastRCNNError, match=r"cls_score has 5 outputs.* 2 are named; .*--classes"):
        import_caffemodel(source, tmp_path / "w.safetensors", CLASSES)


def test_a_model_under_its_own_name_is_not_written_over(tmp_path):
    source = write_caffemodel(tmp_path / "net.caffemodel", made("T"))
    with pytest.raises(FastRCNNError, match="would be written over"):
        import_caffemodel(source, source, CLASSES)


SMALL = {"conv1": [np.ones((2, 3, 1, 1), np.float32), np.zeros(2, np.float32)], "fc6": [np.ones((4, 2), np.float32)]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no layers"),
        (b"\x0a\x04made", "holds no layers"),
        (encoded(SMALL)[:-1], "ends 1 bytes too early"),
        (encoded(SMALL)[:40], "bytes too early"),
        (b"\x0a\xff\xff\xff\xff\x07made", "bytes too early"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "no field of a protobuf message"),
        (b"\x80" * 30, "longer than 64 bits"),
        (encoded(SMALL) + encoded(SMALL), "layer conv1 stands there twice"),
        (encoded({"conv1": [np.full((1, 1, 1, 1), np.nan)]}), "layer conv1 holds numbers that are not finite"),
        (b"\x12\x04\x32\x02\x08\x02", "holds 0 numbers"),
    ],
)
def test_damaged_files_are_refused(content, said, tmp_path):
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(content)
    with pytest.raises(FastRCNNError, match=rf"bad\.caffemodel: .*{said}"):
        read_caffemodel(path)


def test_a_file_that_is_too_large_or_cut_short_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "huge.caffemodel"
    with path.open("wb") as file:  # takes no room on most disks
        file.truncate(2**31)
    with pytest.raises(FastRCNNError, match=r"huge\.caffemodel: .*2,147,483,648 bytes"):
        read_caffemodel(path)
    path.write_bytes(encoded(SMALL)[:-1])
    monkeypatch.setattr(caffemodel, "_blob", lambda *_: pytest.fail("a layer was read"))
    with pytest.raises(FastRCNNError, match="too early"):
        read_caffemodel(path)
    with pytest.raises(FastRCNNError, match=r"none\.caffemodel: cannot be read: No such file"):
        read_caffemodel(tmp_path / "none.caffemodel")


def test_the_tool_says_what_it_wrote_and_what_it_left_out(tmp_path, monkeypatch, capsys):
    def tool(*words):
        monkeypatch.setattr(sys, "argv", ["import_weights.py", *map(str, words)])
        monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(TOOLS / "import_weights.py"), run_name="__main__")
        sys.modules.pop("_common")
        return stopped.value.code, capsys.readouterr()

    frcn = write_caffemodel(tmp_path / "frcn.caffemodel", made("T", classes=21, released=True))
    assert "weights.safetensors: model T, a weights file" in tool(frcn, tmp_path / "weights.safetensors")[1].out
    assert load_model(tmp_path / "weights.safetensors")[1].classes[-1] == "tvmonitor"
    code, said = tool(write_caffemodel(tmp_path / "net.caffemodel", made("T")), tmp_path / "start.safetensors")
    assert not code and "model.weights=" in said.out and "left out" in said.out and "fc8" in said.out
    assert tool(frcn, tmp_path / "pyf.safetensors", "--recipe", "py-faster-rcnn")[0] is None
    assert not load_model(tmp_path / "pyf.safetensors")[0].config.size_to_last_pixel
    code, said = tool(frcn, tmp_path / "w.safetensors", "--classes", "cat", "dog")
    assert code == 1 and "2 are named" in said.err


# ---- OpenCV's importer as a second reader

# The original test.prototxt up to conv5: outputs, kernel, stride, pad, group; kernel, stride, pad; size, alpha, k.
PROTOTXT = {
    "S": """conv1 96 11 4 5 1 relu; pool 3 2 1; lrn 5 1e-4 1; conv2 256 5 1 2 2 relu; pool 3 2 1; lrn 5 1e-4 1;
        conv3 384 3 1 1 1 relu; conv4 384 3 1 1 2 relu; conv5 256 3 1 1 2 relu""",
    "M": """conv1 96 7 2 0 1 relu; lrn 5 5e-4 2; pool 3 2 0; conv2 256 5 2 1 1 relu; lrn 5 5e-4 2; pool 3 2 0;
        conv3 512 3 1 1 1 relu; conv4 512 3 1 1 1 relu; conv5 512 3 1 1 1 relu""",
}


KEYS = {
    "conv": ("Convolution", "convolution_param", "num_output", "kernel_size", "stride", "pad", "group"),
    "pool": ("Pooling", "pooling_param", "kernel_size", "stride", "pad"),
    "lrn": ("LRN", "lrn_param", "local_size", "alpha", "k"),  # beta is 0.75, pooling is MAX where nothing is said
}


def prototxt(network):
    spec = PROTOTXT.get(network) or "; pool 2 2 0; ".join(
        "; ".join(f"conv{stage}_{i} {width} 3 1 1 1 relu" for i in range(1, count + 1))
        for stage, width, count in ((1, 64, 2), (2, 128, 2), (3, 256, 3), (4, 512, 3), (5, 512, 3))
    )
    text, bottom = 'input: "data" input_shape { dim: 1 dim: 3 dim: 90 dim: 120 }\n', "data"
    for i, (name, *words) in enumerate(map(str.split, spec.split(";"))):
        kind, section, *keys = KEYS.get(name, KEYS["conv"])
        name = name if name[:4] == "conv" else f"{name}{i}"
        values = " ".join(f"{key}: {value}" for key, value in zip(keys, words, strict=False))
        said = f"{section} {{ {values} }}"
        text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {said} }}\n'
        bottom = name
        if words[-1] == "relu":
            text += f'layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'
    return text


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromCaffe"), reason="this OpenCV has no importer of Caffe's files")
@pytest.mark.parametrize(("network", "old"), [("S", True), ("S", False), ("M", False), ("L", True)])
def test_opencv_reads_the_same_network(network, old, tmp_path):
    """A picture in BGR through OpenCV's network, and in RGB through ours: the same feature map."""
    layers = made(network, released=True)
    source = write_caffemodel(tmp_path / "net.caffemodel", layers, old=old)
    (tmp_path / "net.prototxt").write_text(prototxt(network))
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(source))
    import_caffemodel(source, tmp_path / "w.safetensors", CLASSES)
    model, _ = load_model(tmp_path / "w.safetensors")
    for name, layer in model.backbone.named_children():
        if name.startswith("norm"):
            layer.k = 1.0  # whatever the prototxt says, OpenCV computes with 1
    pixels = np.random.default_rng(0).uniform(-120, 130, (1, 3, 90, 120)).astype(np.float32)
    net.setInput(pixels)
    theirs = torch.from_numpy(net.forward())
    with torch.no_grad():
        ours = model.backbone(torch.from_numpy(pixels[:, ::-1].copy()))
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))
