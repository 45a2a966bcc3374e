"""The convolutional part: image in, feature map out.

A backbone is an nn.Sequential whose layers carry the names of the paper (conv1_1, relu1_1, pool1, ...), so that
`freeze_up_to: conv2_2` says what it means. All pooling rounds up (ceil_mode), as Caffe does: a 600 x 800 image gives
38 x 50 cells. Rounding down, torchvision's way, loses the row that boxes on the bottom edge fall into.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import nn
from torchvision.models import vgg


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from the pixels (RGB, 0..255), and what they are then divided by. Travels with the weights."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS = {
    "caffe": Normalisation((122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0)),  # PIXEL_MEANS, in RGB order
    "torchvision": Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # ImageNet's, times 255
}


def vgg16() -> nn.Sequential:
    """VGG16 up to relu5_3 (Simonyan and Zisserman 2014, configuration D): [N, 3, H, W] -> [N, 512, H/16, W/16]."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    stage, index = 1, 0
    for layer in list(vgg.make_layers(vgg.cfgs["D"]))[:-1]:  # RoI pooling takes the place of pool5
        if isinstance(layer, nn.Conv2d):
            index += 1
            layers[f"conv{stage}_{index}"] = layer
        elif isinstance(layer, nn.ReLU):
            layers[f"relu{stage}_{index}"] = layer
        else:
            layers[f"pool{stage}"] = nn.MaxPool2d(2, 2, ceil_mode=True)
            stage, index = stage + 1, 0
    return nn.Sequential(layers)


def tiny() -> nn.Sequential:
    """Four convolutions that learn from scratch in minutes: [N, 3, H, W] -> [N, 128, H/8, W/8]. Ours, for the demo."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 32, 5, stride=2, padding=2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(2, 2, ceil_mode=True),
        conv2=nn.Conv2d(32, 64, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2, 2, ceil_mode=True),
        conv3_1=nn.Conv2d(64, 128, 3, padding=1),
        relu3_1=nn.ReLU(inplace=True),
        conv3_2=nn.Conv2d(128, 128, 3, padding=1),
        relu3_2=nn.ReLU(inplace=True),
    )
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(layers)


BUILDERS = {"vgg16": vgg16, "tiny": tiny}


def output_channels(layers: nn.Sequential) -> int:
    """Channels of the feature map that these layers give."""
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)][-1].out_channels


def stride(layers: nn.Sequential) -> int:
    """Image pixels per cell of the feature map that these layers give."""
    strides = [layer.stride for layer in layers if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    return math.prod(s if isinstance(s, int) else s[0] for s in strides)


def _position(backbone: nn.Sequential, name: str) -> int:
    names = [name for name, _ in backbone.named_children()]
    if name not in names:
        raise KeyError(f"no layer {name!r}; it has {', '.join(names)}")
    return names.index(name)


def layer_end(backbone: nn.Sequential, name: str) -> int:
    """How many leading layers give a layer's output: up to it and the ReLU that follows it.

    Raises KeyError with the valid names when there is no such layer.
    """
    end = _position(backbone, name) + 1
    return end + (end < len(backbone) and isinstance(backbone[end], nn.ReLU))


def frozen_depth(backbone: nn.Sequential, freeze_up_to: str | None) -> int:
    """How many leading layers keep their weights: those up to `freeze_up_to` and what follows it without weights.

    Raises KeyError with the valid names when there is no such layer.
    """
    if not freeze_up_to:
        return 0
    depth = _position(backbone, freeze_up_to) + 1
    while depth < len(backbone) and not isinstance(backbone[depth], nn.Conv2d):
        depth += 1
    return depth
