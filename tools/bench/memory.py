"""Memory, each time measured in a process of its own."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastrcnn
from fastrcnn.boxes import TargetStatistics
from fastrcnn.model.weights import build, save_weights

from _common import keep_memory
from bench.made import Training, distinct_proposals, made_config


def peak(work: Callable, *args: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def memory(kind: str, process: int | str = "self") -> float:
    """Resident memory of a process in GB: `VmRSS` now, `VmHWM` its peak, `RssAnon` without the pages of files that
    processes share. (getrusage may give the parent's peak.)"""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(kind)) / 1e6


def memory_of_detection(weights: Path, path: Path) -> float:
    """As a user does it: from a weights file, peak GB of the process."""
    keep_memory()
    detector, proposals = fastrcnn.load(weights, "cpu"), distinct_proposals()
    for _ in range(3):
        detector.detect(path, proposals)
    return memory("VmHWM")


def save_made_network(small: bool, weights: Path) -> None:
    config = made_config(small, "float32")
    classes = len(config.classes) + 1
    save_weights(weights, build(config), config, TargetStatistics(torch.zeros(classes, 4), torch.ones(classes, 4)))


def memory_of_training(small: bool, iterations: int) -> tuple[float, float]:
    """Peak GB, and by how many GB memory grew after the first third of the iterations."""
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder), made_config(small, "float32"))
        early = 0.0
        for iteration in range(iterations):
            training.step(training.batch(iteration))
            if iteration == iterations // 3:
                early = memory("VmRSS")
        return memory("VmHWM"), memory("VmRSS") - early
