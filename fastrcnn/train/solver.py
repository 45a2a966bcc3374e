"""SGD with the paper's groups and steps (models/VGG16/{solver,train}.prototxt), or AdamW in its place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fastrcnn.config_train import SolverConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.backbones import learns
from fastrcnn.model.fast_rcnn import FastRCNN


def parameter_groups(model: FastRCNN, config: SolverConfig) -> list[dict]:
    """Trained parameters in up to four groups: convolutions and fully connected layers, weights and biases.

    Each group's `base_lr` is what its rate is when the schedule is at 1. Biases learn at bias_lr_factor times the rate,
    without decay (lr_mult 2 and decay_mult 0 in train.prototxt).
    """
    groups = []
    bias_decay = config.weight_decay if config.bias_weight_decay is None else config.bias_weight_decay
    backbone_parameters = {id(p) for p in model.backbone.parameters()}
    backbone_lr = config.lr if config.backbone_lr is None else config.backbone_lr
    for in_backbone, lr in ((True, backbone_lr), (False, config.lr)):
        for is_bias, factor, decay in (
            (False, 1.0, config.weight_decay),
            (True, config.bias_lr_factor, bias_decay),
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


ADAMW_BETA2 = 0.98  # ours, not compared with torch's 0.999


def make_optimizer(model: FastRCNN, config: SolverConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW. torch multiplies the rate after momentum, Caffe before; they differ for about ten
    iterations after the rate drops. Its `step` raises RuntimeError as check_layouts does."""
    groups = parameter_groups(model, config)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(config.momentum, ADAMW_BETA2), fused=True)
    else:
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, fused=True)
    optimizer.register_step_pre_hook(lambda *_: check_layouts(optimizer))
    return optimizer


UNSCALED = torch.amp.GradScaler("cpu", enabled=False)


def make_scaler(model: FastRCNN) -> torch.amp.GradScaler:
    """What multiplies the loss of a float16 network, whose small gradients would become 0; others have none."""
    return torch.amp.GradScaler(model.device.type, enabled=model.precision == "float16")


def check_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Raise RuntimeError for a gradient, momentum or square whose memory layout is not its weight's.

    torch's fused optimizers read all in the order of memory, and would pair weights with the gradients of others.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            for other in (p.grad, *optimizer.state.get(p, {}).values()):
                if other is not None and other.shape == p.shape and _steps(other) != _steps(p):
                    raise RuntimeError(
                        f"a weight of shape {list(p.shape)} has strides {p.stride()}, its gradient or momentum has "
                        f"{other.stride()}; a fused optimizer needs them equal"
                    )


def _steps(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one index; those of others mean nothing."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


WARMUP_START = 0.1  # ours: the rate grows linearly from this share of itself


def schedule(config: SolverConfig, iteration: int) -> float:
    """What the rates are multiplied by at an iteration counted from 0: the warm-up's part times the schedule's."""
    warmup = config.warmup_iterations
    start = WARMUP_START + (1 - WARMUP_START) * iteration / warmup if iteration < warmup else 1.0
    done = max(iteration - warmup, 0) / (config.max_iterations - warmup) if config.schedule != "step" else 0.0
    if config.schedule == "linear":
        return start * (1 - done)
    if config.schedule == "cosine":
        return start * (1 + math.cos(math.pi * done)) / 2
    return start * config.gamma ** sum(iteration >= step for step in config.steps)


def check_head_first(model: FastRCNN, config: SolverConfig) -> None:
    """Raise FastRCNNError for solver.head_iterations where no convolution learns afterwards."""
    if config.head_iterations and not any(map(learns, model.backbone[model.frozen_depth :])):
        raise FastRCNNError(
            f"solver.head_iterations is {config.head_iterations}, but model.freeze_up_to={model.config.freeze_up_to} "
            "lets no convolution learn afterwards; set it to 0, or freeze fewer layers"
        )


def head_first(model: FastRCNN, config: SolverConfig, iteration: int) -> None:
    """Let the trained convolutions learn only from iteration solver.head_iterations on."""
    if config.head_iterations:
        for layer in model.backbone[model.frozen_depth :]:
            layer.requires_grad_(iteration >= config.head_iterations)


def learn_only(model: FastRCNN, config: SolverConfig) -> None:
    """Let no layer learn but those of solver.train_only. Raises FastRCNNError for a name of no layer that could."""
    if config.train_only is None:
        return
    layers = {name: layer for name, layer in model.layers.items() if any(p.requires_grad for p in layer.parameters())}
    unknown = [name for name in config.train_only if name not in layers]
    if unknown:
        could = ", ".join(layers)
        raise FastRCNNError(f"solver.train_only: {unknown[0]} is no layer that could learn; these are {could}")
    for name, layer in layers.items():
        layer.requires_grad_(name in config.train_only)


def check_rest_is_loaded(model: FastRCNN, config: SolverConfig, loaded: set[str]) -> None:
    """Raise FastRCNNError where solver.train_only would leave a layer as it starts at random; `loaded` are the names
    of those that came with weights."""
    head = model.layers.keys() - {"merge", *model.backbone._modules}
    random = sorted(head - loaded - set(config.train_only or head))
    if random:
        raise FastRCNNError(
            f"solver.train_only: leaves {', '.join(random)} as they start, at random; name an earlier run of the same "
            "classes and layers as model.weights"
        )


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put every group's rate at its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def gradient_norm(model: nn.Module) -> Float[Tensor, ""]:
    """The norm of the whole gradient; NaN or inf when a part of it is."""
    norms = [torch.linalg.vector_norm(p.grad) for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_gradient(model: nn.Module, bound: float | None, norm: float) -> None:
    """Scale the whole gradient, whose norm this is, down to at most `bound` (None: leave it).

    The arithmetic of torch.nn.utils.clip_grad_norm_, which before torch 2.6 takes no norm that is known already.
    """
    if bound is not None and norm > bound:  # below it, torch would multiply every gradient by 1
        factor = bound / (torch.tensor(norm, dtype=torch.float32) + 1e-6)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
