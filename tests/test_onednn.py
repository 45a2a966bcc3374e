"""model/onednn.py: the same numbers by another library; who takes it is asked, not timed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_detector import PICTURE, some_proposals
from torch import nn

from fastrcnn import config as configs
from fastrcnn.detect.detector import Detector
from fastrcnn.model import onednn
from fastrcnn.model.fast_rcnn import factors
from fastrcnn.model.weights import build

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("rows", [0, 1, 7, 512, 700])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_layer(rows, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(90, 33, bias=bias), torch.randn(rows, 90)
    with torch.inference_mode():
        assert torch.allclose(onednn.Product(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("learns", ["x weight bias", "x", "weight bias"])
def test_gradients_are_those_of_the_layer(monkeypatch, rows, learns):
    monkeypatch.setattr(onednn, "faster_here", lambda: True)
    torch.manual_seed(0)
    layer = onednn.Linear(90, 33)
    given = {"x": torch.randn(rows, 90), "weight": layer.weight.detach(), "bias": layer.bias.detach()}
    upstream, found = torch.randn(rows, 33), []

    def ours(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    for work in (torch.nn.functional.linear, ours):
        leaves = {name: value.clone().requires_grad_(name in learns.split()) for name, value in given.items()}
        output = work(*leaves.values())
        output.backward(upstream)
        found.append([output.detach(), *(leaf.grad for leaf in leaves.values())])
    for expected, other in zip(*found, strict=True):
        assert (expected is None) == (other is None)
        if expected is not None:
            assert torch.allclose(other, expected, atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(layer(given["x"]), nn.Linear.forward(layer, given["x"]), atol=1e-5)


def test_other_types_go_their_own_way(monkeypatch):
    monkeypatch.setattr(onednn, "faster_here", lambda: True)
    monkeypatch.setattr(onednn, "_Linear", None)  # not asked for
    layer, x = onednn.Linear(9, 5), torch.randn(3, 9)
    assert layer.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("compressed", [False, True])
def test_detection_is_the_same_by_onednn(tree, monkeypatch, compressed):
    config = configs.from_dict(tree)
    model = build(config)
    torch.manual_seed(3)
    model.cls_score.weight.data.normal_(std=0.5)
    if compressed:
        model.fc6, model.fc7 = factors(model.fc6, 8), factors(model.fc7, 4)
    found = []
    for faster in (False, True):
        monkeypatch.setattr(onednn, "faster_here", lambda faster=faster: faster)
        detector = Detector(model, config, torch.device("cpu"))
        layers = [m for name in ("fc6", "fc7") for m in getattr(detector.model, name).modules()]
        products = [isinstance(m, onednn.Product) for m in layers if not isinstance(m, nn.Sequential)]
        assert products == [faster] * (4 if compressed else 2)
        found.append(detector.detect(PICTURE, some_proposals()))
    assert len(found[0]) > 10
    assert np.array_equal(found[0].classes, found[1].classes)
    assert np.allclose(found[0].boxes, found[1].boxes, atol=1e-2)
    assert isinstance(model.fc6, nn.Linear | nn.Sequential)  # the caller's stays as it is


@pytest.mark.parametrize(
    ("about", "faster"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False), ("", False)]
)
def test_amd_s_processors_take_it(monkeypatch, about, faster):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(onednn.platform, "processor", lambda: "")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self, **how: about)
    assert onednn.faster_here.__wrapped__() is faster
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert onednn.faster_here.__wrapped__() is False
