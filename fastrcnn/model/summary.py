"""What a network is made of: sizes, receptive fields, parameters and arithmetic of each layer, without computing it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.receptive_field import ReceptiveField, receptive_field, windows


@dataclass(frozen=True)
class Row:
    """A layer, or a residual block, of one picture and its RoIs."""

    layer: str
    output: tuple[int, ...]  # channels, height, width; after RoI pooling, of each RoI
    field: ReceptiveField | None  # None after RoI pooling
    parameters: int
    gflop: float  # two for a multiplication and its addition; of all RoIs


@torch.no_grad()
def summarise(model: FastRCNN, height: int, width: int, rois: int) -> list[Row]:
    """The layers that slide over their input or have weights, for a picture in scaled pixels and so many RoIs; where
    RoIs are warped, of each RoI."""
    model, rows = copy.deepcopy(model).to("meta"), []

    def add(name: str, layer: nn.Module, x: Any, field: ReceptiveField | None = None) -> torch.Tensor:
        with FlopCounterMode(display=False) as counter:
            x = layer(x)
        if name in model.layers or windows(layer):
            parameters = sum(p.numel() for p in layer.parameters())
            rows.append(Row(name, tuple(x.shape[1:]), field, parameters, counter.get_total_flops() / 1e9))
        return x

    S = model.config.warp_size
    x = torch.empty(*((rois, 3, S, S) if model.warps else (1, 3, height, width)), device="meta")
    for i, (name, layer) in enumerate(model.backbone.named_children(), 1):
        x = add(name, layer, x, receptive_field(model.backbone[:i]))
    if model.merge:
        sides = [model.config.pool_size] * 2
        add("merge", model.merge, [torch.empty(rois, c, *sides, device="meta") for c in model.merge.channels])
    if model.conv5:
        x = torch.empty(rois, x.shape[1], *[model.config.pool_size] * 2, device="meta")
        for name, layer in model.conv5.named_children():
            x = add(name, layer, x)
        x = x.mean(dim=(2, 3))
    else:
        x = torch.empty(rois, next(model.fc6.parameters()).shape[1], device="meta")
    for name in model.fc_layers:
        x = add(name, getattr(model, name), x)
    for name in ("cls_score", "bbox_pred"):
        add(name, getattr(model, name), x)
    return rows
