"""Float32 matrix products of fc layers through oneDNN in the place of MKL, on processors that are not MKL's home.

torch multiplies float32 matrices by MKL, which on AMD's processors goes a slower way than on Intel's: on two cores of
an EPYC (Zen 5) 206 GFLOP/s, where oneDNN, in the same torch, gives 446 to 480. On Intel's the two are alike.
Chosen by the maker of the processor, not by timing, so that a machine gives the same numbers each time.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS = 512  # that weights are laid out for: a chunk of RoIs (roi_features.ROIS_PER_CHUNK); others work as well


@cache
def faster_here() -> bool:
    """Whether this is an x86 processor not by Intel, with a torch that has MKL for float32 and oneDNN beside it."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    about, file = platform.processor(), Path("/proc/cpuinfo")
    if file.exists():
        about += file.read_text(encoding="utf-8", errors="replace")
    return any(maker in about for maker in ("AuthenticAMD", "HygonGenuine"))


class Linear(nn.Linear):
    """nn.Linear, whose float32 products in training, forward and backward, are oneDNN's where it is faster."""

    def forward(self, x: Float[Tensor, "R in"]) -> Float[Tensor, "R out"]:
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (plain and len(x) and faster_here()):  # of no rows oneDNN gives no gradient
            return super().forward(x)
        return _Linear.apply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _linear(gradient, weight.t()) if of_x else None,
            # Rows in order: with both turned round oneDNN takes twice as long as MKL.
            _linear(gradient.t().contiguous(), x.t()) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def _linear(x: Float[Tensor, "R in"], weight: Float[Tensor, "out in"], bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Product(nn.Module):
    """A fully connected layer for inference, with a copy of its weights laid out for oneDNN."""

    weight: Float[Tensor, "out in"]

    def __init__(self, layer: nn.Linear):
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.register_buffer("weight", packed, persistent=False)
        self.bias, self.in_features = layer.bias, layer.in_features

    def forward(self, x: Float[Tensor, "R in"]) -> Float[Tensor, "R out"]:
        return _linear(x, self.weight, self.bias)


def by_onednn(layers: nn.Module) -> nn.Module:
    """A layer, or the two of a compressed one, with every nn.Linear as a Product."""
    if isinstance(layers, nn.Linear):
        return Product(layers)
    for name, layer in layers.named_children():
        setattr(layers, name, by_onednn(layer))
    return layers
