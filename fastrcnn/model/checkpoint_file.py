"""The file of a checkpoint: all that training needs to resume exactly, under a checksum.

A batch and a dropout mask follow from (seed, iteration), so there are no random states to keep.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrcnn.boxes import TargetStatistics
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors, write_tensors
from fastrcnn.model.backbones import Normalisation

FORMAT = "fastrcnn checkpoint 1"
# What torch's SGD and AdamW know of each weight, and its name in the file.
OPTIMIZER_STATES = {"momentum_buffer": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "step": "step"}


@dataclass(frozen=True)
class Checkpoint:
    """A training run at the end of an iteration; `iteration` is the number done, and so the next one's number."""

    iteration: int
    model: dict[str, Tensor]  # the state_dict: bbox_pred predicts normalised targets, feature_scale stands apart
    optimizer: dict[str, dict[str, Tensor]]  # by OPTIMIZER_STATES and the parameters' names
    statistics: TargetStatistics
    normalisation: Normalisation
    config: dict[str, Any]  # as config.to_dict gives it
    data: str  # digest of what training read
    scaler: dict[str, float] = field(default_factory=dict)  # of the loss, as GradScaler.state_dict; empty without one


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one atomically. Raises FastRCNNError when it cannot be written, NotFiniteError as write_tensors does."""
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    for state, of_state in checkpoint.optimizer.items():
        tensors |= {f"{OPTIMIZER_STATES[state]}.{name}": tensor for name, tensor in of_state.items()}
    tensors["statistics.mean"] = checkpoint.statistics.mean
    tensors["statistics.deviation"] = checkpoint.statistics.std  # the key of old files
    metadata = {
        "format": FORMAT,
        "iteration": checkpoint.iteration,
        "config": checkpoint.config,
        "data": checkpoint.data,
        **({"scaler": checkpoint.scaler} if checkpoint.scaler else {}),
        "normalisation": [list(checkpoint.normalisation.mean), list(checkpoint.normalisation.std)],
    }
    write_tensors(path, tensors, {**metadata, "checksum": _checksum(tensors, metadata)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises FastRCNNError for a file that is not a checkpoint, or not one to the last bit."""
    return unpack(path, *read_tensors(path))


def unpack(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Checkpoint:
    """What read_checkpoint does, from what read_tensors read."""
    if metadata.get("format") != FORMAT:
        raise FastRCNNError(f"{path}: is not a checkpoint of this program")
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise FastRCNNError(f"{path}: is damaged: its checksum does not fit its contents")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    try:
        statistics = TargetStatistics(tensors["statistics.mean"], tensors["statistics.deviation"])
        mean, std = ((float(r), float(g), float(b)) for r, g, b in metadata["normalisation"])
        iteration, config, data = int(metadata["iteration"]), metadata["config"], metadata["data"]
        scaler = dict(metadata.get("scaler", {}))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise FastRCNNError(f"{path}: is damaged: {e!r}") from None
    normalisation = Normalisation(mean, std)
    states = {state: part(f"{prefix}.") for state, prefix in OPTIMIZER_STATES.items()}
    return Checkpoint(iteration, part("model."), states, statistics, normalisation, config, data, scaler)


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """A digest of the metadata and of all names, shapes, types and bytes, whatever the layout in memory."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
