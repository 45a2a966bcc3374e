"""Pictures, proposals and networks to measure on, made on the spot: for bench.py."""

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from fastrcnn import config as configs
from fastrcnn.annotations.records import make_record
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import to_int8
from fastrcnn.config import Config
from fastrcnn.data.image_set import ImageSet
from fastrcnn.data.loader import Batch, BatchDataset
from fastrcnn.data.shapes import draw_image
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model.fast_rcnn import FastRCNN, factors, rms
from fastrcnn.model.roi_features import RoIFeatures, project, roi_cells, unique_rois
from fastrcnn.model.weights import build
from fastrcnn.train import step
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.solver import make_optimizer

from bench.timing import CPU, Stages

WIDTH, HEIGHT, PROPOSALS = 500, 375, 2000


def picture(folder: Path, index: int = 1) -> Path:
    """A JPEG of made shapes, enlarged to VOC's most frequent size."""
    image = cv2.resize(draw_image(3, index)[0], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    path = folder / f"{index:06d}.jpg"
    cv2.imwrite(str(path), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path


def distinct_proposals(short_side: int = 600, stride: int = 16, count: int = PROPOSALS) -> np.ndarray:
    """2,000 boxes [P, 4] of which no two share their cells, so that nothing is left out of the arithmetic."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, (WIDTH - 40, HEIGHT - 40), (4 * count, 2))
    size = np.exp(rng.uniform(np.log(30), np.log(360), (4 * count, 2)))
    boxes = np.hstack((corner, np.minimum(corner + size, (WIDTH, HEIGHT)).round())).astype(np.float32)
    cells = roi_cells(project(torch.from_numpy(boxes), short_side / HEIGHT), 1 / stride)
    return boxes[np.sort(unique_rois(cells)[0].numpy())][:count]


# The paper's models, as configs/paper/table4_S.yaml and table4_M.yaml have them.
SMALLER: dict[str, dict[str, Any]] = {
    "S": {"backbone": "caffenet", "freeze_up_to": "conv1", "pool_size": 6},
    "M": {"backbone": "vgg_cnn_m_1024", "freeze_up_to": "conv1", "pool_size": 6, "fc_width": [4096, 1024]},
}


def made_config(
    small: bool, precision: str, cached: bool = False, roi_features: str = "roi_pool", network: str = "L"
) -> Config:
    """A model of the paper with its settings and 20 classes; `cached`: those of voc07_cpu.yaml; `small`: the tiny
    network."""
    side, width = (400, 1024) if cached else (600, 4096)
    model: dict[str, Any] = {
        "backbone": "tiny" if small else "vgg16",
        "weights": "",
        "fc_width": 64 if small else width,
        "roi_features": roi_features,
    }
    model["freeze_up_to"] = ("conv3_1" if small else "conv4_3") if cached else ("conv1" if small else "conv2_2")
    if cached:
        model["dropout"] = 0.0
    if not small:
        model |= SMALLER.get(network, {})
    image = {"train_short_side": [side], "test_short_side": [side]}
    classes = [f"class {k}" for k in range(1, 21)]
    return configs.from_dict({"classes": classes, "model": model, "image": image, "precision": precision})


def made_network(
    small: bool, precision: str, path: Path, proposals: np.ndarray, roi_features: str = "roi_pool", network: str = "L"
) -> tuple[FastRCNN, Config]:
    """Random weights that behave like trained ones: the same for both precisions."""
    config = made_config(small, precision, roi_features=roi_features, network=network)
    return calibrate(build(config).eval(), config, path, proposals), config


RANKS = {False: (1024, 256), True: (16, 8)}  # of fc6 and fc7 after SVD: the paper's, and small ones


def compressed(
    small: bool, precision: str, path: Path, proposals: np.ndarray, network: str = "L"
) -> tuple[FastRCNN, Config]:
    """The same with fc6 and fc7 in two factors each, whose weights are made: only the arithmetic counts."""
    model, config = made_network(small, precision, path, proposals, network=network)
    for name, rank in zip(("fc6", "fc7"), RANKS[small], strict=True):
        setattr(model, name, factors(getattr(model, name), rank))
    return calibrate(model, config, path, proposals), config


def in_int8(model: FastRCNN, config: Config, path: Path, proposals: np.ndarray) -> tuple[FastRCNN, Config]:
    """The same in int8, its activations measured on the picture itself."""
    record = make_record(path.stem, path, WIDTH, HEIGHT, [], None)
    to_int8(model, config, ImageSet([record], {path.stem: proposals}))
    return model, config


CANDIDATES = 1000  # scores above the threshold; trained networks have some hundreds to thousands


def calibrate(model: FastRCNN, config: Config, path: Path, proposals: np.ndarray) -> FastRCNN:
    """Scale the layers so that RoIs differ, and the background's bias so that as many as CANDIDATES pass."""
    rois = torch.from_numpy(proposals[::8])
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    scale = image_scale(width, height, config.image.test_short_side[0], config.image.test_long_side)
    image = prepare_image(pixels, scale, model.normalisation.mean, model.normalisation.std)
    precision, model.precision = model.precision, "float32"  # the same numbers for both
    with torch.no_grad():
        pooled = model.pool(model.features([image]), [model.project(rois, scale)]).flatten(1)
        if isinstance(model.fc6, nn.Linear):
            step.scaled_start(model, pooled)
        else:
            model.fc7.U.weight /= rms(model.fully_connected(pooled))
        scores, deltas = model.siblings(model.fully_connected(pooled))
        model.cls_score.weight *= 2 / scores.std(dim=0)[:, None]
        model.bbox_pred.weight *= 0.1 / deltas.std()
        scores, deltas = model.siblings(model.fully_connected(pooled))
        model.cls_score.bias.sub_(scores.mean(dim=0))
        model.bbox_pred.bias.sub_(deltas.mean(dim=0))
        scores -= scores.mean(dim=0)
        low, high = 0.0, 30.0
        for _ in range(30):
            middle = (low + high) / 2
            shifted = scores.clone()
            shifted[:, 0] += middle
            passing = int((shifted.softmax(dim=1)[:, 1:] > config.test.score_threshold).sum()) * 8
            low, high = (middle, high) if passing > CANDIDATES else (low, middle)
        model.cls_score.bias[0] += low
    model.precision = precision
    return model


class Training:
    """What train() sets up before its first iteration, on two made pictures."""

    def __init__(self, folder: Path, config: Config, device: torch.device = CPU):
        self.config, self.folder = config, folder
        proposals = distinct_proposals()
        objects = [(box, number, False) for number, box in enumerate(proposals[:4], start=1)]
        self.records = [make_record(str(i), picture(folder, i), WIDTH, HEIGHT, objects, None) for i in (1, 2)]
        self.model = build(config).to(device).train()
        self.optimizer = make_optimizer(self.model, config.solver)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-6  # the same work each time
        classes = self.model.num_classes
        self.statistics = TargetStatistics(torch.zeros(classes, 4), torch.ones(classes, 4)).to(device)
        pixels = self.model.normalisation
        self.dataset = BatchDataset(
            ImageSet(self.records, {"1": proposals, "2": proposals}), config, pixels.mean, pixels.std
        )

    def batch(self, iteration: int) -> Batch:
        return self.dataset.batch(iteration)

    def stored_batch(self, iteration: int) -> Batch:
        self.config.feature_cache = str(self.folder / "features")
        cache = FeatureCache(self.records, self.config, self.model)
        cache.make(self.model, torch.device("cpu"), threading.Event())
        self.dataset.frozen_features = cache.features
        return self.dataset.batch(iteration)

    def step(self, batch: Batch) -> dict[str, float]:
        return step.train_step(self.model, self.optimizer, batch, self.statistics, self.config)

    def loading(self, batches: int = 20) -> float:
        """CPU seconds that a loader process needs for a batch."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        started = time.process_time()
        for iteration in range(batches):
            self.batch(iteration)
        seconds = (time.process_time() - started) / batches
        torch.set_num_threads(threads)
        return seconds

    def stages(self, stages: Stages) -> None:
        learning = "backward"
        for i, layer in enumerate(self.model.backbone):
            stages.hook(layer, "frozen conv" if i < self.model.frozen_depth else "conv", learning)
        stages.wrap(RoIFeatures, "pool", "RoI pool")
        for stage in self.model.fc_layers or ("conv5",):
            stages.hook(getattr(self.model, stage), stage, learning)
        for layer in (self.model.cls_score, self.model.bbox_pred):
            stages.hook(layer, "siblings", learning)
        stages.wrap(step, "multi_task_loss", "losses")
        stages.wrap(torch.Tensor, "backward", learning)
        stages.wrap(step, "gradient_norm", "gradient norm")
        stages.wrap(self.optimizer, "step", "SGD")
