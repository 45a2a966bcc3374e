"""The frozen layers in int8, for stored features: twice as fast as bfloat16 on a CPU with instructions for it."""

import copy
import logging
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fastrcnn.model import int8, int8_kernels
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.ranges import Activation, watching
from fastrcnn.threads import all_threads

log = logging.getLogger(__name__)


def possible(model: FastRCNN) -> bool:
    """Whether this machine can, which is logged where it cannot, so that a configuration serves on any machine."""
    why = None
    if model.device.type != "cpu":
        why = f"int8 is for a CPU, the device is {model.device}"
    elif not int8_kernels.works():
        why = "this processor, or this build of torch, has no exact products of int8 (VNNI on x86)"
    if why:
        log.warning("cache_precision: %s; features are stored in %s, as if it were null", why, model.precision)
    return not why


def measure(model: FastRCNN, images: Iterable[Float[Tensor, "3 _ _"]]) -> dict[str, Tensor]:
    """The step of what each frozen layer puts out, by its name, measured on normalised images."""
    layers = model.backbone[: model.frozen_depth].named_children()
    with watching({name: Activation(layer) for name, layer in layers if isinstance(layer, nn.Conv2d)}) as largest:
        for image in images:
            model.frozen_features(image)
    return {name: torch.tensor(int8.step_of(name, value)) for name, value in largest.items()}


def frozen_features(
    model: FastRCNN, steps: dict[str, Tensor]
) -> Callable[[Float[Tensor, "3 H W"]], UInt8[Tensor, "c h w"]]:
    """FastRCNN.frozen_features in int8: what it gives is multiplied by the last of the `steps`."""
    layers = copy.deepcopy(model.backbone[: model.frozen_depth])
    int8.convert_convolutions(layers)
    for name, step in int8.steps(layers).items():
        step.copy_(steps[name])
    int8.lay_out_convolutions(layers)

    @all_threads()
    @torch.no_grad()
    def features(image: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "c h w"]:
        return layers(image[None].contiguous(memory_format=torch.channels_last))[0]

    return features


def output_step(model: FastRCNN, steps: dict[str, Tensor]) -> float:
    """What `frozen_features` is multiplied by."""
    names = [name for name, _ in model.backbone[: model.frozen_depth].named_children() if name in steps]
    return float(steps[names[-1]])
