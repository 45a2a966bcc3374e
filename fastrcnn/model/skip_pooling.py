"""Skip pooling: RoI features of earlier layers beside the last one's, merged to as many channels as the last one has.

As in ION (Bell et al. 2016, arXiv 1512.04143, section 3): each layer's features are brought to one size in every bin,
concatenated and merged by a 1x1 convolution, so that fc6 keeps its shape and its ImageNet weights.
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fastrcnn.config import ModelConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.model import backbones

SMALLEST = 1e-6  # a norm below is taken as this: a bin of zeros stays zeros
START_STD = 0.01  # of the weights of earlier layers, as cls_score's


def pooled_ends(backbone: nn.Sequential, config: ModelConfig, frozen_depth: int) -> list[int]:
    """How many leading layers give each of the maps that RoIs are pooled from; the last are all layers.

    Raises FastRCNNError for model.pool_layers that this backbone has not, or that its frozen layers do not give.
    """
    if not config.pool_layers:
        return [len(backbone)]
    try:
        ends = [backbones.layer_end(backbone, name) for name in config.pool_layers]
    except KeyError as e:
        raise FastRCNNError(f"model.pool_layers: {config.backbone} has {e.args[0]}") from None
    last = [name for name, layer in backbone.named_children() if isinstance(layer, nn.Conv2d)][-1]
    if ends != sorted(set(ends)) or ends[-1] != len(backbone):
        raise FastRCNNError(
            f"model.pool_layers: {config.pool_layers} are not layers in the network's order, each once, the last of "
            f"them {last}, whose features fc6 takes"
        )
    if ends[0] < frozen_depth:
        names = [name for name, _ in backbone.named_children()]
        raise FastRCNNError(
            f"model.pool_layers: {config.pool_layers[0]} is one of the frozen layers, of which only the output of the "
            f"last, {names[frozen_depth - 1]}, is kept; name that in its place, or freeze less by model.freeze_up_to"
        )
    return ends


class Merge(nn.Module):
    """RoI features of several layers -> features of as many channels as the last layer has.

    Each layer's part of a bin is divided by its RMS over channels: layers differ by an order of magnitude. ParseNet
    and ION divide by the L2 norm and scale by a constant, here the root of the number of channels; a scale learned for
    each channel, as in ParseNet, would be a factor of the convolution's weights. No bias: fc6 has one. Starts as the
    last layer's part alone, with a little noise from the others, so that weights of fc6 still fit.
    """

    def __init__(self, channels: list[int]):
        """`channels` of each layer, the last one's last."""
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(channels[-1], sum(channels)))
        with torch.no_grad():
            nn.init.normal_(self.weight, std=START_STD)
            nn.init.eye_(self.weight[:, -channels[-1] :])

    def forward(self, parts: list[Float[Tensor, "R _ P P"]]) -> Float[Tensor, "R C P P"]:
        """The convolution of each part, then divided by the part's RMS: the same, and C channels in place of all."""
        weights = self.weight[:, :, None, None].split(self.channels, dim=1)
        return functools.reduce(
            torch.add, [F.conv2d(part, w) * _inverse_rms(part) for part, w in zip(parts, weights, strict=True)]
        )

    def of_bins(self, layer: int, bins: Float[Tensor, "U c"]) -> Float[Tensor, "U C"]:
        """What bins of one layer add to the sum over layers that `forward` gives."""
        return F.linear(bins, self.weight.split(self.channels, dim=1)[layer]) * _inverse_rms(bins)


def _inverse_rms(part: Float[Tensor, "R c *bins"]) -> Float[Tensor, "R 1 *bins"]:
    """1 / the root of the mean square over channels, in float32 or better."""
    dtype = torch.promote_types(part.dtype, torch.float32)
    norm = torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=dtype)
    return part.shape[1] ** 0.5 / norm.clamp(min=SMALLEST)
