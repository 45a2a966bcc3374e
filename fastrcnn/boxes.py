"""Half-open boxes (x1, y1, x2, y2) in image pixels, 0-based: width = x2 - x1, no +1 anywhere.

A VOC box (1-based, both ends included) becomes (xmin - 1, ymin - 1, xmax, ymax). All functions take and return torch
tensors and keep their dtype.

Shapes: R RoIs, G ground-truth boxes, K classes with background, K4 = 4 * K, *n any leading dimensions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def area(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Areas in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Float[Tensor, "R 4"], b: Float[Tensor, "G 4"]) -> Float[Tensor, "R G"]:
    """Intersection over union of every pair; empty boxes overlap nothing."""
    # [G, R], coordinate by coordinate: inner loops over R are fast, over two numbers or a few objects they are not.
    ax1, ay1, ax2, ay2 = a.t().contiguous()
    bx1, by1, bx2, by2 = b.t()[:, :, None]
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(union)).t()


def to_last_pixel(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Boxes that end at their last pixel, and so measure one less, but never less than 1: fast-rcnn has 1e-14 for a box
    of one pixel, and targets without bounds."""
    first, end = boxes[..., :2], boxes[..., 2:]
    return torch.cat((first, torch.maximum(end - 1, first + 1)), dim=-1)


def encode(
    proposals: Float[Tensor, "*n 4"], targets: Float[Tensor, "*n 4"], last_pixel: bool = False
) -> Float[Tensor, "*n 4"]:
    """Regression targets (dx, dy, dw, dh) that move each proposal onto its target.

    Shifts of the centre are relative to the proposal's size, changes of size are logarithms (R-CNN, appendix C;
    py-faster-rcnn lib/fast_rcnn/bbox_transform.py; with `last_pixel`, model.size_to_last_pixel, fast-rcnn
    lib/roi_data_layer/roidb.py). Both boxes must have positive width and height.
    """
    if last_pixel:
        proposals, targets = to_last_pixel(proposals), to_last_pixel(targets)
    size = proposals[..., 2:] - proposals[..., :2]
    target_size = targets[..., 2:] - targets[..., :2]
    centre = proposals[..., :2] + 0.5 * size
    target_centre = targets[..., :2] + 0.5 * target_size
    return torch.cat(((target_centre - centre) / size, torch.log(target_size / size)), dim=-1)


def decode(
    proposals: Float[Tensor, "R 4"], deltas: Float[Tensor, "R K4"], last_pixel: bool = False
) -> Float[Tensor, "R K 4"]:
    """The inverse of encode for every class: the boxes that the deltas (dx, dy, dw, dh) of K classes stand for.

    Nothing is clamped: a huge dw gives an infinite box, which clip makes the whole width of the image.
    """
    if last_pixel:
        return decode(to_last_pixel(proposals), deltas) + deltas.new_tensor([0, 0, 1, 1])
    deltas = deltas.unflatten(1, (-1, 4))
    size = (proposals[:, 2:] - proposals[:, :2])[:, None]
    centre = proposals[:, None, :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * torch.exp(deltas[..., 2:]) * size
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Float[Tensor, "*n 4"], width: int, height: int) -> Float[Tensor, "*n 4"]:
    """Boxes cut to the image [0, width] x [0, height] (pixels); some may become empty."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def flip(boxes: Float[Tensor, "*n 4"], width: int) -> Float[Tensor, "*n 4"]:
    """Boxes of the image mirrored left to right; width is the image's, in pixels."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def nonempty(boxes: Float[Tensor, "*n 4"]) -> Bool[Tensor, "*n"]:
    """Which boxes have positive width and height; False for NaN."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


@dataclass(frozen=True)
class TargetStatistics:
    """Mean and std of the regression targets of each class; the background's are 0 and 1."""

    mean: Float[Tensor, "K 4"]
    std: Float[Tensor, "K 4"]

    def to(self, device: torch.device) -> "TargetStatistics":
        """The same statistics on a device."""
        return TargetStatistics(self.mean.to(device), self.std.to(device))

    def normalise(self, bbox_targets: Float[Tensor, "R 4"], labels: Int64[Tensor, "R"]) -> Float[Tensor, "R 4"]:
        """Targets of RoIs with these labels, at zero mean and unit std per class."""
        return (bbox_targets - self.mean[labels]) / self.std[labels]
