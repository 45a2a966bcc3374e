"""One iteration of SGD, and the start of the layers that come without weights."""

import logging
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data.loader import Batch, BatchDataset, batches
from fastrcnn.data.sampling import dropout_seed
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.model.fast_rcnn import FastRCNN, rms, scaled_start
from fastrcnn.model.losses import diagnostics, multi_task_loss
from fastrcnn.train.hard_examples import hardest_batch
from fastrcnn.train.solver import clip_gradient, gradient_norm, head_first

log = logging.getLogger(__name__)

AFTER_STEP = "a weight or its momentum is no longer finite, after a step"
START_BATCHES = 4  # batches that must have RoIs; these set the scale of fc6 and fc7 when they start at random


def train_step(
    model: FastRCNN, optimizer: torch.optim.Optimizer, batch: Batch, statistics: TargetStatistics, config: Config
) -> dict[str, float]:
    """One iteration on one batch; returns its losses, gradient norm and diagnostics.

    Batch and statistics are on the model's device. Raises NotFiniteError when the loss or the gradient is not finite,
    before the weights are touched.
    """
    head_first(model, config.solver, batch.iteration)
    batch, scores, deltas = outputs(model, batch, statistics, config)
    targets = statistics.normalise(batch.bbox_targets, batch.labels)
    losses = multi_task_loss(scores, deltas, batch.labels, targets, config.solver.bbox_loss_weight)
    loss = losses["loss_cls"] + losses["loss_bbox"]
    optimizer.zero_grad()
    loss.backward()
    norm = gradient_norm(model)
    must_be_finite = {"loss": loss, **losses, "gradient_norm": norm}
    values = _numbers({**must_be_finite, **diagnostics(scores, batch.labels)})
    bad = [name for name in must_be_finite if not math.isfinite(values[name])]
    if bad:
        raise not_finite(batch, f"{bad[0]} is {values[bad[0]]}")
    clip_gradient(model, config.solver.clip_gradient, values["gradient_norm"])
    optimizer.step()
    return values


def outputs(
    model: FastRCNN, batch: Batch, statistics: TargetStatistics, config: Config
) -> tuple[Batch, Float[Tensor, "R K"], Float[Tensor, "R 4*K"]]:
    """The batch with the RoIs that are learnt from, and their scores and normalised deltas."""
    features = model.trained_features(_frozen_maps(model, batch))
    if config.sampling.hard_candidates:
        batch = hardest_batch(model, features, batch, statistics, config)
    scores, deltas = model.head(features, batch.rois, batch.scales, dropout_seed(config.seed, batch.iteration))
    return batch, scores, deltas


def not_finite(batch: Batch, what: str) -> NotFiniteError:
    """The error that stops training, naming the iteration and its images."""
    error = NotFiniteError(
        f"iteration {batch.iteration}: {what} on images {', '.join(batch.ids)}; look at their boxes with "
        "tools/check_data.py, or lower solver.lr, or set solver.clip_gradient. The last checkpoint stays"
    )
    error.iteration = batch.iteration
    return error


def _numbers(scalars: dict[str, Shaped[Tensor, ""]]) -> dict[str, float]:
    """Scalars on any device as floats, in one copy: the processor waits for the device once a step."""
    stacked = torch.stack([scalar.detach().float() for scalar in scalars.values()])
    return dict(zip(scalars, stacked.tolist(), strict=True))


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
