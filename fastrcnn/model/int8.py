"""A network in int8, for detection on a CPU: weights per channel, activations per tensor.

Weights are int8, each output channel in steps of its own (weight_scale). Activations are uint8 in steps that were
measured on pictures (fastrcnn/compress.py): from 0 on after a ReLU, around 128 where they have a sign, which are those
between the two factors of a compressed layer and merged features. Products add up in int32, so that maxima, of max
pooling and RoI pooling, and sums are exact; what is rounded are weights and activations.

In float32 stay conv1_1, whose input are pixels and whose arithmetic is little, the merging of skip pooling, fc7's
output, and the two sibling layers.

Layers are kept in one form, and run in another, whose weights are laid out for oneDNN: `convert` makes the first of a
network, `lay_out` the second of a detector's own copy of it.
"""

import torch
from jaxtyping import Float32, Int8
from torch import Tensor, nn

from fastrcnn.errors import FastRCNNError
from fastrcnn.model import int8_kernels
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.int8_kernels import LARGEST, MIDDLE
from fastrcnn.model.roi_features import bins_first

WEIGHT_STEPS = 127  # from 0 to the largest weight
LIKE_VGG16 = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)


class Int8Layer(nn.Module):
    """A convolution or fully connected layer, as it is kept: its weights rounded to the nearest of 255 steps."""

    weight: Int8[Tensor, "out in *k"]
    weight_scale: Float32[Tensor, "out"]  # of one step
    bias: Float32[Tensor, "out"] | None
    scale: Float32[Tensor, ""] | None  # of one step of its output; None of the last, whose output is float32

    def __init__(self, layer: nn.Conv2d | nn.Linear, last: bool = False):
        super().__init__()
        weight = layer.weight.detach().float()
        step = weight.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / WEIGHT_STEPS
        rounded = (weight / step.unflatten(0, (-1, *[1] * (weight.ndim - 1)))).round()
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("weight_scale", step)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self.register_buffer("scale", None if last else step.new_ones(()))
        self.sliding = sliding(layer) if isinstance(layer, nn.Conv2d) else None

    @property
    def kept(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights, their steps, and the bias."""
        return self.weight, self.weight_scale, self.bias

    @property
    def step(self) -> float:
        """Of the output; 0 of the last."""
        return 0.0 if self.scale is None else float(self.scale)


class FirstLayer(nn.Module):
    """conv1_1, as it is kept: in float32, beside the step of its output."""

    weight: Float32[Tensor, "out 3 _ _"]
    bias: Float32[Tensor, "out"]
    scale: Float32[Tensor, ""]

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        assert layer.bias is not None
        self.register_buffer("weight", layer.weight.detach().float())
        self.register_buffer("bias", layer.bias.detach().float())
        self.register_buffer("scale", self.bias.new_ones(()))
        self.sliding = sliding(layer)


def sliding(layer: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups."""
    return [*layer.stride], [*map(int, layer.padding)], [*layer.dilation], layer.groups


def refusal(model: FastRCNN) -> str | None:
    """Why a network has no form in int8: a clause, or None if it has one."""
    if model.int8:
        return "it is in int8 already"
    if model.conv5 or not all(isinstance(layer, LIKE_VGG16) for layer in model.backbone):
        return f"{model.config.backbone} has other layers than convolutions, ReLU and max pooling: vgg16 and tiny can"
    if model.config.roi_features not in ("roi_pool", "spp"):
        return f"features of RoIs by {model.config.roi_features} are no maxima: roi_pool and spp are"
    return None


def convert(model: FastRCNN) -> None:
    """Put layers in int8 in the place of a network's own, all steps of activations 1; parameters may be on `meta`."""
    convert_convolutions(model.backbone)
    for name in model.fc_layers:
        layer, last = getattr(model, name), name == model.fc_layers[-1]
        if isinstance(layer, nn.Linear):
            setattr(model, name, Int8Layer(layer, last))
        else:
            layer.V, layer.U = Int8Layer(layer.V), Int8Layer(layer.U, last)
    if model.merge is not None:
        model.merge.register_buffer("scale", model.merge.weight.new_ones(()).detach())
    model.int8 = True


def convert_convolutions(layers: nn.Sequential) -> None:
    """`convert` of the first layers of a network, from the picture on."""
    first = True
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Conv2d):
            setattr(layers, name, FirstLayer(layer) if first else Int8Layer(layer))
            first = False


def steps(model: nn.Module) -> dict[str, Tensor]:
    """The step of each activation of a converted network by its name, to be filled: backbone.conv1_2, fc6.V, merge."""
    return {name.removesuffix(".scale"): value for name, value in model.named_buffers() if name.endswith(".scale")}


def step_of(name: str, largest: float) -> float:
    """The step of the activation of this name, whose numbers are as large as this; some can be negative."""
    return largest / (MIDDLE - 1 if name == "merge" or name.endswith(".V") else LARGEST)


def lay_out(model: FastRCNN) -> None:
    """Make a converted network able to detect, in its place: fc6 takes rows of pool_for_inference.

    Raises FastRCNNError where this processor, or this torch, cannot.
    """
    if model.device.type != "cpu":
        raise FastRCNNError(
            "these weights are in int8, which is for a CPU: set device to cpu, or take those they were made from"
        )
    if not int8_kernels.works():
        raise FastRCNNError(
            "these weights are in int8, and this processor, or this build of torch, has no exact products of int8 "
            "(VNNI on x86); take those they were made from"
        )
    step, zero = lay_out_convolutions(model.backbone), 0
    if model.merge is not None:
        step, zero = float(model.merge.get_buffer("scale")), MIDDLE
    for name in model.fc_layers:
        layer = getattr(model, name)
        parts = [layer] if isinstance(layer, Int8Layer) else [layer.V, layer.U]
        if name == "fc6":
            parts[0].weight = bins_first(parts[0].weight, model.config.bins_per_roi)
        products = []
        for part in parts:
            came, relu = (step, zero), part is parts[-1]
            step, zero = part.step, 0 if relu else MIDDLE
            out = (step, zero) if step else None
            weight, weight_step, bias = part.kept
            products.append(int8_kernels.Product(weight, weight_step, bias, came, out, relu))
        setattr(model, name, products[0] if len(products) == 1 else nn.Sequential(*products))


def lay_out_convolutions(layers: nn.Sequential) -> float:
    """`lay_out` of the first layers of a network, from the picture on; the step of what the last one puts out."""
    step = 0.0
    for name, layer in layers.named_children():
        runs: nn.Module
        if isinstance(layer, Int8Layer):
            assert layer.sliding is not None
            runs = int8_kernels.Convolution(*layer.kept, layer.sliding, step, layer.step)
            step = layer.step
        elif isinstance(layer, FirstLayer):
            step = float(layer.scale)
            runs = int8_kernels.FirstConvolution(layer.weight, layer.bias, layer.sliding, step)
        else:  # convolutions have their ReLU in them
            runs = int8_kernels.MaxPool() if isinstance(layer, nn.MaxPool2d) else nn.Identity()
        setattr(layers, name, runs)
    return step
