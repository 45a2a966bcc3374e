import math

import pytest
import torch
from oracles import multi_task_loss as slow_loss
from oracles import roi_losses as slow_losses

from fastrcnn.model.losses import counts, diagnostics, multi_task_loss, roi_losses


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 1, 0, 2])
    scores = torch.randn(5, 3, generator=generator).to(dtype)
    deltas = 2 * torch.randn(5, 12, generator=generator).to(dtype)  # on both sides of smooth L1's bend
    targets = torch.randn(5, 4, generator=generator).to(dtype)
    return scores, deltas, labels, targets


def test_losses_are_those_of_the_loop():
    scores, deltas, labels, targets = example()
    losses = multi_task_loss(scores, deltas, labels, targets, 0.7)
    expected = slow_loss(scores.tolist(), deltas.tolist(), labels.tolist(), targets.tolist(), 0.7)
    assert losses["loss_cls"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(expected[1], rel=1e-5)


def test_each_roi_s_loss_is_that_of_the_loop():
    scores, deltas, labels, targets = example(torch.float64)
    losses = roi_losses(scores, deltas, labels, targets, 0.7)
    expected = slow_losses(scores.tolist(), deltas.tolist(), labels.tolist(), targets.tolist(), 0.7)
    assert losses.tolist() == pytest.approx(expected)
    whole = sum(multi_task_loss(scores, deltas, labels, targets, 0.7).values())
    assert losses.mean().item() == pytest.approx(whole.item())
    assert roi_losses(scores[:0], deltas[:0], labels[:0], targets[:0], 0.7).shape == (0,)


def test_gradients_are_right():
    scores, deltas, labels, targets = example(torch.float64)
    inputs = (scores.requires_grad_(), deltas.requires_grad_())

    assert torch.autograd.gradcheck(lambda s, d: sum(multi_task_loss(s, d, labels, targets, 1.0).values()), inputs)


def test_only_the_box_of_the_true_class_learns():
    scores, deltas, labels, targets = example()
    deltas.requires_grad_()
    multi_task_loss(scores, deltas, labels, targets, 1.0)["loss_bbox"].backward()
    touched = deltas.grad.reshape(5, 3, 4).ne(0).any(dim=2)
    assert touched.tolist() == [[k == label and k > 0 for k in range(3)] for label in labels.tolist()]


def test_background_only_and_nothing():
    scores, deltas = torch.zeros(3, 4), torch.ones(3, 16)
    losses = multi_task_loss(scores, deltas, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4), 1.0)
    assert losses["loss_cls"].item() == pytest.approx(math.log(4)) and losses["loss_bbox"].item() == 0
    nothing = multi_task_loss(scores[:0], deltas[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 1.0)
    assert nothing["loss_cls"].item() == 0 and nothing["loss_bbox"].item() == 0


def diagnosed(scores, labels):
    return diagnostics({name: float(count) for name, count in counts(scores, labels).items()})


def test_diagnostics_by_hand():
    scores = torch.eye(3)[torch.tensor([0, 1, 2, 1, 0])]
    found = diagnosed(scores, torch.tensor([0, 1, 1, 2, 2]))
    assert found == pytest.approx({"accuracy": 2 / 5, "fg_accuracy": 1 / 4, "false_negatives": 1 / 4, "foreground": 4})


@pytest.mark.parametrize("rows", [0, 1, 7, 128])
@pytest.mark.parametrize("foreground", [True, False])
def test_diagnostics_are_those_of_means(rows, foreground):
    generator = torch.Generator().manual_seed(rows)
    scores = torch.randn(rows, 4, generator=generator)
    labels = torch.randint(4, (rows,), generator=generator) * foreground
    right, chosen = (scores.argmax(dim=1) == labels).float(), labels > 0
    slow = [right.mean(), right[chosen].mean(), (scores.argmax(dim=1)[chosen] == 0).float().mean(), chosen.sum()]
    for value, expected in zip(diagnosed(scores, labels).values(), slow, strict=True):
        assert value == pytest.approx(float(expected), nan_ok=True)


def test_losses_and_counts_of_parts_add_up():
    generator = torch.Generator().manual_seed(0)
    scores, deltas = torch.randn(9, 4, generator=generator), torch.randn(9, 16, generator=generator)
    labels, targets = torch.randint(4, (9,), generator=generator), torch.randn(9, 4, generator=generator)
    whole = {**multi_task_loss(scores, deltas, labels, targets, 0.7), **counts(scores, labels)}
    parts = [slice(0, 2), slice(2, 2), slice(2, 9)]
    losses = [multi_task_loss(scores[p], deltas[p], labels[p], targets[p], 0.7, rois=9) for p in parts]
    several = [{**loss, **counts(scores[p], labels[p])} for loss, p in zip(losses, parts, strict=True)]
    for name, value in whole.items():
        assert sum(float(part[name]) for part in several) == pytest.approx(float(value), rel=1e-6)
