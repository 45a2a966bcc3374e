"""Weights in and out: ImageNet's to start from, and files that alone are enough to detect.

A weights file holds the network as it is used: the statistics of the regression targets folded into bbox_pred, the
feature scale folded into fc6; its metadata holds the class list, the configuration and the normalisation of pixels.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors, write_tensors
from fastrcnn.model import checkpoint_file, int8, score_thresholds, torchvision_weights
from fastrcnn.model.backbones import NORMALISATIONS, Normalisation
from fastrcnn.model.fast_rcnn import FastRCNN, factors
from fastrcnn.model.score_thresholds import ScoreThresholds

log = logging.getLogger(__name__)

FORMAT = "fastrcnn weights 1"
INT8 = "int8"  # in the metadata of weights in int8: the pictures by which activations were measured
START = "fastrcnn start 1"  # convolutions, fc6 and fc7 to train from, which tools/import_weights.py writes
WEIGHTS = "model.safetensors"  # in a run's folder, at its end
BEST = "best.safetensors"  # there too, by train.eval_every
PICKLES = (".pth", ".pt", ".pkl", ".ckpt", ".bin")


def build(config: Config) -> FastRCNN:
    """The network of a configuration at random weights drawn from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return FastRCNN(config.model, len(config.classes) + 1, config.precision)


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
        raise FastRCNNError(f"model.weights: {_for_detection(path)}")
    if metadata.get("format") == FORMAT:
        return load_own_run(model, tensors, metadata, config, str(path))
    if metadata.get("format") == START:
        return load_start(model, tensors, stated or _normalisation(metadata, name), name)
    if not torchvision_weights.has_its_keys(tensors):
        raise FastRCNNError(f"model.weights: {_other_file(path, tensors, metadata)}")
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
    saved, normalisation = _header(metadata, source)
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


def fold(state: dict[str, Tensor], statistics: TargetStatistics) -> tuple[dict[str, Tensor], float]:
    """A network in training, as its state_dict -> as it is used, and the feature scale that is now in its fc6.

    fast-rcnn folds the statistics in at each snapshot, as we do (lib/fast_rcnn/train.py).
    """
    tensors = {name: tensor.detach() for name, tensor in state.items() if name != "feature_scale"}
    mean, std = statistics.mean.cpu().flatten(), statistics.std.cpu().flatten()
    tensors["bbox_pred.weight"] = tensors["bbox_pred.weight"].cpu() * std[:, None]
    tensors["bbox_pred.bias"] = tensors["bbox_pred.bias"].cpu() * std + mean
    if "fc6.weight" in tensors:  # conv5 takes features as they are
        tensors["fc6.weight"] = tensors["fc6.weight"] * state["feature_scale"]
    return tensors, float(state["feature_scale"])


def save_weights(
    path: str | Path,
    model: FastRCNN,
    config: Config,
    statistics: TargetStatistics,
    training: dict[str, Any] | None = None,
) -> None:
    """Write the network as it is used to one file; the model itself is unchanged.

    `training` says of which iteration the weights are, and what mAP they had. Raises FastRCNNError when it cannot be
    written, NotFiniteError when its numbers are not finite.
    """
    tensors, feature_scale = fold(model.state_dict(), statistics)
    metadata = _metadata(configs.to_dict(config), model.normalisation, feature_scale)
    write_tensors(path, tensors, metadata | ({"training": training} if training else {}))


def write_model(
    path: str | Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    normalisation: Normalisation,
    feature_scale: float,
    **more: Any,
) -> None:
    """Write folded tensors with the metadata of a weights file; `config` as config.to_dict gives it. `more` may have
    svms, that cls_score holds SVMs, and int8; what is None, empty or False is left out."""
    about = {name: value for name, value in more.items() if value}
    write_tensors(path, tensors, _metadata(config, normalisation, feature_scale) | about)


def write_start(path: str | Path, tensors: dict[str, Tensor], normalisation: Normalisation) -> None:
    """Write layers for load_start: convolutions as backbone.conv1_1.weight, fc6.weight, fc7.weight, all with biases."""
    write_tensors(path, tensors, _metadata({}, normalisation, 1.0) | {"format": START})


def _metadata(config: dict[str, Any], normalisation: Normalisation, feature_scale: float) -> dict[str, Any]:
    pixels = {"mean": normalisation.mean, "deviation": normalisation.std}  # deviation: the key of old files
    return {"format": FORMAT, "config": config, "normalisation": pixels, "feature_scale": feature_scale}


def weights_file(path: str | Path) -> Path:
    """The file that is meant: of a run's folder model.safetensors, or its newest checkpoint while it is not finished.
    (best.safetensors is meant only where it is named.)

    Raises FastRCNNError for a folder without either, and for files of torch.save, which can run code when read.
    """
    path = Path(path)
    if path.is_dir():
        found = [*sorted(path.glob("checkpoint_*.safetensors")), *path.glob(WEIGHTS)]
        if not found:
            raise FastRCNNError(f"{path}: is a folder without {WEIGHTS} or checkpoints; name a weights file or a run")
        return found[-1]
    if path.suffix.lower() in PICKLES and path.exists():
        raise FastRCNNError(
            f"{path}: is a file of torch.save, which can run code when it is read; convert it to .safetensors"
        )
    return path


