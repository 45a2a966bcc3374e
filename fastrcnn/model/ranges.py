"""How large the activations of a network are, measured while it works, for the steps of int8."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

EVERY = 4  # one row of so many, of a map or of RoIs, is looked at: looking at all takes longer than the layers
SHARE = 0.99995  # of an activation's numbers that get a step of their own, the rest is cut off to the last one


class Histogram:
    """Of numbers from 0 on, in BINS of a width that doubles when a number comes that is beyond them."""

    BINS = 4096

    def __init__(self) -> None:
        self.counts, self.end = torch.zeros(self.BINS, dtype=torch.float64), 0.0

    def add(self, values: Tensor) -> None:
        """Numbers of any shape, float32."""
        largest = float(values.max()) if values.numel() else 0.0
        if not self.end:
            self.end = largest or torch.finfo(torch.float32).tiny
        while largest > self.end:
            pairs = self.counts.unflatten(0, (-1, 2)).sum(dim=1)
            self.counts = torch.cat((pairs, torch.zeros_like(pairs)))
            self.end *= 2
        self.counts += torch.histc(values, self.BINS, 0, self.end)

    def quantile(self, share: float) -> float:
        """The end of the first bin up to which at least `share` of all numbers lie."""
        upto = self.counts.cumsum(dim=0)
        return self.end * (int((upto < share * upto[-1]).sum()) + 1) / self.BINS


@dataclass(frozen=True)
class Activation:
    """What a layer puts out, or takes."""

    layer: nn.Module
    signed: bool = False  # whether its magnitude counts, or what is above 0
    taken: bool = False
    seen: Histogram = field(default_factory=Histogram)

    @property
    def largest(self) -> float:
        """The magnitude that SHARE of the numbers seen are below."""
        return self.seen.quantile(SHARE)


@contextlib.contextmanager
def watching(activations: dict[str, Activation]) -> Iterator[dict[str, float]]:
    """While the layers work within, their activations are measured; then the mapping that is given holds the largest of
    each."""
    largest: dict[str, float] = {}
    with contextlib.ExitStack() as hooks:
        for activation in activations.values():
            add = partial(_add, activation)
            handle = (
                activation.layer.register_forward_pre_hook(lambda _, given, add=add: add(given[0]))
                if activation.taken
                else activation.layer.register_forward_hook(lambda _, given, output, add=add: add(output))
            )
            hooks.callback(handle.remove)
        yield largest
    largest.update({name: activation.largest for name, activation in activations.items()})


def _add(activation: Activation, values: Tensor) -> None:
    values = values.detach()[..., ::EVERY, :].float()
    activation.seen.add(values.abs() if activation.signed else values.clamp(min=0))
