"""One iteration of SGD, and the start of the layers that come without weights."""

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data.loader import Batch, BatchDataset, batches
from fastrcnn.data.sampling import dropout_seed
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.model.fast_rcnn import FastRCNN, Features, rms
from fastrcnn.model.losses import counts, diagnostics, multi_task_loss
from fastrcnn.ranks import ALONE, Ranks
from fastrcnn.train.hard_examples import hardest_batch, learnt_from
from fastrcnn.train.solver import UNSCALED, clip_gradient, gradient_norm, head_first

log = logging.getLogger(__name__)

AFTER_STEP = "a weight or its momentum is no longer finite, after a step"
MUST_BE_FINITE = ("loss", "loss_cls", "loss_bbox", "gradient_norm")
START_BATCHES = 4  # batches that must have RoIs; these set the scale of fc6 and fc7 when they start at random


def train_step(
    model: FastRCNN,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    statistics: TargetStatistics,
    config: Config,
    ranks: Ranks = ALONE,
    scaler: torch.amp.GradScaler = UNSCALED,
) -> dict[str, float]:
    """One iteration, of which `batch` is this rank's part; returns its losses, gradient norm and diagnostics, those of
    all ranks.

    Batch and statistics are on the model's device. Raises NotFiniteError when the loss or the gradient is not finite,
    before the weights are touched; a gradient that overflowed because `scaler` scales it leaves out the step instead.
    """
    head_first(model, config.solver, batch.iteration)
    parallel = ranks.parallel(model)
    optimizer.zero_grad()
    parts = list(batch.parts(config.sampling.images_per_batch))
    rois = ranks.total(sum(learnt_from(len(boxes), config.sampling) for boxes in batch.rois))
    sums = []
    for part in parts:
        with ranks.adding_up(part is parts[-1]):
            part, scores, deltas = outputs(model, part, statistics, config, parallel)
            targets = statistics.normalise(part.bbox_targets, part.labels)
            losses = multi_task_loss(scores, deltas, part.labels, targets, config.solver.bbox_loss_weight, rois)
            loss = losses["loss_cls"] + losses["loss_bbox"]
            scaler.scale(loss * ranks.world).backward()  # ranks take the mean of their gradients
        sums.append({**losses, **counts(scores, part.labels)})
    scaler.unscale_(optimizer)
    values = _numbers(sums, gradient_norm(model), ranks)
    if values["rois"] != rois:  # of hard examples so many are known only now
        _divide_again(model, values, rois)
    bad = [name for name in MUST_BE_FINITE if not math.isfinite(values[name])]
    if not bad:
        clip_gradient(model, config.solver.clip_gradient, values["gradient_norm"])
        scaler.step(optimizer)
    elif bad == ["gradient_norm"] and scaler.get_scale() > 1:
        log.info("iteration %d: a gradient overflowed; its step is left out and the scale halved", batch.iteration)
    else:
        raise not_finite(batch, f"{bad[0]} is {values[bad[0]]}")
    scaler.update()
    return {name: values[name] for name in MUST_BE_FINITE} | diagnostics(values)


def outputs(
    model: FastRCNN, batch: Batch, statistics: TargetStatistics, config: Config, parallel: nn.Module | None = None
) -> tuple[Batch, Float[Tensor, "R K"], Float[Tensor, "R 4*K"]]:
    """The batch with the RoIs that are learnt from, and their scores and normalised deltas; `parallel` is what the
    model is called through."""
    chosen = batch

    def hardest(features: Features) -> list[Float[Tensor, "_ 4"]]:
        nonlocal chosen
        chosen = hardest_batch(model, features, batch, statistics, config)
        return chosen.rois

    seeds = [dropout_seed(config.seed, batch.iteration, position) for position in batch.positions]
    maps, choose = _frozen_maps(model, batch), hardest if config.sampling.hard_candidates else None
    scores, deltas = (parallel or model)(maps, batch.rois, batch.scales, seeds, choose)
    return chosen, scores, deltas