def read_network(path: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The file that is meant, its tensors and metadata; a checkpoint's are folded, and are then those of weights.

    Raises FastRCNNError for an ONNX file, and as weights_file, read_tensors and checkpoint_file.unpack do.
    """
    path = weights_file(path)
    if path.suffix.lower() == ".onnx":
        raise FastRCNNError(f"{path}: is an ONNX file, which serves detection only; name the weights it was made from")
    tensors, metadata = read_tensors(path)
    if metadata.get("format") == checkpoint_file.FORMAT:
        checkpoint = checkpoint_file.unpack(path, tensors, metadata)
        tensors, feature_scale = fold(checkpoint.model, checkpoint.statistics)
        metadata = _metadata(checkpoint.config, checkpoint.normalisation, feature_scale)
        log.info("%s: is a checkpoint, taken as the weights after %d iterations", path, checkpoint.iteration)
    return path, tensors, metadata


def _other_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """What a safetensors file is that holds no network of ours, and what to do."""
    if metadata.get("format") == START or torchvision_weights.has_its_keys(tensors):
        return f"{path}: holds weights to start training from; name it as model.weights of a configuration and train"
    what = "holds proposals" if "boxes" in tensors else "is not a weights file of this program"
    return f"{path}: {what}; name a weights file of tools/train.py or a run's folder"


def _for_detection(path: Path) -> str:
    return f"{path}: is in int8, which detection alone takes; name the weights it was made from"


def load_model(path: str | Path, precision: str | None = None, with_int8: bool = False) -> tuple[FastRCNN, Config]:
    """The network of a weights file, ready to detect, and the configuration it was trained with.

    `path` may also be a run's folder, or a checkpoint. `precision` overrides the one it was trained in; of weights in
    int8, which come only where they are asked for, it is that of what is not in int8. Raises FastRCNNError for a file
    that is not whole or not ours, or whose tensors do not fit its own configuration.
    """
    path, tensors, metadata = read_network(path)
    if metadata.get("format") != FORMAT:
        raise FastRCNNError(_other_file(path, tensors, metadata))
    if INT8 in metadata and not with_int8:
        raise FastRCNNError(_for_detection(path))
    config, normalisation = _header(metadata, str(path))
    try:
        with torch.device("meta"):  # no random start that would be thrown away
            model = FastRCNN(config.model, len(config.classes) + 1, precision or config.precision)
            for name in model.fc_layers:
                if f"{name}.V.weight" in tensors:
                    rank = tensors[f"{name}.V.weight"].shape[0]
                    setattr(model, name, factors(getattr(model, name), rank))
            if INT8 in metadata:
                if reason := int8.refusal(model):
                    raise FastRCNNError(reason)
                int8.convert(model)
    except (FastRCNNError, RuntimeError, TypeError, IndexError) as e:  # sizes that no network can have
        reason = str(e).splitlines()[0]
        raise FastRCNNError(f"{path}: its configuration gives no network ({reason}); the file is damaged") from None
    expected = {name: (list(t.shape), t.dtype) for name, t in model.state_dict().items() if name != "feature_scale"}
    found = {name: (list(t.shape), t.dtype) for name, t in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))[0]
        raise FastRCNNError(
            f"{path}: {wrong} is {_described(found.get(wrong))}, its configuration asks for "
            f"{_described(expected.get(wrong))}; the file is damaged"
        )
    model.load_state_dict({**tensors, "feature_scale": torch.ones(())}, assign=True)
    model.to(memory_format=torch.channels_last)
    model.normalisation = normalisation
    model.score_thresholds = _score_thresholds(metadata, path)
    model.svms = bool(metadata.get("svms"))
    if not all(float(step) > 0 for step in int8.steps(model).values()):
        raise FastRCNNError(f"{path}: a step of its activations is not a positive number; the file is damaged")
    return model.eval(), config


def _described(tensor: tuple[list[int], torch.dtype] | None) -> str:
    return "not there" if tensor is None else f"{str(tensor[1]).removeprefix('torch.')} of shape {tensor[0]}"


def _header(metadata: dict[str, Any], path: str) -> tuple[Config, Normalisation]:
    try:
        config, scale = configs.from_dict(metadata["config"], source=path), float(metadata["feature_scale"])
        if not 0 < scale < math.inf:
            raise ValueError("feature_scale out of range")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise FastRCNNError(f"{path}: its metadata is damaged ({e!r}); make or fetch the file again") from None
    return config, _normalisation(metadata, path)


def _normalisation(metadata: dict[str, Any], path: str) -> Normalisation:
    try:
        pixels = metadata["normalisation"]
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (pixels["mean"], pixels["deviation"]))
        if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise ValueError("normalisation out of range")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise FastRCNNError(f"{path}: its metadata is damaged ({e!r}); make or fetch the file again") from None
    return Normalisation(mean, std)


def _score_thresholds(metadata: dict[str, Any], path: Path) -> ScoreThresholds | None:
    try:
        return ScoreThresholds.from_json(metadata[score_thresholds.KEY]) if score_thresholds.KEY in metadata else None
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise FastRCNNError(f"{path}: its score thresholds are damaged ({e!r}); make or fetch the file again") from None
