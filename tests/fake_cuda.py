"""CUDA without a GPU: torch's fake tensors have a device, a shape, a type and strides, but no numbers.

They show operations on tensors of two devices, and gradients whose layout is not their weight's. What depends on
numbers is made up, here. torch's own engine runs no backward of CUDA tensors without a GPU: `backward` stands in.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class Seam(TorchDispatchMode):
    """Made-up answers of plausible sizes to what depends on numbers.

    `waits` lists what makes the processor wait until the device has done all it was given: the numbers it asks for, and
    copies without non_blocking. Raises RuntimeError for an index on another device than its tensor, of which torch's
    fake tensors say nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:  # operations that are made of others arrive whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if name in (aten.index, aten.index_put, aten.index_put_):
            devices = {t.device.type for t in (args[0], *args[1]) if t is not None}
            if len(devices) > 1:
                raise RuntimeError(f"{name}: the index is on another device")
        if name is aten.index:
            args = (args[0], [part for index in args[1] for part in self.without_mask(index)])
        if name is aten._to_copy:
            self.see_copy(args[0], **kwargs)
        if name in (aten._fused_sgd_, aten._fused_adamw_):  # have no fake kernel
            return self.see_one_device(*args[:6])
        if name not in ANSWERS:
            result = func(*args, **kwargs)
            if name is aten.lift_fresh:
                result.constant = None  # torch.tensor keeps its numbers, and would compute with them on the device
            return result
        if args[0].device.type == "cuda":
            self.waits.append(name.__name__)
        return ANSWERS[name](*args, **kwargs)

    def see_one_device(self, *lists: list[Tensor]) -> None:
        devices = {tensor.device for tensors in lists for tensor in tensors if tensor is not None}
        if len(devices) != 1:
            raise RuntimeError(f"weights, gradients and states of the optimizer are on {devices}")

    def see_copy(self, tensor: Tensor, device: Any = None, non_blocking: bool = False, **_: Any) -> None:
        devices = [tensor.device.type, torch.device(device or tensor.device).type]
        if devices[0] != devices[1] and not non_blocking:
            self.waits.append(" to ".join(devices))

    def without_mask(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask as the indices of what it chooses."""
        if index is None or index.dtype != torch.bool:
            return [index]
        if index.device.type == "cuda":
            self.waits.append("mask")
        return list(nonzero(index).unbind(1))


class Generator(torch.Generator):
    """A generator `of` a device, on the CPU."""

    of: torch.device

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.of = torch.device(device)
        return made


def some(count: int) -> int:
    """How many of so many differ, are kept or are not zero."""
    return (count + 2) // 3


def whole(count: int, like: Tensor) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device=like.device)


def nonzero(x: Tensor) -> Tensor:
    return whole(some(x.numel()) * x.dim(), x).view(-1, x.dim())


def unique(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = some(x.numel())
    return x.new_empty(count), whole(x.numel(), x).view(x.shape), whole(count, x)


def unique_rows(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = some(len(x))
    return x.new_empty(count, *x.shape[1:]), whole(len(x), x), whole(count, x)


ANSWERS: dict[Any, Callable] = {
    aten._local_scalar_dense: lambda x: x.dtype.is_floating_point or 1,
    aten.nonzero: nonzero,
    aten._unique2: unique,
    aten.unique_dim: unique_rows,
    aten.unique_consecutive: unique,
    torchvision.extension.torch.ops.torchvision.nms: lambda boxes, *_: whole(some(len(boxes)), boxes),
}


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seam]:
    """Within it all tensors are fake; CUDA is there, in autocast too."""
    fake, seam = FakeTensorMode(allow_non_fake_inputs=False), Seam()
    from_numpy, torch_rand = torch.from_numpy, torch.rand

    def rand(*size: Any, generator: Generator, device: torch.device) -> Tensor:
        if generator.of.type != torch.device(device).type:
            raise RuntimeError("rand: the generator is of another device")
        return torch_rand(*size, device=device)

    def tolist(tensor: Tensor) -> list:
        """One copy, however many numbers."""
        seam.see_copy(tensor, "cpu")
        return np.ones(tuple(tensor.shape)).tolist()

    def numpy(tensor: Tensor) -> np.ndarray:
        assert tensor.device.type == "cpu"
        return np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))

    with monkeypatch.context() as patch, fake, seam:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "rand", rand)
        patch.setattr(torch, "from_numpy", lambda array: fake.from_tensor(from_numpy(array)))
        patch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
        patch.setattr(FakeTensor, "tolist", tolist)
        patch.setattr(FakeTensor, "numpy", numpy)
        patch.setattr(Tensor, "backward", backward)
        patch.setattr(nn.Module, "to", moved)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        yield seam


def moved(module: nn.Module, device: torch.device | None = None, **_: Any) -> nn.Module:
    """Module.to, which does not take fake tensors; layouts stay."""
    if device is None:
        return module
    for layer in module.modules():
        for group in (layer._parameters, layer._buffers):
            for name, old in group.items():
                if old is not None:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
                    group[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return module


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """What torch's engine does: each node once it has its gradients, the last first."""
    assert loss.grad_fn is not None
    waiting, nodes = defaultdict(int), [loss.grad_fn]
    for node in nodes:  # grows
        for after, _ in node.next_functions:
            if after is not None:
                if after not in waiting:
                    nodes.append(after)
                waiting[after] += 1
    gradients: dict[Any, list] = {node: [None] * max(len(node._input_metadata), 1) for node in nodes}
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node)
        run = node.apply if isinstance(node, BackwardCFunction) else node  # of Python, or of C++
        results = run(*given) if any(g is not None for g in given) else ()
        results = results if isinstance(results, tuple) else (results,)
        for i, (after, number) in enumerate(node.next_functions):
            if after is None:
                continue
            if i < len(results) and results[i] is not None:
                wanted, before = after._input_metadata[number], gradients[after][number]
                assert results[i].device == wanted.device
                gradient = results[i].sum_to_size(wanted.shape).to(wanted.dtype)
                gradients[after][number] = gradient if before is None else before + gradient
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