def _divide_again(model: FastRCNN, values: dict[str, float], rois: int) -> None:
    """Losses and gradients were divided by so many RoIs; divide them by those that were learnt from."""
    factor = rois / max(values["rois"], 1)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    for name in MUST_BE_FINITE:
        values[name] *= factor


def not_finite(batch: Batch, what: str) -> NotFiniteError:
    """The error that stops training, naming the iteration and its images."""
    error = NotFiniteError(
        f"iteration {batch.iteration}: {what} on images {', '.join(batch.ids)}; look at their boxes with "
        "tools/check_data.py, or lower solver.lr, or set solver.clip_gradient. The last checkpoint stays"
    )
    error.iteration = batch.iteration
    return error


def _numbers(parts: Sequence[dict[str, Shaped[Tensor, ""]]], norm: Float[Tensor, ""], ranks: Ranks) -> dict[str, float]:
    """The sums of scalars over parts and ranks, and the gradient's norm, as floats, in one copy: the processor waits
    for the device once a step."""
    stacked = torch.stack([torch.stack([scalar.detach().float() for scalar in part.values()]) for part in parts])
    numbers = torch.cat((ranks.sum(stacked.sum(dim=0)), norm[None])).tolist()
    values = dict(zip((*parts[0], "gradient_norm"), numbers, strict=True))
    return {"loss": values["loss_cls"] + values["loss_bbox"], **values}


def _frozen_maps(model: FastRCNN, batch: Batch) -> list[Float[Tensor, "c _ _"]]:
    """Where training starts: the frozen layers' output, stored or computed now; the same numbers."""
    return batch.maps or [model.frozen_features(image) for image in batch.images]


def first_batches(dataset: BatchDataset) -> list[Batch]:
    """What training will see first. Raises FastRCNNError when there is no RoI in it, from which nothing is learned."""
    first = list(batches(dataset, 0, START_BATCHES, workers=0, pin_memory=False))
    if not any(len(batch.labels) for batch in first):
        raise FastRCNNError(
            f"the first {START_BATCHES} iterations have no RoI at all: no proposal overlaps an object enough to be "
            "foreground or background; look at both with tools/check_data.py"
        )
    return first


@torch.no_grad()
def start_head(model: FastRCNN, loaded: set[str], first: Sequence[Batch], per_image: int, device: torch.device) -> None:
    """Fit layers that were not `loaded` to the features of the RoIs that training will see first, `per_image` of each
    image: the scale of fc6 and fc7, or, where fc6 came with weights for features that were not merged, of its input."""
    fresh = not {*model.fc_layers} <= loaded
    if not fresh and (model.merge is None or "merge" in loaded):
        return
    pooled = []
    for batch in first:
        batch = batch.to(device)
        rois = [model.project(boxes[:per_image], scale) for boxes, scale in zip(batch.rois, batch.scales, strict=True)]
        features = model.trained_features(_frozen_maps(model, batch))
        if fresh:
            pooled.append(model.pool(features, rois).flatten(1))
        else:
            pooled.append(model.roi_features[-1].pool(features[-1], rois).flatten(1))
    if fresh:
        scaled_start(model, torch.cat(pooled))
        log.info("fc6 and fc7 start at random; pooled features are divided by %.2f", 1 / float(model.feature_scale))
    else:
        model.feature_scale *= rms(torch.cat(pooled))  # of the features that fc6 knows; merged ones have RMS 1
        log.info("merged features are multiplied by %.2f, for fc6 has weights already", float(model.feature_scale))


@torch.no_grad()
def scaled_start(model: FastRCNN, pooled: Float[Tensor, "R CPP"]) -> None:
    """Start fc6 and fc7 for weights that come without them; `pooled` are features of some real RoIs.

    VGG16's features are about 10 in RMS after max pooling. A plain start multiplies that through both layers, the first
    loss is three times ln K, and the network retreats to the class prior for good. So pooled features are divided by
    their RMS, and fc6 and fc7 are rescaled so that each puts out RMS 1.
    """
    model.feature_scale.fill_(1 / rms(pooled))
    x = pooled * model.feature_scale
    for layer in (model.fc6, model.fc7):
        layer.weight /= rms(F.relu(layer(x)))
        x = F.relu(layer(x))
