"""Weights in and out: files that alone are enough to detect.

A weights file holds the network as it is used: the statistics of the regression targets folded into bbox_pred, the
feature scale folded into fc6; its metadata holds the class list, the configuration and the normalisation of pixels.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors, write_tensors
from fastrcnn.model import checkpoint_file, int8, score_thresholds, torchvision_weights
from fastrcnn.model.backbones import Normalisation
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


def other_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """What a safetensors file is that holds no network of ours, and what to do."""
    if metadata.get("format") == START or torchvision_weights.has_its_keys(tensors):
        return f"{path}: holds weights to start training from; name it as model.weights of a configuration and train"
    what = "holds proposals" if "boxes" in tensors else "is not a weights file of this program"
    return f"{path}: {what}; name a weights file of tools/train.py or a run's folder"


def for_detection(path: Path) -> str:
    return f"{path}: is in int8, which detection alone takes; name the weights it was made from"


def load_model(path: str | Path, precision: str | None = None, with_int8: bool = False) -> tuple[FastRCNN, Config]:
    """The network of a weights file, ready to detect, and the configuration it was trained with.

    `path` may also be a run's folder, or a checkpoint. `precision` overrides the one it was trained in; of weights in
    int8, which come only where they are asked for, it is that of what is not in int8. Raises FastRCNNError for a file
    that is not whole or not ours, or whose tensors do not fit its own configuration.
    """
    path, tensors, metadata = read_network(path)
    if metadata.get("format") != FORMAT:
        raise FastRCNNError(other_file(path, tensors, metadata))
    if INT8 in metadata and not with_int8:
        raise FastRCNNError(for_detection(path))
    config, normalisation = header(metadata, str(path))
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


def header(metadata: dict[str, Any], path: str) -> tuple[Config, Normalisation]:
    try:
        config, scale = configs.from_dict(metadata["config"], source=path), float(metadata["feature_scale"])
        if not 0 < scale < math.inf:
            raise ValueError("feature_scale out of range")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise FastRCNNError(f"{path}: its metadata is damaged ({e!r}); make or fetch the file again") from None
    return config, stored_pixels(metadata, path)


def stored_pixels(metadata: dict[str, Any], path: str) -> Normalisation:
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
