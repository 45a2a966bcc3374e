"""SGD with the paper's groups and steps (models/VGG16/{solver,train}.prototxt)."""

import torch
from torch import nn

from fastrcnn.config import SolverConfig
from fastrcnn.model.fast_rcnn import FastRCNN


def parameter_groups(model: FastRCNN, config: SolverConfig) -> list[dict]:
    """Trained parameters in up to four groups: convolutions and fully connected layers, weights and biases.

    Each group's `base_lr` is what its rate is when the schedule is at 1. Biases learn at bias_lr_factor times the rate,
    without decay (lr_mult 2 and decay_mult 0 in train.prototxt).
    """
    groups = []
    backbone_parameters = {id(p) for p in model.backbone.parameters()}
    for in_backbone, lr in ((True, config.backbone_lr or config.lr), (False, config.lr)):
        for is_bias, factor, decay in (
            (False, 1.0, config.weight_decay),
            (True, config.bias_lr_factor, config.bias_weight_decay),
        ):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad
                and (id(p) in backbone_parameters) == in_backbone
                and name.endswith("bias") == is_bias
            ]
            if chosen:
                groups.append({"params": chosen, "base_lr": lr * factor, "lr": lr * factor, "weight_decay": decay})
    return groups


def make_optimizer(model: FastRCNN, config: SolverConfig) -> torch.optim.SGD:
    """SGD with momentum. torch multiplies the rate after momentum, Caffe before; they differ for about ten iterations
    after the rate drops."""
    return torch.optim.SGD(parameter_groups(model, config), momentum=config.momentum, fused=True)


WARMUP_START = 0.1  # ours: the rate grows linearly from this share of itself


def schedule(config: SolverConfig, iteration: int) -> float:
    """What the rates are multiplied by at an iteration counted from 0: gamma for each step passed, and the warm-up."""
    factor = config.gamma ** sum(iteration >= step for step in config.steps)
    if iteration < config.warmup_iterations:
        factor *= WARMUP_START + (1 - WARMUP_START) * iteration / config.warmup_iterations
    return factor


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put every group's rate at its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradient(model: nn.Module, bound: float) -> float:
    """Scale the whole gradient down to at most `bound` in norm (0: leave it); the norm before, NaN or inf included."""
    learned = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in learned])
    if bound and norm > bound:  # below it, torch would multiply every gradient by 1
        torch.nn.utils.clip_grads_with_norm_(learned, bound, norm)
    return float(norm)
