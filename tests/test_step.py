"""A scaled loss: what is not scaled is tested in test_loop.py, what a GPU does in test_cuda.py."""

import math
import threading
from copy import deepcopy

import pytest
import torch
from test_fast_rcnn import network
from test_loop import config_of

from fastrcnn.errors import NotFiniteError
from fastrcnn.model.fast_rcnn import rms
from fastrcnn.model.losses import multi_task_loss
from fastrcnn.train.checkpoint import load_latest, restore, save_checkpoint
from fastrcnn.train.loop import prepare
from fastrcnn.train.solver import make_scaler
from fastrcnn.train.step import scaled_start, train_step


@pytest.fixture
def run(tree, tmp_path):
    return prepare(config_of(tree, tmp_path / "run"), False, [], threading.Event())


def scaler_of(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


def step(run, scaler, iteration=0):
    values = train_step(
        run.model, run.optimizer, run.dataset.batch(iteration), run.statistics, run.config, scaler=scaler
    )
    return values, [p.detach().clone() for p in run.model.parameters()]


def test_a_scale_changes_no_weight(run):
    """A power of two, in float32: to the bit."""
    scaled = deepcopy(run)
    for iteration in range(2):
        values, weights = step(run, scaler_of(1.0), iteration)
        others, same = step(scaled, scaler_of(1024.0), iteration)
        assert values == others
        assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def test_a_step_that_overflows_is_left_out_and_many_are_an_error(run, caplog):
    caplog.set_level("INFO")
    before = [p.detach().clone() for p in run.model.parameters()]
    run.model.fc7.weight.register_hook(lambda gradient: gradient * float("inf"))
    scaler = scaler_of(4.0)
    for iteration, left in enumerate((2.0, 1.0)):
        _, weights = step(run, scaler, iteration)
        assert scaler.get_scale() == left and f"iteration {iteration}: a gradient overflowed" in caplog.text
        assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert not run.optimizer.state  # no momentum of a step that was not made
    with pytest.raises(NotFiniteError, match="iteration 2: gradient_norm is"):
        step(run, scaler, 2)


def test_a_loss_that_overflows_is_an_error_whatever_the_scale(run):
    run.model.cls_score.weight.data.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="loss is"):
        step(run, scaler_of(1024.0))


def test_float16_alone_has_a_scale_and_a_checkpoint_keeps_it(run, tmp_path):
    assert not run.scaler.is_enabled()
    run.model.precision = "float16"
    assert make_scaler(run.model).is_enabled()
    scaler = scaler_of(64.0)
    step(run, scaler)
    save_checkpoint(tmp_path, 1, run.model, run.optimizer, run.statistics, run.config, run.digest, scaler)
    again = make_scaler(run.model)
    restore(load_latest(tmp_path, run.config, run.digest), run.model, run.optimizer, again)
    assert again.state_dict() == scaler.state_dict() and again.state_dict()["scale"] == 64


def test_scaled_start_puts_the_first_loss_at_ln_k():
    """Features ten times too large for a plain start: its loss is far from ln K, the scaled start's is not."""
    model = network(fc_width=256, dropout=0.0)
    pooled = 12 * torch.randn(64, model.fc6.in_features, generator=torch.Generator().manual_seed(2)).relu()
    labels, targets = torch.arange(64) % 5, torch.zeros(64, 4)

    def first_loss():
        scores, deltas = model.siblings(model.fully_connected(pooled))
        return multi_task_loss(scores, deltas, labels, targets, 1.0)["loss_cls"].item()

    with torch.no_grad():
        assert first_loss() > 1.15 * math.log(5)
        scaled_start(model, pooled)
        assert first_loss() == pytest.approx(math.log(5), rel=0.15)
        assert rms(model.fully_connected(pooled)) == pytest.approx(1, rel=0.01)
