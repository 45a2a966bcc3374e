"""A diverged iteration once more: which layers, RoIs and weights are no longer finite in it.

A batch is a pure function of seed and iteration, so what happened after the last checkpoint happens again.
"""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrcnn.config import Config
from fastrcnn.data.loader import Batch, batches
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.model.losses import roi_losses
from fastrcnn.train.loop import Run, one_iteration, prepare
from fastrcnn.train.step import AFTER_STEP, not_finite, outputs

log = logging.getLogger(__name__)

SHOWN = 5  # RoIs


def replay(config: Config, iteration: int) -> Iterator[str]:
    """Run a run's iterations from the checkpoint before `iteration` up to it again; lines on what it computes.

    Writes nothing into the run. Raises NotFiniteError, after the lines, as the run did, and FastRCNNError for a folder
    without a run, an iteration that it does not have, and other settings or data than it was started with.
    """
    folder, end = Path(config.output), config.solver.max_iterations
    if not (folder / "config.yaml").exists():
        raise FastRCNNError(f"{folder}: holds no run to replay")
    if not 0 <= iteration < end:
        raise FastRCNNError(f"{folder}: has no iteration {iteration} to replay; it has 0 to {end - 1}")
    run = prepare(config, True, [], threading.Event(), at_most=iteration)
    log.info("replaying iterations %d to %d", run.first, iteration)
    for batch in batches(run.dataset, run.first, iteration + 1, config.data.workers, pin_memory=False):
        batch = batch.to(run.model.device)
        try:
            one_iteration(run, batch)
        except NotFiniteError:
            yield from _findings(run, batch)
            raise
    yield from _findings(run, batch)
    states = [tensor for of_weight in run.optimizer.state.values() for tensor in of_weight.values()]
    if not all(tensor.isfinite().all() for tensor in [*run.model.parameters(), *states]):
        raise not_finite(batch, AFTER_STEP)
    yield "all is finite here; on another device or with another version of torch, numbers differ"


def _findings(run: Run, batch: Batch) -> Iterator[str]:
    """Outputs of layers, losses of RoIs, weights and gradients, the weights being those that the iteration leaves."""
    model, config = run.model, run.config
    largest: dict[str, float] = {}

    def note(name: str, output: Tensor) -> None:
        largest[name] = float(np.maximum(largest.get(name, 0.0), _largest(output)))  # NaN if one is

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _, __, y, n=name: note(n, y)) for name, layer in layers]
    try:
        batch, scores, deltas = outputs(model, batch, run.statistics, config)
    finally:
        for hook in hooks:
            hook.remove()
    yield "largest number that each layer puts out:"
    yield from (f"    {name:24} {value:.4g}" for name, value in largest.items())
    yield "largest weight and gradient of each layer that learns:"
    for name, p in model.named_parameters():
        if p.requires_grad:
            yield f"    {name:24} {_largest(p):<12.4g} {'none' if p.grad is None else f'{_largest(p.grad):.4g}'}"
    targets = run.statistics.normalise(batch.bbox_targets, batch.labels)
    loss = roi_losses(scores, deltas, batch.labels, targets, config.solver.bbox_loss_weight)
    loss_cls = F.cross_entropy(scores, batch.labels, reduction="none")
    worst = loss.nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)
    yield f"loss not finite: {int((~loss.isfinite()).sum())} of {len(loss)} RoIs; highest:"
    ids = [image_id for image_id, rois in zip(batch.ids, batch.rois, strict=True) for _ in range(len(rois))]
    boxes, names = torch.cat(batch.rois), ["background", *config.classes]
    for row in worst[:SHOWN].tolist():
        box, name = " ".join(f"{side:g}" for side in boxes[row].tolist()), names[int(batch.labels[row])]
        yield f"    image {ids[row]}, box {box}, {name}: loss_cls {loss_cls[row]:.4g}, with boxes {loss[row]:.4g}"


def _largest(values: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(values.detach().abs().max()) if values.numel() else 0.0
