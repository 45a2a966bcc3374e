"""Half-open boxes (x1, y1, x2, y2) in image pixels, 0-based: width = x2 - x1, no +1 anywhere.

A VOC box (1-based, both ends included) becomes (xmin - 1, ymin - 1, xmax, ymax). All functions take and return torch
tensors and keep their dtype; leading dimensions are free unless a shape is given.

Shapes: R RoIs, G ground-truth boxes, K classes with background.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Areas in square pixels, [..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair, [R, 4] and [G, 4] -> [R, G]; empty boxes overlap nothing."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(union))


def encode(proposals: Tensor, targets: Tensor) -> Tensor:
    """Regression targets (dx, dy, dw, dh) that move each proposal onto its target, [..., 4] -> [..., 4].

    Shifts of the centre are relative to the proposal's size, changes of size are logarithms (R-CNN, appendix C;
    fast-rcnn lib/roi_data_layer/roidb.py). Both boxes must have positive width and height.
    """
    size = proposals[..., 2:] - proposals[..., :2]
    target_size = targets[..., 2:] - targets[..., :2]
    centre = proposals[..., :2] + 0.5 * size
    target_centre = targets[..., :2] + 0.5 * target_size
    return torch.cat(((target_centre - centre) / size, torch.log(target_size / size)), dim=-1)


def decode(proposals: Tensor, deltas: Tensor) -> Tensor:
    """The inverse of encode for every class: proposals [R, 4], deltas [R, 4 * K] -> boxes [R, K, 4].

    Nothing is clamped: a huge dw gives an infinite box, which clip makes the whole width of the image.
    """
    deltas = deltas.unflatten(1, (-1, 4))
    size = (proposals[:, 2:] - proposals[:, :2])[:, None]
    centre = proposals[:, None, :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * torch.exp(deltas[..., 2:]) * size
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes cut to the image [0, width] x [0, height] (pixels), [..., 4] -> [..., 4]; some may become empty."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def flip(boxes: Tensor, width: int) -> Tensor:
    """Boxes of the image mirrored left to right, [..., 4] -> [..., 4]; width is the image's, in pixels."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def nonempty(boxes: Tensor) -> Tensor:
    """Which boxes have positive width and height, [..., 4] -> bool [...]; False for NaN."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


@dataclass(frozen=True)
class TargetStatistics:
    """Mean and std of the regression targets of each class, [K, 4] float32; the background's are 0 and 1."""

    mean: Tensor
    std: Tensor

    def normalise(self, bbox_targets: Tensor, labels: Tensor) -> Tensor:
        """Targets [R, 4] of RoIs with these labels [R], at zero mean and unit std per class."""
        return (bbox_targets - self.mean[labels]) / self.std[labels]
