"""Smaller, faster weights for detection: truncated SVD of fc6 and fc7 (section 3.1), and int8."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrcnn import config as configs
from fastrcnn.annotations.records import class_index
from fastrcnn.config import Config
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import refuse_overwrite
from fastrcnn.images import read_image
from fastrcnn.model import int8, int8_kernels, svd
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.weights import load_model, weights_file, write_model

log = logging.getLogger(__name__)

PICTURES = 300  # that activations are measured on: a few hundred
SHARE = 0.99995  # of an activation's numbers that get a step of their own, the rest is cut off to the last one


@dataclass(frozen=True)
class Compressed:
    """What compress_weights did."""

    layers: list[svd.Compression]
    pictures: int | None  # that activations were measured on, for int8


def compress_weights(
    source: str | Path,
    target: str | Path,
    ranks: dict[str, int],
    measured_on: Config | None = None,
    pictures: int = PICTURES,
) -> Compressed:
    """Write a weights file with fc6 and fc7 compressed to `ranks` ({"fc6": 1024, "fc7": 256}; 0 leaves a layer), and
    then, if a configuration is given, all in int8, its activations measured on `pictures` of its data.train.

    Score thresholds are not taken over. Raises FastRCNNError for a file that is no weights file or is in int8 already,
    for ranks that do not fit, for networks without a form in int8, for pictures of other classes, and for a target that
    is one of the files read.
    """
    sets = (measured_on.data.train if measured_on else None) or []
    refuse_overwrite([weights_file(source), *(each.proposals for each in sets if each.proposals)], [target])
    model, config = load_model(source)
    images = None
    if measured_on is not None:
        if reason := int8.refusal(model):
            raise FastRCNNError(f"{source}: has no form in int8: {reason}")
        images = _pictures(measured_on, config, pictures)
    layers = svd.compress(model, ranks, source)
    if images is not None:
        to_int8(model, config, images)
    if model.score_thresholds:
        log.info(
            "%s: has no score thresholds: those of %s are of the whole network; measure them with tools/test.py",
            target,
            source,
        )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "feature_scale"}
    count = None if images is None else len(images)
    write_model(target, tensors, configs.to_dict(config), model.normalisation, 1.0, svms=model.svms, int8=count)
    return Compressed(layers, count)


def _pictures(given: Config, trained: Config, count: int) -> ImageSet:
    """`count` of the pictures of data.train, evenly spread, with their proposals."""
    if list(class_index(given.classes)) != list(class_index(trained.classes)):
        raise FastRCNNError(
            f"--int8: the configuration has the classes {', '.join(given.classes)}, the weights "
            f"{', '.join(trained.classes)}; give the configuration of the training run"
        )
    if count < 1:
        raise FastRCNNError(f"--pictures is {count}; int8 needs at least one picture to be measured on")
    if not given.data.train:
        raise FastRCNNError("--int8: data.train of the configuration names no pictures to measure activations on")
    images = open_data(given.data.train, given)
    if not len(images):
        raise FastRCNNError("--int8: data.train of the configuration holds no pictures to measure activations on")
    step = max(len(images) / count, 1)
    records = [images.records[int(i * step)] for i in range(min(count, len(images)))]
    return ImageSet(records, images.proposals)


def to_int8(model: FastRCNN, config: Config, images: ImageSet) -> None:
    """Put a network in int8, in its place, its activations measured on images with the detector that it makes."""
    largest = measure(Detector(model, config, torch.device("cpu")), images)
    int8.convert(model)
    for name, step in int8.steps(model).items():
        step.fill_(largest[name] / (int8_kernels.MIDDLE - 1 if int8.signed(name) else int8_kernels.LARGEST))


def measure(detector: Detector, images: ImageSet) -> dict[str, float]:
    """The magnitude that SHARE of the numbers of each activation are below, of a network that is not in int8 yet.

    Activations have the names of int8.steps; of those with a ReLU only what is above 0 counts as a magnitude.
    """
    model, seen, handles = detector.model, dict[str, Histogram](), []

    def watch(layer: nn.Module, name: str, before: bool = False) -> None:
        seen[name] = Histogram()
        add = partial(_add, seen[name], int8.signed(name))
        handles.append(
            layer.register_forward_pre_hook(lambda _, given: add(given[0]))
            if before
            else layer.register_forward_hook(lambda _, given, output: add(output))
        )

    for name, layer in model.backbone.named_children():
        if isinstance(layer, nn.Conv2d):
            watch(layer, f"backbone.{name}")
    for name in model.fc_layers:
        layer = getattr(model, name)
        if isinstance(layer, nn.Sequential):
            watch(layer[0], f"{name}.V")
        if name != model.fc_layers[-1]:
            watch(layer, f"{name}.U" if isinstance(layer, nn.Sequential) else name)
    if model.merge is not None:
        watch(model.fc6, "merge", before=True)
    try:
        for record, proposals in tqdm(images, "measuring activations", unit="image", mininterval=1):
            with torch.inference_mode():
                detector.classify(read_image(record.path), torch.from_numpy(proposals))
    finally:
        for handle in handles:
            handle.remove()
    return {name: histogram.quantile(SHARE) for name, histogram in seen.items()}


def _add(histogram: "Histogram", signed: bool, values: Tensor) -> None:
    histogram.add(values.float().abs() if signed else values.float().clamp(min=0))


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
