"""A picture on its way through the detector, beside the assembly: cases, stages and checks to print."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastrcnn
from fastrcnn.detect import ahead
from fastrcnn.detect import detector as detector_module
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model import fast_rcnn, int8_kernels
from fastrcnn.model.roi_features import RoIFeatures, unique_rois
from fastrcnn.proposals.dense import find_proposals

from bench.assembly import Assembly
from bench.made import RANKS, compressed, distinct_proposals, in_int8, made_network, picture
from bench.memory import memory_of_detection, peak, save_made_network
from bench.timing import ASSEMBLY, CPU, Case, Stages, measured


def detect(rounds: int, small: bool, device: torch.device = CPU) -> dict[str, Any]:
    size = 256 if small else 4096
    with tempfile.TemporaryDirectory() as folder:
        path, proposals = picture(Path(folder)), distinct_proposals()
        models = {name: made_network(small, name, path, proposals) for name in ("float32", "bfloat16")}
        svd = "SVD {}/{}".format(*RANKS[small])
        models[f"bfloat16, {svd}"] = compressed(small, "bfloat16", path, proposals)
        if device.type == "cpu" and int8_kernels.works():
            models["int8"] = in_int8(*made_network(small, "bfloat16", path, proposals), path, proposals)
            models[f"int8, {svd}"] = in_int8(*compressed(small, "bfloat16", path, proposals), path, proposals)
        assembly = Assembly(*models["float32"], device).eval()
        detectors = {name: Detector(model, config, device) for name, (model, config) in models.items()}
        compared = compare(detectors["float32"], assembly, path, proposals)
        cases = {name: detection_case(d, path, proposals) for name, d in detectors.items()}
        other = partial(assembly_detect, assembly, detectors["float32"], path, proposals)
        result = measured(rounds, size, cases, {ASSEMBLY: other}, device)
        if device.type != "cpu":
            return {**result, "checks": compared}
        weights = Path(folder) / "model.safetensors"
        peak(save_made_network, small, weights)
        result["checks"] = {
            **compared,
            "peak memory of detection, float32, GB": peak(memory_of_detection, weights, path),
        }
        return result


def own(weights: str, image: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """A user's network on a user's picture; proposals are found once and not timed."""
    detector = fastrcnn.load(weights, str(device))
    pixels = read_image(image)
    proposals = find_proposals(pixels, Path(image).stem, detector.config.proposals)
    name = f"{weights}, {'int8' if detector.model.int8 else detector.model.precision}"
    result = measured(rounds, 4096, {name: detection_case(detector, image, proposals)}, {}, device)
    sides = detector.config.image
    scale = image_scale(pixels.shape[1], pixels.shape[0], sides.test_short_side[0], sides.test_long_side)
    cells = detector.model.cells(detector.model.project(torch.from_numpy(proposals), scale))
    shared = 1 - len(unique_rois(cells)[0]) / len(cells)
    return {**result, "checks": {"proposals": len(proposals), "share that has another's cells": shared}}


def detection_case(detector: Any, image: str | Path, proposals: Any) -> Case:
    def install(stages: Stages) -> None:
        stages.wrap(ahead, "read_image", "decode")
        stages.wrap(detector_module, "prepare_image", "scale")
        for layer in detector.model.backbone:
            stages.hook(layer, "conv")
        stages.wrap(RoIFeatures, "pool_for_inference", "RoI pool")
        stages.wrap(fast_rcnn, "warp", "warp")
        for stage in detector.model.fc_layers or ("conv5",):
            stages.hook(getattr(detector.model, stage), stage)
        for layer in (detector.model.cls_score, detector.model.bbox_pred):
            stages.hook(layer, "siblings")
        stages.wrap(detector_module, "select_detections", "NMS")

    precision = "int8" if detector.model.int8 else detector.model.precision
    return Case(partial(detector.detect, image, proposals), install, precision)


def assembly_detect(assembly: Any, detector: Any, path: Path, proposals: Any) -> Any:
    """The assembly on the same file: our decoding and resizing, its network."""
    pixels, sides = read_image(path), detector.config.image
    scale = image_scale(pixels.shape[1], pixels.shape[0], sides.test_short_side[0], sides.test_long_side)
    normalisation = detector.model.normalisation
    image = prepare_image(pixels, scale, normalisation.mean, normalisation.std).contiguous().to(assembly.device)
    assembly.place([torch.from_numpy(proposals)], scale)
    with torch.inference_mode():
        return assembly.detect(image, scale)


def compare(detector: Any, assembly: Any, path: Path, proposals: Any) -> dict[str, Any]:
    """Both must find the same: same number, class by class one to one, boxes (pixels) and scores within 1e-3; on a GPU,
    whose sums are in another order, 0.1."""
    found = detector.detect(path, proposals)
    boxes, classes, scores = (part.cpu() for part in assembly_detect(assembly, detector, path, proposals))
    limit = 1e-3 if detector.device.type == "cpu" else 0.1
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
    if len(found.scores) != len(scores) or left or max(furthest) > limit:
        raise FastRCNNError(
            f"the assembly finds {len(scores)} objects, we find {len(found.scores)}; furthest {max(furthest)}: "
            "times of different things say nothing"
        )
    return {"detections, the same in both": len(scores), "furthest apart (pixels, scores)": max(furthest)}
