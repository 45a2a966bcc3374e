"""Smaller, faster weights for detection: truncated SVD of fc6 and fc7 (section 3.1), and int8."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from fastrcnn import config as configs
from fastrcnn.annotations.records import class_index
from fastrcnn.config import Config
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import refuse_overwrite
from fastrcnn.images import read_image
from fastrcnn.model import int8, svd
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.ranges import Activation, watching
from fastrcnn.model.weights import load_model, weights_file, write_model

log = logging.getLogger(__name__)

PICTURES = 300  # that activations are measured on: a few hundred


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
        step.fill_(int8.step_of(name, largest[name]))


def measure(detector: Detector, images: ImageSet) -> dict[str, float]:
    """How large each activation is (model/ranges.py), by the names of int8.steps, of a network not yet in int8."""
    model, layers = detector.model, detector.model.backbone.named_children()
    watched = {f"backbone.{name}": Activation(layer) for name, layer in layers if isinstance(layer, nn.Conv2d)}
    for name in model.fc_layers:
        layer = getattr(model, name)
        if isinstance(layer, nn.Sequential):
            watched[f"{name}.V"] = Activation(layer[0], signed=True)
        if name != model.fc_layers[-1]:
            watched[f"{name}.U" if isinstance(layer, nn.Sequential) else name] = Activation(layer)
    if model.merge is not None:
        watched["merge"] = Activation(model.fc6, signed=True, taken=True)
    with watching(watched) as largest:
        for record, proposals in tqdm(images, "measuring activations", unit="image", mininterval=1):
            with torch.inference_mode():
                detector.classify(read_image(record.path), torch.from_numpy(proposals))
    return largest
