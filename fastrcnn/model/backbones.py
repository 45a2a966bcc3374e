"""The convolutional part: image in, feature map out.

A backbone is an nn.Sequential whose layers carry the names of the paper (conv1_1, relu1_1, pool1, ...), so that
`freeze_up_to: conv2_2` says what it means. All pooling rounds up (ceil_mode), as Caffe does: a 600 x 800 image gives
38 x 50 cells. Rounding down, torchvision's way, loses the row that boxes on the bottom edge fall into.
"""

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models import resnet, vgg
from torchvision.ops import FrozenBatchNorm2d


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


def caffenet() -> nn.Sequential:
    """Model S, CaffeNet up to relu5: [N, 3, H, W] -> [N, 256, H/16, W/16] (models/CaffeNet/test.prototxt)."""
    return _started(
        conv1=nn.Conv2d(3, 96, 11, stride=4, padding=5),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        norm2=nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(inplace=True),
    )


def vgg_cnn_m_1024() -> nn.Sequential:
    """Model M, VGG_CNN_M_1024 (Chatfield et al. 2014) up to relu5: [N, 3, H, W] -> [N, 512, ~H/16, ~W/16]
    (models/VGG_CNN_M_1024/test.prototxt)."""
    return _started(
        conv1=nn.Conv2d(3, 96, 7, stride=2),
        relu1=nn.ReLU(inplace=True),
        norm1=nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(96, 256, 5, stride=2, padding=1),
        relu2=nn.ReLU(inplace=True),
        norm2=nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv3=nn.Conv2d(256, 512, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(512, 512, 3, padding=1),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(512, 512, 3, padding=1),
        relu5=nn.ReLU(inplace=True),
    )


class FrozenNorm(FrozenBatchNorm2d):
    """Batch norm whose statistics and weights never change; its result has the type of what comes in."""

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        return super().forward(x).to(x.dtype)


HEAD_BLOCKS = {"resnet50": 3}  # the last layers of a backbone that come after RoI pooling: conv5


def resnet50() -> nn.Sequential:
    """ResNet-50 (He et al. 2016) by its blocks, with frozen batch norm: up to conv4_6 they give [N, 1024, H/16, W/16],
    conv5_1 to conv5_3 are for pooled features. Strides and rounding are torchvision's."""
    source = resnet.resnet50(norm_layer=FrozenNorm)
    layers = OrderedDict[str, nn.Module](conv1=source.conv1, bn1=source.bn1, relu1=source.relu, pool1=source.maxpool)
    for stage in (2, 3, 4, 5):
        for i, block in enumerate(getattr(source, f"layer{stage - 1}"), 1):
            layers[f"conv{stage}_{i}"] = block
    return nn.Sequential(layers)


def tiny() -> nn.Sequential:
    """Four convolutions that learn from scratch in minutes: [N, 3, H, W] -> [N, 128, H/8, W/8]. Ours, for the demo."""
    return _started(
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


def _started(**layers: nn.Module) -> nn.Sequential:
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(OrderedDict(layers))


BUILDERS = {
    "vgg16": vgg16,
    "vgg_cnn_m_1024": vgg_cnn_m_1024,
    "caffenet": caffenet,
    "resnet50": resnet50,
    "tiny": tiny,
}

Network = TypeVar("Network", bound=nn.Module)


def without_batch_norm(network: Network) -> Network:
    """The network with frozen batch norm folded into the convolution before it: a copy, or itself where it has none."""
    if not any(isinstance(layer, FrozenNorm) for layer in network.modules()):
        return network
    copy = deepcopy(network)
    for parent in copy.modules():
        for (_, conv), (after, norm) in pairwise([*parent.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenNorm):
                statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
                setattr(parent, after, nn.Identity())
    return copy


def learns(layer: nn.Module) -> bool:
    """Whether a layer has weights."""
    return any(True for _ in layer.parameters())


def output_channels(layers: nn.Sequential) -> int:
    """Channels of the feature map that these layers give."""
    return [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels


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
    while depth < len(backbone) and not learns(backbone[depth]):
        depth += 1
    return depth
