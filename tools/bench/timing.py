"""Timing in turns, and the parts of running code: for bench.py."""

import contextlib
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import trange

from fastrcnn.model import int8_kernels
from fastrcnn.model.onednn import Product

PRECISIONS = ("float32", "bfloat16")
ASSEMBLY = "assembly, float32"
CPU = torch.device("cpu")


def wait() -> None:
    """Until a GPU has done what it was given: else only the giving would be timed."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


BUSY = """
import os, threading
if hasattr(os, "nice"):
    os.nice(19)
def watch():
    os.read(0, 1)  # ends with the program that started this one
    os._exit(0)
threading.Thread(target=watch).start()
while True:
    pass
"""


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Beside so many programs that do nothing but work, at the lowest priority where the system has any."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def medians(rounds: int, cases: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each case, all timed in turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in trange(rounds + 1, desc="timing", unit="turn", disable=None):
        for name, case in cases.items():
            wait()
            started = time.perf_counter()
            case()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def products(size: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Square matrix products in each precision, on a CPU also by oneDNN: what the device can do."""
    cases: dict[str, Callable[[], object]] = {}
    for name in PRECISIONS:
        a, b = (torch.randn(size, size, dtype=getattr(torch, name), device=device) for _ in range(2))
        cases[f"product {name}"] = partial(torch.matmul, a, b)
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            layer = Product(torch.nn.Linear(size, size, bias=False, dtype=a.dtype))
            cases[f"product {name} by oneDNN"] = partial(torch.inference_mode()(layer), a)
    if device.type == "cpu" and int8_kernels.works():
        x, weight = (torch.randint(0, 100, (size, size)).to(dtype) for dtype in (torch.uint8, torch.int8))
        by_int8 = int8_kernels.Product(weight, torch.ones(size), None, (1.0, 0), (1e4, 0), relu=True)
        cases["product int8 by oneDNN"] = partial(torch.inference_mode()(by_int8), x)
    return cases


def rates(seconds: Mapping[str, float], size: int) -> dict[str, float]:
    """GFLOP a second of the faster product [size, size] in each precision."""
    names = {name: (f"product {name}", f"product {name} by oneDNN") for name in (*PRECISIONS, "int8")}
    timed = {name: [seconds[w] for w in ways if w in seconds] for name, ways in names.items()}
    return {name: 2e-9 * size**3 / min(ways) for name, ways in timed.items() if ways}


class Stages:
    """Seconds and GFLOP of the parts of code as it runs: wraps functions, and hooks layers."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.gflop: dict[str, float] = defaultdict(float)
        self.undo: list[Callable[[], None]] = []

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Time calls of owner.name, and each step of it if it is a generator."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timing(stage):
                result = original(*args, **kwargs)
            return self._steps(result, stage) if hasattr(result, "__next__") else result

        setattr(owner, name, timed)
        self.undo.append(lambda: setattr(owner, name, original))

    def _steps(self, steps: Iterator, stage: str) -> Iterator:
        while True:
            with self.timing(stage):
                item = next(steps, None)
            if item is None:
                return
            yield item

    def hook(self, module: Any, stage: str, learning: str | None = None) -> None:
        """Time a module's forward and count its arithmetic; that of its backward goes to the stage `learning`."""
        started: list[float] = []

        def before(*_: object) -> None:
            wait()
            started.append(time.perf_counter())

        def after(*_: object) -> None:
            wait()
            self.seconds[stage] += time.perf_counter() - started.pop()

        def count(layer: Any, inputs: tuple, output: Any) -> None:
            # Packed weights of a product may lie turned round.
            each = inputs[0].shape[-1] if output.ndim == 2 else layer.weight.shape[1:].numel()
            forward = 2e-9 * output.numel() * each
            self.gflop[stage] += forward
            if learning and layer.weight.requires_grad:
                self.gflop[learning] += forward * (1 + inputs[0].requires_grad)

        hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        leaves = [m for m in module.modules() if getattr(m, "weight", None) is not None]
        hooks += [leaf.register_forward_hook(count) for leaf in leaves]
        self.undo += [h.remove for h in hooks]

    @contextlib.contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        wait()
        started = time.perf_counter()
        yield
        wait()
        self.seconds[stage] += time.perf_counter() - started

    def close(self) -> None:
        for undo in reversed(self.undo):
            undo()


@dataclass(frozen=True)
class Case:
    """Work to measure, with the stages that it goes through."""

    work: Callable[[], object]
    install: Callable[[Stages], None]
    precision: str
    images: int = 1  # in each call


def staged(rounds: int, case: Case, rate: float) -> dict[str, Any]:
    """Run the work of a case with stages installed; medians by stage, in milliseconds, and what floor they stand on."""
    seen: list[Stages] = []
    for _ in range(rounds):
        stages = Stages()
        case.install(stages)
        try:
            with stages.timing("whole"):
                case.work()
        finally:
            stages.close()
        seen.append(stages)
    whole = statistics.median(s.seconds["whole"] for s in seen)
    rows, total = [], 0.0
    for stage in (s for s in seen[0].seconds if s != "whole"):
        seconds, gflop = statistics.median(s.seconds[stage] for s in seen), seen[0].gflop[stage]
        total += seconds
        rows.append(_row(stage, seconds, whole, gflop, rate))
    rows.append(_row("rest", whole - total, whole, 0.0, rate))
    return {"stages": rows, "gflop": sum(row["gflop"] for row in rows)}


def _row(stage: str, seconds: float, whole: float, gflop: float, rate: float) -> dict[str, Any]:
    floor = gflop / rate
    ratio = {"floor / measured": floor / seconds} if gflop > 1 else {}
    return {"stage": stage, "ms": 1e3 * seconds, "share": seconds / whole, "gflop": gflop, **ratio}


def memory_of(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The most that tensors take on a GPU while work is done, beside those that lie there before: all weights, and in
    training their gradients and momentum."""
    if device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    wait()
    return {"GB at work": (torch.cuda.max_memory_allocated(device) - before) / 1e9}


def measured(
    rounds: int,
    size: int,
    cases: Mapping[str, Case],
    others: Mapping[str, Callable[[], object]],
    device: torch.device = CPU,
) -> dict[str, Any]:
    """All timed in turns: rates of products [size, size], each case with its stages, and `others` beside them.

    How many times as fast a case is as the assembly is said where `others` has that.
    """
    every = {**{name: one.work for name, one in cases.items()}, **others}
    seconds = medians(rounds, {**every, **products(size, device)})
    rate = rates(seconds, size)
    result: dict[str, Any] = {"rates": rate, "cases": {}, "stages": {}}
    for name, one in cases.items():
        parts = staged(max(rounds // 2, 1), one, rate[one.precision])
        floor = parts["gflop"] / rate[one.precision]
        figures = {"ms": 1e3 * seconds[name], "images a second": one.images / seconds[name]}
        figures |= {"gflop": parts["gflop"], "floor ms": 1e3 * floor}
        figures["floor / measured"] = floor / seconds[name]
        if ASSEMBLY in others:
            figures["times as fast as the assembly"] = seconds[ASSEMBLY] / seconds[name]
        result["cases"][name], result["stages"][name] = figures, parts["stages"]
    result["cases"] |= {name: {"ms": 1e3 * seconds[name]} for name in others}
    for name, work in every.items():
        result["cases"][name] |= memory_of(work, device)
    return result
