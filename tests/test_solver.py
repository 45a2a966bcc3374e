import math

import pytest
import torch

from fastrcnn.config import ModelConfig
from fastrcnn.config_train import SolverConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.train.solver import (
    check_head_first,
    check_layouts,
    clip_gradient,
    gradient_norm,
    head_first,
    learn_only,
    make_optimizer,
    parameter_groups,
    schedule,
    set_rate,
)


@pytest.fixture
def model():
    return FastRCNN(ModelConfig(backbone="tiny", weights=None, freeze_up_to="conv1", fc_width=8), num_classes=3)


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


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_rate_falls_to_zero_from_the_end_of_the_warm_up(kind):
    config = SolverConfig(schedule=kind, warmup_iterations=10, max_iterations=110, steps=[20])
    by_hand = {"linear": lambda x: 1 - x, "cosine": lambda x: math.cos(math.pi * x / 2) ** 2}[kind]
    assert [schedule(config, i) for i in (0, 5)] == pytest.approx([0.1, 0.55])
    for i in (10, 20, 35, 60, 109):
        assert schedule(config, i) == pytest.approx(by_hand((i - 10) / 100)), i


def test_convolutions_wait_for_the_head(model):
    config = SolverConfig(head_iterations=3, max_iterations=5)
    for iteration, learns in ((0, False), (2, False), (3, True), (4, True), (1, False)):
        head_first(model, config, iteration)
        assert all(p.requires_grad == learns for p in model.backbone[model.frozen_depth :].parameters())
        assert model.fc6.weight.requires_grad and not model.backbone.conv1.weight.requires_grad


def test_a_head_that_comes_before_nothing_is_refused():
    frozen = FastRCNN(ModelConfig(backbone="tiny", weights=None, freeze_up_to="conv3_2", fc_width=8), num_classes=3)
    with pytest.raises(FastRCNNError, match="solver.head_iterations is 3, but model.freeze_up_to=conv3_2"):
        check_head_first(frozen, SolverConfig(head_iterations=3))
    check_head_first(frozen, SolverConfig())


def test_only_what_is_named_learns(model):
    learn_only(model, SolverConfig(train_only=["conv3_1", "bbox_pred"]))
    head_first(model, SolverConfig(), 0)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"{name}.{part}" for name in ("backbone.conv3_1", "bbox_pred") for part in ("weight", "bias")}
    grouped = {id(p) for group in parameter_groups(model, SolverConfig()) for p in group["params"]}
    assert grouped == {id(p) for name, p in model.named_parameters() if name in learning}


@pytest.mark.parametrize("name", ["conv1", "bbox", "backbone"])
def test_a_layer_that_cannot_learn_is_refused_with_those_that_can(model, name):
    with pytest.raises(FastRCNNError, match=f"train_only: {name} is no layer that could .* conv2, .*, bbox_pred$"):
        learn_only(model, SolverConfig(train_only=[name]))


def test_biases_decay_as_weights_where_their_decay_is_null(model):
    groups = parameter_groups(model, SolverConfig(weight_decay=0.0625, bias_weight_decay=None))
    assert [group["weight_decay"] for group in groups] == [0.0625] * 4


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


def test_two_steps_of_adamw_by_hand(model):
    """m = 0.9 m + 0.1 g, v = 0.98 v + 0.02 g^2, w -= lr * (decay * w + m' / (sqrt(v') + 1e-8)), both without bias."""
    optimizer = make_optimizer(model, SolverConfig(optimizer="adamw", lr=0.0008, weight_decay=0.1))
    set_rate(optimizer, 0.5)
    weight = model.fc7.weight
    w = weight.detach().double()
    b = model.fc7.bias.detach().double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in (1, 2):
        g = torch.randn_like(weight)
        for p in model.parameters():
            p.grad = torch.full_like(p, 2.0) if p.requires_grad else None
        weight.grad = g
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g.double().square()
        moved = (m / (1 - 0.9**step)) / ((v / (1 - 0.98**step)).sqrt() + 1e-8)
        w = w - 0.0004 * (0.1 * w + moved)
        b = b - 0.0008  # twice the rate, no decay; a gradient that stays moves it by the rate
    assert torch.allclose(weight.double(), w, rtol=0, atol=2e-7)
    assert torch.allclose(model.fc7.bias.double(), b, rtol=0, atol=2e-7)


def test_clipping_bounds_the_whole_gradient(model):
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    learned = [p for p in model.parameters() if p.grad is not None]
    before = math.sqrt(sum(float(p.grad.square().sum()) for p in learned))
    norm = float(gradient_norm(model))
    assert norm == pytest.approx(before, rel=1e-5)
    start = [p.grad.clone() for p in learned]
    for bound in (None, 1.01 * norm):
        clip_gradient(model, bound, norm)
        assert all(torch.equal(p.grad, old) for p, old in zip(learned, start, strict=True))
    clip_gradient(model, 2.0, norm)
    assert float(gradient_norm(model)) == pytest.approx(2.0, rel=1e-3)
    assert torch.allclose(learned[0].grad, start[0] * 2 / norm, rtol=1e-4)
    model.fc7.weight.grad[0, 0] = math.nan
    assert math.isnan(gradient_norm(model))


@pytest.mark.parametrize(("kind", "state"), [("sgd", "momentum_buffer"), ("adamw", "exp_avg"), ("adamw", "exp_avg_sq")])
def test_a_gradient_in_another_layout_than_its_weight_is_an_error(model, kind, state):
    """torch's fused optimizers would pair each weight with another's gradient."""
    optimizer = make_optimizer(model, SolverConfig(optimizer=kind, lr=0.0005))
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None  # randn_like keeps the layout
    optimizer.step()
    before = model.fc7.weight.detach().clone()
    right = model.fc7.weight.grad
    model.fc7.weight.grad = right.t().contiguous().t()
    assert torch.equal(model.fc7.weight.grad, right)
    with pytest.raises(RuntimeError, match=r"shape \[8, 8\] has strides \(8, 1\), its gradient .* \(1, 8\)"):
        optimizer.step()
    assert torch.equal(model.fc7.weight, before)
    model.fc7.weight.grad = right
    momentum = optimizer.state[model.fc7.weight][state]
    optimizer.state[model.fc7.weight][state] = momentum.t().contiguous().t()
    with pytest.raises(RuntimeError, match=r"strides"):
        optimizer.step()


def test_strides_of_a_single_index_mean_nothing():
    """The convolutions of a grey image in channels_last and in the default layout are the same numbers in a row."""
    weight = torch.nn.Parameter(torch.randn(4, 1, 3, 3))
    weight.grad = torch.randn(36).as_strided((4, 1, 3, 3), (9, 1, 3, 1))
    assert weight.stride() == (9, 9, 3, 1) != weight.grad.stride()
    check_layouts(torch.optim.SGD([weight], 0.1))
