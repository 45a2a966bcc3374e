"""The parts that are not arithmetic of layers, one by one: cases and checks to print."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms, roi_pool

from fastrcnn.annotations.records import make_record
from fastrcnn.config import ModelConfig, ProposalsConfig
from fastrcnn.detect.nms import select_detections
from fastrcnn.evaluate.coco import evaluate_coco
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import evaluate
from fastrcnn.model.roi_features import RoIFeatures, project
from fastrcnn.proposals.make import make_proposals

from bench.made import HEIGHT, WIDTH, distinct_proposals, picture
from bench.memory import peak, save_made_network
from bench.timing import CPU, medians

TOOLS = Path(__file__).resolve().parent.parent


def pooling(rounds: int, small: bool, device: torch.device = CPU) -> dict[str, Any]:
    channels = 32 if small else 512
    feature = torch.randn(channels, 38, 50, device=device).relu().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    rois = project(torch.from_numpy(distinct_proposals()).to(device), 600 / HEIGHT)
    maps = {"float32": feature, "bfloat16": feature.bfloat16()}
    layer = RoIFeatures(ModelConfig(), stride=16, offset=7.5)
    default = {name: m.float()[None].contiguous() for name, m in maps.items()}

    def run_through(m: Tensor) -> None:
        for _ in layer.pool_for_inference([m], [rois]):
            pass

    def of_torchvision(m: Tensor) -> Tensor:
        return roi_pool(m.float()[None].contiguous(), [rois], 7, 1 / 16)

    cases: dict[str, Callable[[], object]] = {}
    checks = {}
    for name, m in maps.items():
        ours = torch.cat([chunk.clone() for chunk in layer.pool_for_inference([m], [rois])])
        theirs = roi_pool(default[name], [rois], 7, 1 / 16).permute(0, 2, 3, 1).flatten(1)
        checks[f"{name}: the same bits"] = torch.equal(ours.float(), theirs)
        cases[name] = partial(run_through, m)
        cases[f"torchvision, {name}"] = partial(of_torchvision, m)
    seconds = medians(rounds, cases)
    figures = {
        name: {"ms": 1e3 * s} | ({"times as fast": seconds[f"torchvision, {name}"] / s} if name in maps else {})
        for name, s in seconds.items()
    }
    return {"cases": figures, "checks": checks}


def suppression(rounds: int, small: bool, device: torch.device = CPU) -> dict[str, Any]:
    def loop(scores: Tensor, boxes: Tensor) -> int:
        """A class at a time, as ports do."""
        kept = []
        for k in range(1, 21):
            rows = (scores[:, k] > 0.05).nonzero().squeeze(1)
            rows = rows[nms(boxes[rows, k], scores[rows, k], 0.3)]
            kept.append(scores[rows, k])
        return len(torch.cat(kept).sort(descending=True).values[:100])

    cases: dict[str, Callable[[], object]] = {}
    proposals = torch.from_numpy(distinct_proposals())
    for wanted in (300, 1000) if small else (300, 1000, 3000, 10000):
        noise = torch.Generator().manual_seed(0)
        scores = torch.rand(len(proposals), 21, generator=noise)
        scores *= 0.05 / scores.flatten().sort(descending=True).values[wanted * 21 // 20]
        boxes = proposals[:, None] + 5 * torch.randn(len(proposals), 21, 4, generator=noise)
        scores, boxes = scores.to(device), boxes.to(device)
        cases[f"{wanted} candidates"] = partial(select_detections, scores, boxes, 0.05, 0.3, 100)
        cases[f"{wanted} candidates, a class at a time"] = partial(loop, scores, boxes)
    seconds = medians(rounds, cases)
    figures: dict[str, Any] = {}
    for name, s in seconds.items():
        figures[name] = {"ms": 1e3 * s}
        if f"{name}, a class at a time" in seconds:
            figures[name]["times as fast"] = seconds[f"{name}, a class at a time"] / s
    return {"cases": figures}


def evaluation(rounds: int, small: bool) -> dict[str, Any]:
    """VOC AP on as many images as VOC 2007 test has, 100 detections each, beside pycocotools on the same rows."""
    images = 50 if small else 4952
    rng = np.random.default_rng(0)

    def rows(each: int) -> tuple:
        corner = rng.uniform(0, 300, (images * each, 2))
        boxes = np.hstack((corner, corner + rng.uniform(20, 200, corner.shape))).astype(np.float32)
        return np.repeat(np.arange(images), each), rng.integers(1, 21, images * each), boxes

    where, classes, boxes = rows(3)
    truth = ObjectRows(where, classes, boxes, rng.random(len(where)) < 0.1)
    where, classes, boxes = rows(100)
    boxes[::4], classes[::4] = truth.boxes[where[::4] * 3] + 5, truth.classes[where[::4] * 3]
    found = DetectionRows(where, classes, rng.random(len(where)).astype(np.float32), boxes)
    other = "pycocotools, which scores ten IoU thresholds and three sizes"
    cases = {"ours": lambda: evaluate(found, truth, 21), other: lambda: evaluate_coco(found, truth, 21)}
    seconds = medians(min(rounds, 3), cases)
    return {"cases": {name: {"ms": 1e3 * s, "times as fast": seconds[other] / s} for name, s in seconds.items()}}


def proposals(rounds: int, small: bool) -> dict[str, Any]:
    """Selective search of made pictures on one process and on two; processes are started within the time."""
    count = 2 if small else 60
    with tempfile.TemporaryDirectory() as folder:
        paths = {str(i): picture(Path(folder), i) for i in range(1, count + 1)}
        records = [make_record(i, path, WIDTH, HEIGHT, [], None) for i, path in paths.items()]

        def search(processes: int) -> None:
            path = Path(folder) / "proposals.safetensors"
            path.unlink(missing_ok=True)
            make_proposals(records, path, ProposalsConfig(), processes)

        seconds = medians(min(rounds, 3), {"1 process": lambda: search(1), "2 processes": lambda: search(2)})
    figures = {name: {"ms": 1e3 * s / count, "times as fast": seconds["1 process"] / s} for name, s in seconds.items()}
    return {"cases": figures, "checks": {"pictures": count, "unit": "ms a picture"}}


FIRST_LAYER = """
import sys, fastrcnn
detector = fastrcnn.load(sys.argv[1], "cpu")
def stop(*_):
    import os
    os._exit(0)
detector.model.backbone[0].register_forward_pre_hook(stop)
import numpy as np
detector.detect(sys.argv[2], np.array([[0, 0, 50, 50]], np.float32))
"""


def start(rounds: int, small: bool) -> dict[str, Any]:
    """From the start of the process: the help of tools/detect.py, and a picture's way to the first layer."""
    with tempfile.TemporaryDirectory() as folder:
        weights, path = Path(folder) / "model.safetensors", picture(Path(folder))
        peak(save_made_network, True, weights)
        commands = {
            "import torch, torchvision": ["-c", "import torch, torchvision"],
            "detect.py --help": [str(TOOLS / "detect.py"), "--help"],
            "to the first layer": ["-c", FIRST_LAYER, str(weights), str(path)],
        }

        def launch(words: list[str]) -> None:
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

        seconds = medians(rounds, {name: partial(launch, words) for name, words in commands.items()})
    base = seconds["import torch, torchvision"]
    return {"cases": {name: {"ms": 1e3 * s, "times the import": s / base} for name, s in seconds.items()}}
