"""The checkpoints of a run: the newest two, and what a resumed run may change."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.config_data import PARTS
from fastrcnn.config_rules import dotted
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.checkpoint_file import Checkpoint, read_checkpoint, write_checkpoint
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.train.solver import UNSCALED

log = logging.getLogger(__name__)

KEEP = 2  # if the newest is damaged, the one before takes its place
# Settings that change no number of the training: a resumed run may have others. Of data.train the digest decides, so
# that the files may have moved.
FREE_SETTINGS = (
    *("train", "test", "output", "device", "cache_features", "feature_cache", "expected"),
    *("data.workers", *(f"data.{part}" for part in PARTS), "solver.max_iterations"),
    "recipe",  # what it stands for is in the other keys
    "proposals.max_per_image",  # the boxes themselves are in the digest of the data
)


def save_checkpoint(
    folder: Path,
    iteration: int,
    model: FastRCNN,
    optimizer: torch.optim.Optimizer,
    statistics: TargetStatistics,
    config: Config,
    data: str,
    scaler: torch.amp.GradScaler = UNSCALED,
) -> Path:
    """Write folder/checkpoint_<iteration>.safetensors and remove all but the newest two.

    `data` is Survey's digest. Raises FastRCNNError when it cannot be written, NotFiniteError when it would hold numbers
    that are not finite; the earlier ones are then still there.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for p, of_weight in optimizer.state.items():
        for state, tensor in of_weight.items():
            states.setdefault(state, {})[names[id(p)]] = tensor
    path = folder / f"checkpoint_{iteration:08d}.safetensors"
    settings = configs.to_dict(config)
    tensors = model.state_dict(), states, statistics
    write_checkpoint(path, Checkpoint(iteration, *tensors, model.normalisation, settings, data, scaler.state_dict()))
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint_*.safetensors"))


def load_latest(folder: Path, config: Config, data: str, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, or None when there is none yet; a damaged one is skipped with a warning.

    With `at_most`, the newest of so many iterations or fewer. Raises FastRCNNError when all checkpoints are damaged, or
    when the run was started with other settings, data or proposals.
    """
    found, newer = checkpoints(folder), False
    for path in reversed(found):
        try:
            checkpoint = read_checkpoint(path)
        except FastRCNNError as e:
            log.warning("%s; falling back to the checkpoint before", e)
            continue
        _refuse_other_run(path, checkpoint, config, data)
        if at_most is None or checkpoint.iteration <= at_most:
            return checkpoint
        newer = True
    if found and not newer:
        raise FastRCNNError(f"{folder}: every checkpoint is damaged; start again under another output")
    return None


def _refuse_other_run(path: Path, checkpoint: Checkpoint, config: Config, data: str) -> None:
    """With anything else changed it would be no resume; each difference is named."""
    started = configs.from_dict(checkpoint.config, source=str(path))
    before, now = dotted(configs.to_dict(started)), dotted(configs.to_dict(config))
    ends_at_zero = config.solver.schedule != "step"  # then the rate of every iteration depends on the last
    free = [f for f in FREE_SETTINGS if not (ends_at_zero and f == "solver.max_iterations")]
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not any(key == f or key.startswith(f + ".") for f in free)
    ]
    if changed:
        raise FastRCNNError(
            f"{path}: the run was started with other settings: {'; '.join(changed)}; put them back, or choose "
            "another output"
        )
    if checkpoint.data != data:
        key = "proposals.max_per_image"
        capped = f" (it had {key}={before[key]}: set that)" if before.get(key) != now.get(key) else ""
        raise FastRCNNError(
            f"{path}: the run was started on other images, boxes or proposals{capped}; put them back, or choose "
            "another output"
        )


def restore(
    checkpoint: Checkpoint,
    model: FastRCNN,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler = UNSCALED,
) -> None:
    """Put a checkpoint's weights, state of the optimizer and scale of the loss into what is of the same
    configuration."""
    scaler.load_state_dict(checkpoint.scaler)
    model.load_state_dict(checkpoint.model)
    model.normalisation = checkpoint.normalisation
    for name, parameter in model.named_parameters():
        for state, of_state in checkpoint.optimizer.items():
            if name in of_state:
                alike = parameter if of_state[name].shape == parameter.shape else of_state[name]  # not of `step`
                kept = torch.empty_like(alike, device=parameter.device).copy_(of_state[name])
                optimizer.state[parameter][state] = kept
