"""Checkpoints: all that training needs to go on exactly, in one checksummed file that appears whole or not at all.

A batch and a dropout mask follow from (seed, iteration), so there are no random states to keep.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data.image_set import ImageSet
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors, remove_leftovers, write_tensors
from fastrcnn.model.backbones import Normalisation
from fastrcnn.model.fast_rcnn import FastRCNN

log = logging.getLogger(__name__)

FORMAT = "fastrcnn checkpoint 1"
KEEP = 2  # if the newest is damaged, the one before takes its place
# Settings that change no number of the training: a resumed run may have others.
FREE_SETTINGS = (
    *("train", "test", "output", "device", "cache_features", "feature_cache"),
    *("data.workers", "data.test", "solver.max_iterations"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A training run at the end of an iteration; `iteration` is the number done, and so the next one's number."""

    iteration: int
    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    statistics: TargetStatistics
    normalisation: Normalisation


def data_digest(images: ImageSet) -> str:
    """A digest of all that training reads from its data set but the pixels: ids, sizes, boxes, classes, proposals."""
    digest = hashlib.blake2b(digest_size=16)
    for record, proposals in images:
        digest.update(f"{record.id} {record.width} {record.height} {len(record.boxes)}\n".encode())
        digest.update(record.boxes.tobytes() + record.classes.tobytes())
        digest.update(np.ascontiguousarray(proposals).tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    iteration: int,
    model: FastRCNN,
    optimizer: torch.optim.Optimizer,
    statistics: TargetStatistics,
    config: Config,
    data: str,
) -> Path:
    """Write folder/checkpoint_<iteration>.safetensors and remove all but the newest two.

    `data` is data_digest's. Raises FastRCNNError when it cannot be written; the earlier ones are then still there.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors[f"momentum.{names[id(parameter)]}"] = state["momentum_buffer"]
    # deviation: the key of old files
    tensors["statistics.mean"], tensors["statistics.deviation"] = statistics.mean, statistics.std
    path = folder / f"checkpoint_{iteration:08d}.safetensors"
    metadata = {
        "format": FORMAT,
        "iteration": iteration,
        "config": configs.to_dict(config),
        "data": data,
        "normalisation": [list(model.normalisation.mean), list(model.normalisation.std)],
    }
    write_tensors(path, tensors, {**metadata, "checksum": _checksum(tensors, metadata)})
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint_*.safetensors"))


def load_latest(folder: Path, config: Config, data: str) -> Checkpoint | None:
    """The newest whole checkpoint, or None when there is none yet; a damaged one is passed over with a warning.

    Also removes temporary files that a kill left in the folder. Raises FastRCNNError when all checkpoints are damaged,
    or when the run was started with other settings, data or proposals.
    """
    remove_leftovers(folder)
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            tensors, metadata = read_tensors(path)
            checkpoint = _unpack(path, tensors, metadata)
        except FastRCNNError as e:
            log.warning("%s; falling back to the checkpoint before", e)
            continue
        _refuse_other_run(path, metadata, config, data)
        return checkpoint
    if found:
        raise FastRCNNError(f"{folder}: every checkpoint is damaged; start again under another output")
    return None


def _unpack(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Checkpoint:
    if metadata.get("format") != FORMAT:
        raise FastRCNNError(f"{path}: is not a checkpoint of this program")
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise FastRCNNError(f"{path}: is damaged: its checksum does not fit its contents")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    try:
        statistics = TargetStatistics(tensors["statistics.mean"], tensors["statistics.deviation"])
        normalisation = Normalisation(*(tuple(float(x) for x in v) for v in metadata["normalisation"]))
        iteration = int(metadata["iteration"])
        metadata["config"], metadata["data"]
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise FastRCNNError(f"{path}: is damaged: {e!r}") from None
    return Checkpoint(iteration, part("model."), part("momentum."), statistics, normalisation)


def _refuse_other_run(path: Path, metadata: dict[str, Any], config: Config, data: str) -> None:
    """Going on with something else changed would be no resume; each difference is named."""
    started = configs.from_dict(metadata["config"], source=str(path))
    before, now = _flatten(configs.to_dict(started)), _flatten(configs.to_dict(config))
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not any(key == f or key.startswith(f + ".") for f in FREE_SETTINGS)
    ]
    if changed:
        raise FastRCNNError(
            f"{path}: the run was started with other settings: {'; '.join(changed)}; put them back, or choose "
            "another output"
        )
    if metadata["data"] != data:
        raise FastRCNNError(
            f"{path}: the run was started on other images, boxes or proposals; put them back, or choose another output"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def restore(checkpoint: Checkpoint, model: FastRCNN, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and momentum into a model and optimizer of the same configuration."""
    model.load_state_dict(checkpoint.model)
    model.normalisation = checkpoint.normalisation
    for name, parameter in model.named_parameters():
        if name in checkpoint.momentum:
            buffer = torch.empty_like(parameter).copy_(checkpoint.momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """A digest of the metadata and of all names, shapes, types and bytes, whatever the layout in memory."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
