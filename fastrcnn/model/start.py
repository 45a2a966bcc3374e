"""What training starts from: ImageNet's convolutions, and fc6 and fc7 where they fit, or an earlier run."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.errors import FastRCNNError
from fastrcnn.model import torchvision_weights
from fastrcnn.model.backbones import NORMALISATIONS, Normalisation
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.weights import FORMAT, INT8, START, for_detection, header, other_file, read_network, stored_pixels

log = logging.getLogger(__name__)


@torch.no_grad()
def initialise(model: FastRCNN, config: Config) -> set[str]:
    """Give the model the weights that config.model.weights names, and their normalisation of pixels.

    Returns the names of the layers that were loaded. fc6 and fc7, if not among them, wait for step.scaled_start;
    cls_score and bbox_pred keep the start of models/VGG16/train.prototxt (N(0, 0.01) and N(0, 0.001), biases 0) unless
    they come from an earlier run with the same class list: that bbox_pred waits for unfold_statistics. Raises
    FastRCNNError for weights that cannot be had or do not fit.
    """
    name, known = config.model.weights, torchvision_weights.KNOWN.get(config.model.backbone)
    stated = NORMALISATIONS.get(config.model.normalisation)
    if not name:
        model.normalisation = stated or NORMALISATIONS["torchvision"]
        return set()
    if known and name in known.__members__:
        tensors, normalisation = torchvision_weights.fetch(known[name])
        return load_start(model, torchvision_weights.renamed(model, tensors), stated or normalisation, name)
    if lacking := what_to_fetch(config):
        raise FastRCNNError(lacking)
    path, tensors, metadata = read_network(name)
    if INT8 in metadata:
        raise FastRCNNError(f"model.weights: {for_detection(path)}")
    if metadata.get("format") == FORMAT:
        return load_own_run(model, tensors, metadata, config, str(path))
    if metadata.get("format") == START:
        return load_start(model, tensors, stated or stored_pixels(metadata, name), name)
    if not torchvision_weights.has_its_keys(tensors):
        raise FastRCNNError(f"model.weights: {other_file(path, tensors, metadata)}")
    if stated is None:
        raise FastRCNNError(
            f"{name}: does not say how pixels are normalised; set model.normalisation to caffe (mean subtracted, no "
            "division) or torchvision (mean and std)"
        )
    return load_start(model, torchvision_weights.renamed(model, tensors), stated, name)


def what_to_fetch(config: Config) -> str | None:
    """Where model.weights names what is not there: a sentence that says so, and where it comes from."""
    name, known = config.model.weights, torchvision_weights.KNOWN.get(config.model.backbone)
    if not name or (known and name in known.__members__) or Path(name).exists():
        return None
    if name.endswith(".safetensors"):
        return (
            f"model.weights: {name} is not there; tools/import_weights.py makes it of weights of Caffe: data/README.md"
        )
    if len(Path(name).parts) > 1:
        return f"model.weights: {name} is not there; train that run first"
    return (
        f"model.weights: {name!r} is neither a file, nor a run's folder, nor one of torchvision's for "
        f"{config.model.backbone}: {', '.join(known.__members__) if known else 'it has none'}"
    )


def load_start(model: FastRCNN, tensors: dict[str, Tensor], normalisation: Normalisation, source: str) -> set[str]:
    """Take over an ImageNet network, by our names of its layers; returns the names of the layers loaded.

    IMAGENET1K_FEATURES has no fc layers, or NaN in their place. Raises FastRCNNError for convolutions that do not fit.
    """
    model.normalisation = normalisation
    loaded = _copy_convolutions(model, tensors, source)
    weights = {name: tensors[f"{name}.weight"] for name in model.fc_layers if f"{name}.weight" in tensors}
    if len(weights) < len(model.fc_layers) or not all(torch.isfinite(weight).all() for weight in weights.values()):
        return loaded
    if not _fits(model, tensors, model.config.bins[:1]):
        log.warning("%s: fc6 and fc7 do not fit model.fc_width and the bins of RoIs; they start at random", source)
        return loaded
    for name in weights:
        _copy(getattr(model, name), tensors, name, source)
    return loaded | set(weights)


def _fits(model: FastRCNN, tensors: dict[str, Tensor], bins: list[int]) -> bool:
    """Whether fc6 and fc7, where the network has them, are among the tensors in its sizes; that fc6 takes `bins`, which
    are no others because they are as many: 6x6, 3x3 and 2x2 are 49."""
    if model.fc_layers and bins != model.config.bins:
        return False
    shapes = {f"{name}.weight": getattr(model, name).weight.shape for name in model.fc_layers}
    return all(name in tensors and tensors[name].shape == shape for name, shape in shapes.items())


def load_own_run(
    model: FastRCNN, tensors: dict[str, Tensor], metadata: dict[str, Any], config: Config, source: str
) -> set[str]:
    """Take over an earlier run; returns the names of the layers loaded.

    bbox_pred arrives with its statistics folded in: see unfold_statistics. Raises FastRCNNError for layers that do not
    fit.
    """
    saved, normalisation = header(metadata, source)
    model.normalisation = NORMALISATIONS.get(config.model.normalisation, normalisation)
    loaded = _copy_convolutions(model, tensors, source)
    if not _fits(model, tensors, saved.model.bins):
        log.warning("%s: fc6 and fc7 are compressed or of another size; they start at random", source)
        return loaded
    layers = saved.model.pool_layers if "merge.weight" in tensors else None
    if layers and layers != model.config.pool_layers:
        log.warning("%s: its fc6 takes merged features of %s; fc6 and fc7 start at random", source, ", ".join(layers))
        return loaded
    names = [*model.fc_layers]
    if layers and model.merge is not None:
        model.merge.weight.copy_(tensors["merge.weight"])
        loaded.add("merge")
    if [c.lower() for c in saved.classes] == [c.lower() for c in config.classes]:
        names += ["bbox_pred"] if metadata.get("svms") else ["cls_score", "bbox_pred"]  # no start for softmax
    else:
        log.info("%s: has another class list; cls_score and bbox_pred start at random", source)
    for name in names:
        _copy(getattr(model, name), tensors, name, source)
    trained = config.solver.train_only
    if model.fc_layers and (trained is None or "fc6" in trained):
        model.feature_scale.fill_(float(metadata["feature_scale"]))
        model.fc6.weight /= float(metadata["feature_scale"])
    return loaded | set(names)


def _copy_convolutions(model: FastRCNN, tensors: dict[str, Tensor], source: str) -> set[str]:
    loaded = set()
    for part, layers in (("backbone", model.backbone), ("conv5", model.conv5)):
        for name, layer in layers.named_children():
            if layer.state_dict():
                _copy(layer, tensors, f"{part}.{name}", source)
                loaded.add(name)
    return loaded


def _copy(layer: nn.Module, tensors: dict[str, Tensor], key: str, source: str) -> None:
    for part, target in layer.state_dict().items():
        tensor = tensors.get(f"{key}.{part}")
        if tensor is None or tensor.shape != target.shape:
            found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise FastRCNNError(f"{source}: {key}.{part} is {found}; this network needs {list(target.shape)}")
        target.copy_(tensor)


@torch.no_grad()
def unfold_statistics(model: FastRCNN, statistics: TargetStatistics) -> None:
    """The inverse of what saving does to bbox_pred, so that weights of an earlier run predict normalised targets."""
    mean, std = statistics.mean.flatten(), statistics.std.flatten()
    model.bbox_pred.weight /= std[:, None]
    model.bbox_pred.bias.sub_(mean).div_(std)
