"""Truncated SVD of the fully connected layers (section 3.1), as tools/compress_net.py of the original code."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastrcnn.errors import FastRCNNError
from fastrcnn.model.fast_rcnn import FastRCNN, factors


@torch.no_grad()
def truncated_svd(layer: nn.Linear, rank: int) -> nn.Sequential:
    """The best approximation of a layer by two of the given rank: W = U diag(s) V, the bias stays with U.

    Raises FastRCNNError for a rank that is not between 1 and the smaller side of the layer.
    """
    limit = min(layer.weight.shape)
    if not 1 <= rank <= limit:
        raise FastRCNNError(f"rank {rank}: this layer is {layer.out_features} x {layer.in_features}; give 1 to {limit}")
    U, s, V = torch.linalg.svd(layer.weight, full_matrices=False)
    result = factors(layer, rank)
    result.load_state_dict({"V.weight": s[:rank, None] * V[:rank], "U.weight": U[:, :rank], "U.bias": layer.bias})
    return result


def parameters(layer: nn.Module) -> int:
    """How many numbers a layer holds."""
    return sum(p.numel() for p in layer.parameters())


def multiplications(layer: nn.Module) -> int:
    """Multiply-adds for one RoI in a fully connected layer or its two factors."""
    return sum(part.weight.numel() for part in layer.modules() if isinstance(part, nn.Linear))


ROIS = 2000  # an image's proposals, for which the arithmetic is given


@dataclass(frozen=True)
class Compression:
    """One layer before and after; `rank` is None where it was left as it was. GFLOP are those of ROIS RoIs."""

    layer: str
    rank: int | None
    parameters: tuple[int, int]
    gflop: tuple[float, float]


@torch.no_grad()
def compress(model: FastRCNN, ranks: dict[str, int], source: str | Path) -> list[Compression]:
    """Put two factors in the place of fc6 and fc7, in the model, by `ranks` ({"fc6": 1024, "fc7": 256}; 0 leaves a
    layer). Raises FastRCNNError that names `source` for ranks that do not fit, and for layers compressed already."""
    if any(ranks.values()) and not model.fc_layers:
        raise FastRCNNError(f"{source}: has no fc6 and fc7 to compress: its network is {model.config.backbone}")
    result = []
    for name in model.fc_layers:
        layer, rank = getattr(model, name), ranks.get(name, 0)
        if rank and not isinstance(layer, nn.Linear):
            raise FastRCNNError(f"{source}: {name} is compressed already; compress the weights of tools/train.py")
        try:
            smaller = truncated_svd(layer, rank) if rank else layer
        except FastRCNNError as e:
            raise FastRCNNError(f"{source}: {name}: {e}") from None
        setattr(model, name, smaller)
        before, after = (2e-9 * ROIS * multiplications(part) for part in (layer, smaller))
        result.append(Compression(name, rank or None, (parameters(layer), parameters(smaller)), (before, after)))
    return result
