"""A step of training, beside the assembly, and from stored features: cases, stages and checks to print."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.assembly import Assembly
from bench.made import Training, made_config
from bench.memory import memory_of_training, peak
from bench.timing import ASSEMBLY, CPU, Case, measured


def train(rounds: int, small: bool, device: torch.device = CPU) -> dict[str, Any]:
    size = 256 if small else 4096
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Training(Path(folder), made_config(small, name), device) for name in ("float32", "bfloat16")}
        batch = runs["float32"].batch(0).to(device)
        assembly = Assembly(runs["float32"].model, runs["float32"].config, device).train()
        optimizer = torch.optim.SGD([p for p in assembly.parameters() if p.requires_grad], 1e-6, 0.9, weight_decay=5e-4)
        assembly.place(batch.rois, batch.scales[0])
        images = [image.contiguous() for image in batch.images]
        targets = [
            {"boxes": rois[:4] * batch.scales[0], "labels": torch.ones(4, dtype=torch.int64, device=device)}
            for rois in batch.rois
        ]

        def assembly_step() -> None:
            losses = assembly(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

        cases = {name: Case(partial(t.step, batch), t.stages, name, len(batch.ids)) for name, t in runs.items()}
        result = measured(rounds, size, cases, {ASSEMBLY: assembly_step}, device)
        loading = runs["float32"].loading()
        if device.type != "cpu":
            return {**result, "checks": {"loader, CPU ms a batch": 1e3 * loading}}
        step = torch.get_num_threads() * result["cases"]["bfloat16"]["ms"] / 1e3
        steps, tiny_steps = (3, 20) if small else (20, 300)
        highest, growth = peak(memory_of_training, small, steps)
        tiny_growth = peak(memory_of_training, True, tiny_steps)[1]
        result["checks"] = {
            "loader, CPU ms a batch": 1e3 * loading,
            "loader / CPU time of a bfloat16 step": loading / step,
            "peak memory of training, float32, GB": highest,
            f"growth over {steps} iterations, MB": 1e3 * growth,
            f"growth over {tiny_steps} iterations of the tiny network, MB": 1e3 * tiny_growth,
        }
        return result


def cached(rounds: int, small: bool) -> dict[str, Any]:
    """A step from stored features beside one that computes them: conv5 trained, and fully connected layers only."""
    size = 256 if small else 4096
    checks = {}
    names = {"conv5 trained": None, "fc only": "conv3_2" if small else "conv5_3"}
    with tempfile.TemporaryDirectory() as folder:
        cases, others = {}, {}
        for name, frozen in names.items():
            config = made_config(small, "bfloat16", cached=True)
            config.model.freeze_up_to = frozen or config.model.freeze_up_to
            training = Training(Path(folder), config)
            plain, stored = training.batch(0), training.stored_batch(0)
            losses = [Training(Path(folder), config).step(b)["loss"] for b in (plain, stored)]
            checks[f"{name}: the same loss, bit for bit"] = losses[0] == losses[1]
            others[f"{name}, without"] = partial(training.step, plain)
            cases[f"{name}, from stored features"] = Case(partial(training.step, stored), training.stages, "bfloat16")
        result = measured(rounds, size, cases, others)
    figures = result["cases"]
    for fast, slow in zip(cases, others, strict=True):
        figures[fast]["times as fast as without"] = figures[slow]["ms"] / figures[fast]["ms"]
    return {**result, "checks": checks}
