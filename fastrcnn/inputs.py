"""What a detector takes: pictures in any of the forms that people have them in, and proposals."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import pillow_pixels, read_image

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
FORMS = (
    "a path, a Pillow image, an array uint8 [H, W, 3] (RGB) or [H, W], or a tensor [3, H, W], uint8 or float in 0..1"
)


def as_pixels(picture: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """The upright picture as RGB; a path and a Pillow image are turned as their EXIF says.

    >>> as_pixels("street.jpg").shape
    (180, 240, 3)

    Raises FastRCNNError for a file that is no picture, and for anything else than FORMS, without pixels, or with
    numbers that are not finite.
    """
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        pixels = pillow_pixels(picture)
    elif isinstance(picture, Tensor):
        pixels = _of_tensor(picture)
    elif isinstance(picture, np.ndarray):
        pixels = np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else picture
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            scale = "; if it is in 0..1, (255 * array).round().astype('uint8')" if picture.dtype.kind == "f" else ""
            raise FastRCNNError(f"image: an array {picture.dtype} {list(picture.shape)}; give {FORMS}{scale}")
    else:
        many = "; detect_many takes several" if isinstance(picture, Iterator | list | tuple) else ""
        raise FastRCNNError(f"image: is of type {type(picture).__name__}; give {FORMS}{many}")
    if not pixels.size:
        raise FastRCNNError(f"image: has {pixels.shape[1]} x {pixels.shape[0]} pixels; give one that is not empty")
    return np.ascontiguousarray(pixels)


def _of_tensor(picture: Tensor) -> UInt8[np.ndarray, "H W 3"]:
    """From [3, H, W] as torchvision has it; one channel [1, H, W] is grey."""
    known = picture.dtype == torch.uint8 or picture.is_floating_point()
    if not known or picture.ndim != 3 or len(picture) not in (1, 3):
        kind = str(picture.dtype).removeprefix("torch.")
        raise FastRCNNError(f"image: a tensor {kind} {list(picture.shape)}; give {FORMS}")
    picture = picture.detach().cpu()
    if picture.is_floating_point() and picture.numel():
        low, high = picture.min().item(), picture.max().item()
        if not (low >= 0 and high <= 1):  # NaN too
            raise FastRCNNError(f"image: a tensor with numbers from {low:g} to {high:g}; floats must be in 0..1")
        picture = (picture.float() * 255).round()
    return picture.byte().expand(3, -1, -1).permute(1, 2, 0).numpy()


def as_rois(proposals: ArrayLike | Tensor) -> Float32[Tensor, "P 4"]:
    """Proposals [P, 4] in image pixels, half open, as a tensor; an empty list is none.

    >>> as_rois([[0, 0, 20, 10]])
    tensor([[ 0.,  0., 20., 10.]])

    Raises FastRCNNError for another shape, numbers that are not finite, and boxes without width or height.
    """
    try:
        boxes = np.asarray(proposals.cpu() if isinstance(proposals, Tensor) else proposals, np.float32)
    except (TypeError, ValueError) as e:
        raise FastRCNNError(f"proposals: are not numbers ({e}); give [P, 4]") from None
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise FastRCNNError(f"proposals: are {list(boxes.shape)}; give finite numbers [P, 4]")
    rois = torch.from_numpy(boxes)
    if not bool(box_ops.nonempty(rois).all()):
        raise FastRCNNError("proposals: some have no width or height; leave them out")
    return rois
