"""Truncated SVD of the fully connected layers (section 3.1), as tools/compress_net.py of the original code."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastrcnn import config as configs
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import refuse_overwrite
from fastrcnn.model.fast_rcnn import factors
from fastrcnn.model.weights import load_model, weights_file, write_model

log = logging.getLogger(__name__)


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


def compress_weights(source: str | Path, target: str | Path, ranks: dict[str, int]) -> list[Compression]:
    """Write a weights file with fc6 and fc7 compressed to `ranks` ({"fc6": 1024, "fc7": 256}; 0 leaves a layer).

    Score thresholds are not taken over. Raises FastRCNNError for a file that is no weights file or is compressed
    already, and for ranks that do not fit.
    """
    refuse_overwrite([weights_file(source)], [target])
    model, config = load_model(source)
    if not model.fc_layers:
        raise FastRCNNError(f"{source}: has no fc6 and fc7 to compress: its network is {config.model.backbone}")
    result = []
    for name, rank in ranks.items():
        layer = getattr(model, name)
        if not isinstance(layer, nn.Linear):
            raise FastRCNNError(f"{source}: {name} is compressed already; compress the weights of tools/train.py")
        try:
            smaller = truncated_svd(layer, rank) if rank else layer
        except FastRCNNError as e:
            raise FastRCNNError(f"{source}: {name}: {e}") from None
        setattr(model, name, smaller)
        before, after = (2e-9 * ROIS * multiplications(part) for part in (layer, smaller))
        result.append(Compression(name, rank or None, (parameters(layer), parameters(smaller)), (before, after)))
    if model.score_thresholds:
        log.info(
            "%s: has no score thresholds: those of %s are of the whole network; measure them with tools/test.py",
            target,
            source,
        )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "feature_scale"}
    write_model(target, tensors, configs.to_dict(config), model.normalisation, feature_scale=1.0, svms=model.svms)
    return result
