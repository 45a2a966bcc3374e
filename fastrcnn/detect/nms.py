"""From scores and boxes of every RoI and class to the detections of an image: threshold, NMS, the best few."""

import math

from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from fastrcnn.boxes import nonempty


def select_detections(
    scores: Float[Tensor, "R K"],
    boxes: Float[Tensor, "R K 4"],
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
) -> tuple[Float[Tensor, "D 4"], Int64[Tensor, "D"], Float[Tensor, "D"]]:
    """The detections of one image, best first: boxes in image pixels, classes, scores.

    `scores` and `boxes` (image pixels, clipped) are those of every RoI and class; class 0, background, is
    never a detection, nor is an empty box. Kept are scores > `score_threshold`, then in each class, greedily by score,
    boxes whose IoU with every better one kept is < `nms_iou`, then the best `max_detections` over all classes
    (py-faster-rcnn, lib/fast_rcnn/test.py). Equal scores rank by RoI, then by class.
    """
    wanted = (scores > score_threshold) & nonempty(boxes)
    wanted[:, 0] = False
    roi, classes = wanted.nonzero(as_tuple=True)
    boxes, scores = boxes[roi, classes], scores[roi, classes]

    # torchvision suppresses IoU > threshold, the original (lib/utils/nms.pyx) IoU >= threshold: one float64 step below
    # makes them the same. Boxes that do not touch never suppress each other, so 0 stays 0.
    below = max(math.nextafter(nms_iou, -math.inf), 0.0)
    # In float64, so that the offset batched_nms adds to each class's boxes (or, when they are many, its loop over
    # classes) leaves every IoU as it is; in float32 an offset rounds the coordinates.
    kept = batched_nms(boxes.double(), scores.double(), classes, below).sort().values
    best = scores[kept].argsort(descending=True, stable=True)[:max_detections]
    kept = kept[best]
    return boxes[kept], classes[kept], scores[kept]
