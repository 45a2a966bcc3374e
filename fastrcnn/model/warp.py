"""R-CNN's way (Girshick et al. 2014, arXiv 1311.2524): each RoI is cut out of the picture with some context, warped to
one size whatever its shape, and goes through all layers on its own.

As in the authors' code (rbgirshick/rcnn, rcnn_im_crop.m), but that windows are not rounded to whole pixels and are cut
out of the scaled picture.

Shapes: R RoIs, S the size.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

CONTEXT = 16  # warped pixels around the RoI on each side (detectors.crop_padding)
CROPS_PER_CHUNK = 32  # of VGG16 at 224 x 224, 0.8 GB in the largest layers


def context_windows(boxes: Float32[Tensor, "R 4"], scale: float, size: int) -> Float32[Tensor, "R 4"]:
    """What is cut out for half-open boxes in image pixels: in scaled pixels, half open, with the context that makes
    CONTEXT pixels of `size`. May reach beyond the picture."""
    scaled = boxes.double() * scale
    context = (scaled[:, 2:] - scaled[:, :2]) * (CONTEXT / (size - 2 * CONTEXT))
    return torch.cat((scaled[:, :2] - context, scaled[:, 2:] + context), dim=1).float()


def warp(image: Float[Tensor, "3 H W"], rois: Float[Tensor, "R 4"], size: int) -> Float[Tensor, "R 3 S S"]:
    """Each window of a normalised image at `size` x `size`, linearly interpolated between the centres of pixels without
    smoothing, and 0, the mean of all pictures, beyond the image."""
    height, width = image.shape[1:]
    steps = (torch.arange(size, device=rois.device, dtype=rois.dtype) + 0.5) / size
    x = rois[:, 0, None] + steps * (rois[:, 2] - rois[:, 0])[:, None]  # [R, S]
    y = rois[:, 1, None] + steps * (rois[:, 3] - rois[:, 1])[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    grid = torch.stack(
        torch.broadcast_tensors((2 * x / width - 1)[:, None, :], (2 * y / height - 1)[:, :, None]), dim=3
    )
    columns = grid.view(1, -1, size, 2)  # all windows below each other, as grid_sample takes them from one image
    crops = F.grid_sample(image[None].to(rois.dtype), columns, padding_mode="border", align_corners=False)
    return crops.view(3, -1, size, size).transpose(0, 1) * inside[:, None]
