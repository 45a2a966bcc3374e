"""The layers of a network in int8 at work: torch's own kernels of oneDNN, behind four classes.

A tensor of uint8 stands for step * (values - zero), zero being 0 after a ReLU and MIDDLE where there is a sign.
Products add up exactly in int32; results are rounded to the nearest step, and what is beyond the first or last one
becomes it.
"""

from functools import cache
from typing import TypeAlias

import torch
from jaxtyping import Float32, Int8, Real, UInt8
from torch import Tensor, nn

from fastrcnn.model.roi_features import ROIS_PER_CHUNK

MIDDLE = 128  # what stands for 0 where activations have a sign
LARGEST = 255
Sliding: TypeAlias = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


@cache
def works() -> bool:
    """Whether this torch, on this processor, multiplies uint8 by int8 and adds up exactly.

    Without instructions for it (VNNI on x86) oneDNN adds pairs up in 16 bits, which overflow without a word.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    weight, x = torch.full((16, 64), 127, dtype=torch.int8), torch.full((2, 64), LARGEST, dtype=torch.uint8)
    try:
        found = Product(weight, torch.ones(16), None, (1.0, 0), None, relu=True)(x)
    except (RuntimeError, AttributeError):
        return False
    return bool((found == 64 * 127 * LARGEST).all())


class FirstConvolution(nn.Module):
    """A convolution and ReLU, from float32 to uint8."""

    weight: Float32[Tensor, "C c _ _"]
    bias: Float32[Tensor, "C"]

    def __init__(
        self, weight: Float32[Tensor, "C c _ _"], bias: Float32[Tensor, "C"], sliding: Sliding, step_out: float
    ):
        super().__init__()
        # In steps of the output, plus a half: dropping the fraction then rounds.
        self.register_buffer("weight", (weight / step_out).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias / step_out + 0.5)
        self.sliding = sliding

    def forward(self, x: Float32[Tensor, "N c H W"]) -> UInt8[Tensor, "N C _ _"]:
        stride, padding, dilation, groups = self.sliding
        where = (padding, stride, dilation, groups)
        within = ("hardtanh", [0.0, LARGEST + 0.5], "")
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *where, *within).to(torch.uint8)


class Convolution(nn.Module):
    """A convolution and ReLU, from uint8 to uint8, both without a sign."""

    def __init__(
        self,
        weight: Int8[Tensor, "C c _ _"],
        weight_step: Float32[Tensor, "C"],
        bias: Float32[Tensor, "C"] | None,
        sliding: Sliding,
        step_in: float,
        step_out: float,
    ):
        super().__init__()
        self.weight = torch.ops.onednn.qconv_prepack(weight, weight_step, step_in, 0, *sliding)
        self.weight_step, self.bias, self.sliding = weight_step, bias, sliding
        self.weight_zero = torch.zeros(len(weight), dtype=torch.int64)
        self.steps = step_in, step_out

    def forward(self, x: UInt8[Tensor, "N c H W"]) -> UInt8[Tensor, "N C _ _"]:
        step_in, step_out = self.steps
        layer = (self.weight, self.weight_step, self.weight_zero, self.bias, *self.sliding)
        return torch.ops.onednn.qconv_pointwise(x, step_in, 0, *layer, step_out, 0, torch.uint8, "relu", [], "")


class MaxPool(nn.Module):
    """2x2 cells to their maximum, a half one at the border too (ceil_mode): torch's own takes no uint8 maps of this
    size."""

    def forward(self, x: UInt8[Tensor, "N C H W"]) -> UInt8[Tensor, "N C _ _"]:
        x = larger_neighbours(x[:, :, ::2], x[:, :, 1::2], dim=2)
        return larger_neighbours(x[:, :, :, ::2], x[:, :, :, 1::2], dim=3)


def larger_neighbours(even: UInt8[Tensor, "N C _ _"], odd: UInt8[Tensor, "N C _ _"], dim: int) -> Tensor:
    """The larger of each pair; an even one without partner, the last, as it is."""
    pairs = odd.shape[dim]
    larger = torch.maximum(even.narrow(dim, 0, pairs), odd)
    return larger if even.shape[dim] == pairs else torch.cat((larger, even.narrow(dim, pairs, 1)), dim)


class Product(nn.Module):
    """A fully connected layer, of uint8 or of float32 which it rounds; with ReLU or without.

    `came` are step and zero of what it takes, `out` of what it puts out: uint8, or float32 where that is None.
    """

    def __init__(
        self,
        weight: Int8[Tensor, "n m"],
        weight_step: Float32[Tensor, "n"],
        bias: Float32[Tensor, "n"] | None,
        came: tuple[float, int],
        out: tuple[float, int] | None,
        relu: bool,
    ):
        super().__init__()
        self.weight = torch.ops.onednn.qlinear_prepack(weight, [ROIS_PER_CHUNK, weight.shape[1]])
        self.weight_step, self.bias, self.relu = weight_step, bias, relu
        self.weight_zero = torch.zeros(len(weight), dtype=torch.int64)
        self.came, self.out = came, out

    def forward(self, x: Real[Tensor, "R m"]) -> Real[Tensor, "R n"]:
        if x.is_floating_point():
            step, zero = self.came
            x = (x / step).round_().add_(zero).clamp_(0, LARGEST).to(torch.uint8)
        step, zero = self.out or (1.0, 0)
        layer = (self.weight, self.weight_step, self.weight_zero, self.bias)
        dtype, after = torch.uint8 if self.out else torch.float32, "relu" if self.relu else "none"
        return torch.ops.onednn.qlinear_pointwise(x, *self.came, *layer, step, zero, dtype, after, [], "")
