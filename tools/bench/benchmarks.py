"""What bench.py measures, a function for each of its words: (rounds, small) -> cases, stages and checks to print."""

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms, roi_pool

import fastrcnn
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import ProposalsConfig
from fastrcnn.detect import detector as detector_module
from fastrcnn.detect.detector import Detector
from fastrcnn.detect.nms import select_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import evaluate
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model.fast_rcnn import factors
from fastrcnn.model.roi_features import pool_for_inference, project, roi_cells, unique_rois
from fastrcnn.model.weights import build, save_weights
from fastrcnn.proposals.make import make_proposals
from fastrcnn.proposals.selective_search import selective_search

from bench.assembly import Assembly
from bench.made import HEIGHT, WIDTH, Training, calibrate, distinct_proposals, made_config, made_network, picture
from bench.timing import Stages, case, medians, products, rates, staged

TOOLS = Path(__file__).resolve().parent.parent

# ---- detection


def detect(rounds: int, small: bool) -> dict[str, Any]:
    size = 256 if small else 4096
    with tempfile.TemporaryDirectory() as folder:
        path, proposals = picture(Path(folder)), distinct_proposals()
        models = {name: made_network(small, name, path, proposals) for name in ("float32", "bfloat16")}
        ranks = (16, 8) if small else (1024, 256)
        svd, config = made_network(small, "bfloat16", path, proposals)
        for name, rank in zip(("fc6", "fc7"), ranks, strict=True):  # of made weights, only the arithmetic counts
            setattr(svd, name, factors(getattr(svd, name), rank))
        models[f"bfloat16, SVD {ranks[0]}/{ranks[1]}"] = calibrate(svd, config, path, proposals), config
        assembly = Assembly(*models["float32"]).eval()
        detectors = {name: Detector(model, config, torch.device("cpu")) for name, (model, config) in models.items()}
        compared = compare(detectors["float32"], assembly, path, proposals)
        cases = {name: lambda d=d: d.detect(path, proposals) for name, d in detectors.items()}
        cases["assembly"] = lambda: assembly_detect(assembly, detectors["float32"], path, proposals)
        seconds = medians(rounds, {**cases, **products(size)})
        rate = rates(seconds, size)
        result: dict[str, Any] = {"rates": rate, "cases": {}, "stages": {}}
        for name, detector in detectors.items():
            precision = name.split(",")[0]
            parts = staged(max(rounds // 2, 1), detection_stages(detector), cases[name], rate[precision])
            result["cases"][name] = case(seconds[name], parts["gflop"], rate[precision], seconds["assembly"])
            result["stages"][name] = parts["stages"]
        result["cases"]["assembly, float32"] = {"ms": 1e3 * seconds["assembly"]}
        weights = Path(folder) / "model.safetensors"
        peak(save_made_network, small, weights)
        result["checks"] = {
            **compared,
            "peak memory of detection, float32, GB": peak(memory_of_detection, weights, path),
        }
        return result


def own(weights: str, image: str, rounds: int) -> dict[str, Any]:
    """A user's network on a user's picture; proposals are found once and not timed."""
    detector = fastrcnn.load(weights, "cpu")
    pixels = read_image(image)
    proposals = selective_search(pixels, Path(image).stem, detector.config.proposals)
    seconds = medians(rounds, {"own": lambda: detector.detect(image, proposals), **products(4096)})
    rate = rates(seconds, 4096)
    precision = detector.model.precision
    parts = staged(rounds, detection_stages(detector), lambda: detector.detect(image, proposals), rate[precision])
    sides = detector.config.image
    scale = image_scale(pixels.shape[1], pixels.shape[0], sides.test_short_side[0], sides.test_long_side)
    cells = roi_cells(project(torch.from_numpy(proposals), scale), 1 / detector.model.stride)
    shared = 1 - len(unique_rois(cells)[0]) / len(cells)
    name = f"{weights}, {precision}"
    return {
        "rates": rate,
        "cases": {name: case(seconds["own"], parts["gflop"], rate[precision], None)},
        "stages": {name: parts["stages"]},
        "checks": {"proposals": len(proposals), "share that has another's cells": shared},
    }


def detection_stages(detector: Any) -> Callable[[Stages], None]:
    def install(stages: Stages) -> None:
        stages.wrap(detector_module, "read_image", "decode")
        stages.wrap(detector_module, "prepare_image", "scale")
        for layer in detector.model.backbone:
            stages.hook(layer, "conv")
        stages.wrap(detector_module, "pool_for_inference", "RoI pool")
        for stage in ("fc6", "fc7"):
            stages.hook(getattr(detector.model, stage), stage)
        for layer in (detector.model.cls_score, detector.model.bbox_pred):
            stages.hook(layer, "siblings")
        stages.wrap(detector_module, "select_detections", "NMS")

    return install


def assembly_detect(assembly: Any, detector: Any, path: Path, proposals: Any) -> Any:
    """The assembly on the same file: our decoding and resizing, its network."""
    pixels, sides = read_image(path), detector.config.image
    scale = image_scale(pixels.shape[1], pixels.shape[0], sides.test_short_side[0], sides.test_long_side)
    normalisation = detector.model.normalisation
    image = prepare_image(pixels, scale, normalisation.mean, normalisation.std).contiguous()
    assembly.place([torch.from_numpy(proposals)], scale)
    with torch.inference_mode():
        return assembly.detect(image, scale)


def compare(detector: Any, assembly: Any, path: Path, proposals: Any) -> dict[str, Any]:
    """Both must find the same: same number, class by class one to one, boxes (pixels) and scores within 1e-3."""
    found = detector.detect(path, proposals)
    boxes, classes, scores = assembly_detect(assembly, detector, path, proposals)
    furthest, left = [0.0], list(range(len(scores)))
    for box, name, score in zip(*map(torch.from_numpy, (found.boxes, found.classes, found.scores)), strict=True):
        far = [
            (max(float((box - boxes[i]).abs().max()), float((score - scores[i]).abs())), i)
            for i in left
            if classes[i] == name
        ]
        if far:
            furthest.append(min(far)[0])
            left.remove(min(far)[1])
    if len(found.scores) != len(scores) or left or max(furthest) > 1e-3:
        raise FastRCNNError(
            f"the assembly finds {len(scores)} objects, we find {len(found.scores)}; furthest {max(furthest)}: "
            "times of different things say nothing"
        )
    return {"detections, the same in both": len(scores), "furthest apart (pixels, scores)": max(furthest)}


# ---- training


def train(rounds: int, small: bool) -> dict[str, Any]:
    size = 256 if small else 4096
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Training(Path(folder), made_config(small, name)) for name in ("float32", "bfloat16")}
        batch = runs["float32"].batch(0)
        assembly = Assembly(runs["float32"].model, runs["float32"].config).train()
        optimizer = torch.optim.SGD([p for p in assembly.parameters() if p.requires_grad], 1e-6, 0.9, weight_decay=5e-4)
        assembly.place(batch.rois, batch.scales[0])
        images = [image.contiguous() for image in batch.images]
        targets = [
            {"boxes": rois[:4] * batch.scales[0], "labels": torch.ones(4, dtype=torch.int64)} for rois in batch.rois
        ]

        def assembly_step() -> None:
            losses = assembly(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

        cases = {name: lambda t=t: t.step(batch) for name, t in runs.items()}
        seconds = medians(rounds, {**cases, "assembly": assembly_step, **products(size)})
        rate = rates(seconds, size)
        result: dict[str, Any] = {"rates": rate, "cases": {}, "stages": {}}
        for name, training in runs.items():
            parts = staged(max(rounds // 2, 1), training.stages, cases[name], rate[name])
            result["cases"][name] = case(seconds[name], parts["gflop"], rate[name], seconds["assembly"])
            result["stages"][name] = parts["stages"]
        result["cases"]["assembly, float32"] = {"ms": 1e3 * seconds["assembly"]}
        loading = runs["float32"].loading()
        step = torch.get_num_threads() * seconds["bfloat16"]
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
    result: dict[str, Any] = {"cases": {}, "stages": {}, "checks": {}}
    names = {"conv5 trained": None, "fc only": "conv3_2" if small else "conv5_3"}
    with tempfile.TemporaryDirectory() as folder:
        cases, runs = {}, {}
        for name, frozen in names.items():
            config = made_config(small, "bfloat16", cached=True)
            config.model.freeze_up_to = frozen or config.model.freeze_up_to
            training = Training(Path(folder), config)
            plain, stored = training.batch(0), training.stored_batch(0)
            losses = [Training(Path(folder), config).step(b)["loss"] for b in (plain, stored)]
            result["checks"][f"{name}: the same loss, bit for bit"] = losses[0] == losses[1]
            runs[name] = training
            cases[f"{name}, plain"] = lambda t=training, b=plain: t.step(b)
            cases[f"{name}, stored"] = lambda t=training, b=stored: t.step(b)
        seconds = medians(rounds, {**cases, **products(size)})
        rate = rates(seconds, size)
        for name, training in runs.items():
            work = cases[f"{name}, stored"]
            parts = staged(max(rounds // 2, 1), training.stages, work, rate["bfloat16"])
            told = case(seconds[f"{name}, stored"], parts["gflop"], rate["bfloat16"], None)
            told["times as fast as without"] = seconds[f"{name}, plain"] / seconds[f"{name}, stored"]
            result["cases"][f"{name}, from stored features"] = told
            result["cases"][f"{name}, without"] = {"ms": 1e3 * seconds[f"{name}, plain"]}
            result["stages"][f"{name}, from stored features"] = parts["stages"]
    return {"rates": rate, **result}


# ---- memory, each in a process of its own


def peak(work: Callable, *args: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def memory(kind: str) -> float:
    """Resident memory of this process in GB: `VmRSS` now, `VmHWM` its peak. (getrusage may give the parent's peak.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(kind)) / 1e6


def memory_of_detection(weights: Path, path: Path) -> float:
    """As a user does it: from a weights file, peak GB of the process."""
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


# ---- the parts


def pooling(rounds: int, small: bool) -> dict[str, Any]:
    channels = 32 if small else 512
    feature = torch.randn(channels, 38, 50).relu().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    rois = project(torch.from_numpy(distinct_proposals()), 600 / HEIGHT)
    maps = {"float32": feature, "bfloat16": feature.bfloat16()}
    default = {name: m.float()[None].contiguous() for name, m in maps.items()}
    cases, checks = {}, {}
    for name, m in maps.items():
        ours = torch.cat([chunk.clone() for chunk in pool_for_inference([m], [rois], 7, 1 / 16)])
        theirs = roi_pool(default[name], [rois], 7, 1 / 16).permute(0, 2, 3, 1).flatten(1)
        checks[f"{name}: the same bits"] = torch.equal(ours.float(), theirs)
        cases[name] = lambda m=m: [None for _ in pool_for_inference([m], [rois], 7, 1 / 16)]
        cases[f"torchvision, {name}"] = lambda m=m: roi_pool(m.float()[None].contiguous(), [rois], 7, 1 / 16)
    seconds = medians(rounds, cases)
    told = {
        name: {"ms": 1e3 * s} | ({"times as fast": seconds[f"torchvision, {name}"] / s} if name in maps else {})
        for name, s in seconds.items()
    }
    return {"cases": told, "checks": checks}


def suppression(rounds: int, small: bool) -> dict[str, Any]:
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
        cases[f"{wanted} candidates"] = lambda s=scores, b=boxes: select_detections(s, b, 0.05, 0.3, 100)
        cases[f"{wanted} candidates, a class at a time"] = lambda s=scores, b=boxes: loop(s, b)
    seconds = medians(rounds, cases)
    told: dict[str, Any] = {}
    for name, s in seconds.items():
        told[name] = {"ms": 1e3 * s}
        if f"{name}, a class at a time" in seconds:
            told[name]["times as fast"] = seconds[f"{name}, a class at a time"] / s
    return {"cases": told}


def evaluation(rounds: int, small: bool) -> dict[str, Any]:
    """VOC AP on as many images as VOC 2007 test has, 100 detections each, beside the loop that the tests trust."""
    sys.path.append(str(TOOLS.parent / "tests"))
    try:
        from oracles_evaluate import voc_ap_oracle
    except ImportError:
        raise FastRCNNError("bench evaluate: the loop to compare with is in tests/; run it from a clone") from None
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
    ours, theirs = evaluate(found, truth, 21).ap, voc_ap_oracle(found, truth, 21)
    cases = {"ours": lambda: evaluate(found, truth, 21), "a loop": lambda: voc_ap_oracle(found, truth, 21)}
    seconds = medians(min(rounds, 3), cases)
    told = {name: {"ms": 1e3 * s, "times as fast": seconds["a loop"] / s} for name, s in seconds.items()}
    return {"cases": told, "checks": {"largest difference of AP": float(np.nanmax(np.abs(ours - theirs)))}}


def proposals(rounds: int, small: bool) -> dict[str, Any]:
    """Selective search of made pictures on one process and on two; processes are started within the time."""
    count = 2 if small else 60
    with tempfile.TemporaryDirectory() as folder:
        records = [
            SimpleNamespace(id=f"{i}", path=picture(Path(folder), i), width=WIDTH, height=HEIGHT)
            for i in range(1, count + 1)
        ]

        def search(processes: int) -> None:
            path = Path(folder) / "proposals.safetensors"
            path.unlink(missing_ok=True)
            make_proposals(records, path, ProposalsConfig(), processes)

        seconds = medians(min(rounds, 3), {"1 process": lambda: search(1), "2 processes": lambda: search(2)})
    told = {name: {"ms": 1e3 * s / count, "times as fast": seconds["1 process"] / s} for name, s in seconds.items()}
    return {"cases": told, "checks": {"pictures": count, "unit": "ms a picture"}}


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

        seconds = medians(rounds, {name: lambda w=words: launch(w) for name, words in commands.items()})
    base = seconds["import torch, torchvision"]
    return {"cases": {name: {"ms": 1e3 * s, "times the import": s / base} for name, s in seconds.items()}}
