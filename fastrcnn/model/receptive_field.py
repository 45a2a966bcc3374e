"""Receptive fields: which pixels a cell of a feature map is computed from, and so how RoIs are brought to its cells.

The centre of cell p_{i+1} of a layer's output is at p_i = s_i p_{i+1} + (k_i - 1) / 2 - padding_i of its input, for
kernel k and stride s; cascaded from the last layer to the picture (SPPnet, arXiv 1406.4729, appendix A).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torchvision.models.resnet import Bottleneck


@dataclass(frozen=True)
class ReceptiveField:
    """Along each axis, cell x sees the `size` pixels around stride * x + offset, 0-based in the scaled picture."""

    stride: int  # scaled pixels from a cell to the next
    offset: float  # where the centre of cell 0 is
    size: int


def receptive_field(layers: Iterable[nn.Module]) -> ReceptiveField:
    """Of the cells that these layers, one after the other, give."""
    stride, offset, size = 1, 0.0, 1
    for layer in layers:
        for kernel, step, padding in windows(layer):
            offset += stride * ((kernel - 1) / 2 - padding)
            size += stride * (kernel - 1)
            stride *= step
    return ReceptiveField(stride, offset, size)


def windows(layer: nn.Module) -> list[tuple[int, int, int]]:
    """Kernel, stride and padding of what a layer slides over its input; none where it looks at single cells.

    Of a residual block those of its three convolutions: its shortcut sees a part of what they see.
    """
    if isinstance(layer, Bottleneck):
        return [window for part in (layer.conv1, layer.conv2, layer.conv3) for window in windows(part)]
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        sides = (layer.kernel_size, layer.stride, layer.padding)
        kernel, step, padding = (side if isinstance(side, int) else int(side[0]) for side in sides)
        return [(kernel, step, padding)]
    return []
