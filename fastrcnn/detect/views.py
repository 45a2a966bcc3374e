"""How a detector looks at RoIs: in one of several scales (section 3.3) or in all, mirrored too, and a second time.

The network comes in as a function, so that all this holds for any. A view is a picture in one scale, mirrored or not.

Shapes: R RoIs, K classes.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.config import Config
from fastrcnn.images import image_scale

CANONICAL_AREA = 224**2  # scaled pixels; a RoI is looked at in the scale that brings it nearest (section 3.3, SPPnet)

Rows = tuple[Float32[Tensor, "_ K"], Float32[Tensor, "_ K 4"]]  # of RoIs: probabilities, boxes in image pixels
Look = Callable[[Float32[Tensor, "R 4"]], Rows]  # of RoIs, one or more, in image pixels
Network = Callable[[UInt8[np.ndarray, "H W 3"], float], Look]  # on a picture at a scale; boxes need not be clipped


def look_at(network: Network, image: UInt8[np.ndarray, "H W 3"], rois: Float32[Tensor, "R 4"], config: Config) -> Rows:
    """Probabilities and clipped boxes of every RoI and, with test.second_pass, of the best boxes that these gave.

    A row of a RoI is the mean over its views: as it is and mirrored (test.flip), in all scales (test.average_scales) or
    in the nearest alone.
    """
    height, width = image.shape[:2]
    settings, test = config.image, config.test
    scales = [image_scale(width, height, side, settings.test_long_side) for side in settings.test_short_side]
    flips = (False, True) if test.flip else (False,)

    @cache  # for the second pass
    def view(scale: float, flip: bool) -> Look:
        if not flip:
            return network(image, scale)
        return mirrored(network(np.ascontiguousarray(image[:, ::-1]), scale), width)

    def one_pass(rois: Float32[Tensor, "R 4"]) -> Rows:
        scores = rois.new_zeros(len(rois), len(config.classes) + 1)
        boxes = rois.new_zeros(*scores.shape, 4)
        level = nearest_scale(rois, scales)
        for index, scale in enumerate(scales):
            chosen = (torch.ones_like(level) if test.average_scales else level == index).nonzero().squeeze(1)
            for flip in flips if len(chosen) else ():
                seen = view(scale, flip)(rois[chosen])
                scores[chosen] += seen[0]
                moved = seen[1] if test.bbox_regression else rois[chosen, None]
                boxes[chosen] += box_ops.clip(moved, width, height)
        views = len(flips) * (len(scales) if test.average_scales else 1)
        return scores / views, boxes / views

    first = one_pass(rois)
    return first if test.second_pass is None else with_second_pass(first, one_pass, test.second_pass)


def mirrored(look: Look, width: int) -> Look:
    """What looks at RoIs of a picture of that width (pixels), from what looks at those of the picture mirrored."""

    def look_mirrored(rois: Float32[Tensor, "R 4"]) -> Rows:
        scores, boxes = look(box_ops.flip(rois, width))
        return scores, box_ops.flip(boxes, width)

    return look_mirrored


def nearest_scale(rois: Float32[Tensor, "R 4"], scales: list[float]) -> Int64[Tensor, "R"]:
    """The index of the scale that brings each RoI's area (image pixels) nearest 224^2; the first of equals
    (fast-rcnn lib/fast_rcnn/test.py, _project_im_rois)."""
    squares = rois.new_tensor(scales).square()
    return (box_ops.area(rois)[:, None] * squares - CANONICAL_AREA).abs().argmin(dim=1)


def with_second_pass(first: Rows, look: Look, count: int) -> Rows:
    """The rows of RoIs, then those of the boxes that these gave: iterative localisation (Gidaris and Komodakis 2015,
    section 4) in two passes, whose boxes NMS and voting see together.

    Looked at again are the `count` boxes with the best scores, over all RoIs and object classes; equal ones rank by
    RoI, then by class. A box was moved for one class, and in its new row the others have probability 0. For that class,
    the box and what it is moved to both have the mean of their two probabilities.
    """
    scores, boxes = first
    rank = torch.where(box_ops.nonempty(boxes) & (scores > 0), scores, 0)
    rank[:, 0] = 0
    best = rank.flatten().argsort(descending=True, stable=True)[: min(count, int((rank > 0).sum()))]
    if not len(best):
        return first
    roi, classes = best // scores.shape[1], best % scores.shape[1]
    again, moved = look(boxes[roi, classes])
    mean = (scores[roi, classes] + again.gather(1, classes[:, None]).squeeze(1)) / 2
    second = torch.zeros_like(again).scatter(1, classes[:, None], mean[:, None])
    return torch.cat((scores.index_put((roi, classes), mean), second)), torch.cat((boxes, moved))
