"""ImageNet weights of torchvision, by its names of the networks and of their layers."""

from torch import Tensor
from torchvision.models import ResNet50_Weights, VGG16_Weights, WeightsEnum

from fastrcnn.errors import FastRCNNError
from fastrcnn.model import backbones
from fastrcnn.model.backbones import Normalisation
from fastrcnn.model.fast_rcnn import FastRCNN

KNOWN: dict[str, type[WeightsEnum]] = {"vgg16": VGG16_Weights, "resnet50": ResNet50_Weights}


def fetch(weights: WeightsEnum) -> tuple[dict[str, Tensor], Normalisation]:
    """Tensors with torchvision's keys, downloaded once. Raises FastRCNNError when they cannot be had."""
    try:
        tensors = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as e:  # torch.load raises anything from EOFError to UnpicklingError on a damaged copy in its cache
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise FastRCNNError(
            f"model.weights: {weights.name} cannot be downloaded or is damaged ({reason}); fetch {weights.url} "
            "elsewhere, convert it to .safetensors with torchvision's keys, and name that file"
        ) from None
    preset = weights.transforms()
    mean = tuple(255 * x for x in preset.mean)
    std = tuple(255 * x for x in preset.std)
    return dict(tensors), Normalisation(mean, std)


def has_its_keys(tensors: dict[str, Tensor]) -> bool:
    """Whether a file is of torchvision's VGG16 or ResNet-50."""
    return bool({"features.0.weight", "layer1.0.conv1.weight"} & tensors.keys())


def renamed(model: FastRCNN, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of torchvision's network of the same kind, by our names of layers."""
    return {
        new + key.removeprefix(old): tensor
        for old, new in _names(model).items()
        for key, tensor in tensors.items()
        if key.startswith(f"{old}.")
    }


def _names(model: FastRCNN) -> dict[str, str]:
    """Our names of layers by torchvision's."""
    if not model.conv5:
        layers = enumerate(backbones.vgg16().named_children())
        found = {f"features.{i}": f"backbone.{name}" for i, (name, layer) in layers if backbones.learns(layer)}
        return found | {"classifier.0": "fc6", "classifier.3": "fc7"}
    found = {"conv1": "backbone.conv1", "bn1": "backbone.bn1"}
    for part in ("backbone", "conv5"):
        for name, _ in getattr(model, part).named_children():
            stage, _, block = name.removeprefix("conv").partition("_")
            if block:
                found[f"layer{int(stage) - 1}.{int(block) - 1}"] = f"{part}.{name}"
    return found
