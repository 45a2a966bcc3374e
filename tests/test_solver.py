import math

import pytest
import torch

from fastrcnn.config import ModelConfig, SolverConfig
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.train.solver import clip_gradient, make_optimizer, parameter_groups, schedule, set_rate


@pytest.fixture
def model():
    return FastRCNN(ModelConfig(backbone="tiny", weights="", freeze_up_to="conv1", fc_width=8), num_classes=3)


def test_groups_are_those_of_the_prototxt(model):
    """Every trained parameter once; biases at twice the rate without decay; convolutions at their own rate."""
    groups = parameter_groups(model, SolverConfig(lr=0.01, backbone_lr=0.004))
    names = {id(p): name for name, p in model.named_parameters()}
    seen = {}
    for group in groups:
        for p in group["params"]:
            assert id(p) not in seen
            seen[id(p)] = (group["lr"], group["weight_decay"])
    assert {names[i] for i in seen} == {n for n in names.values() if not n.startswith("backbone.conv1.")}
    for i, (lr, decay) in seen.items():
        base = 0.004 if names[i].startswith("backbone") else 0.01
        expected = (2 * base, 0.0) if names[i].endswith("bias") else (base, 0.0005)
        assert (lr, decay) == pytest.approx(expected), names[i]


def test_the_rate_drops_at_its_steps():
    config = SolverConfig(steps=[30, 60], gamma=0.1)
    found = [schedule(config, i) for i in (0, 29, 30, 59, 60)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_warm_up_grows_from_a_tenth():
    config = SolverConfig(steps=[50], warmup_iterations=10)
    assert [schedule(config, i) for i in (0, 5, 10)] == pytest.approx([0.1, 0.55, 1.0])


def test_one_step_of_sgd_by_hand(model):
    """v = g + decay * w; w -= lr * v; then v = momentum * v + ..."""
    config = SolverConfig(lr=0.1)
    optimizer = make_optimizer(model, config)
    set_rate(optimizer, 0.5)
    weight, bias = model.fc7.weight, model.fc7.bias
    w, b = weight.detach().clone(), bias.detach().clone()
    v = torch.zeros_like(w)
    for step in range(2):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1.0 + step) if p.requires_grad else None
        optimizer.step()
        v = 0.9 * v + (1.0 + step) + 0.0005 * w
        w = w - 0.05 * v
    assert torch.allclose(weight, w, atol=1e-6)
    assert torch.allclose(bias, b - 0.1 * (1.0 + 0.9 + 2.0), atol=1e-6)


def test_clipping_bounds_the_whole_gradient(model):
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    before = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert clip_gradient(model, 0.0) == pytest.approx(before, rel=1e-5)
    assert clip_gradient(model, 2.0) == pytest.approx(before, rel=1e-5)
    assert clip_gradient(model, 0.0) == pytest.approx(2.0, rel=1e-3)
    model.fc7.weight.grad[0, 0] = math.nan
    assert math.isnan(clip_gradient(model, 2.0))
