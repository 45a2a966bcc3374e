"""From scores and boxes of every RoI and class to the detections of an image: threshold, NMS, the best few.

Two refinements beyond the paper, each off unless asked for: soft NMS (Bodla et al. 2017, arXiv 1704.04503) and box
voting (Gidaris and Komodakis 2015, arXiv 1505.01749, section 4).

Shapes: R RoIs, K classes, C candidates (pairs of a RoI and a class that score enough), D detections.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from fastrcnn.boxes import iou, nonempty

SoftNMS = Literal["linear", "gaussian"]
SIGMA = 0.5  # of Gaussian soft NMS, as in the experiments of Bodla et al.


def select_detections(
    scores: Float[Tensor, "R K"],
    boxes: Float[Tensor, "R K 4"],
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    soft_nms: SoftNMS | None = None,
    box_voting: float | None = None,
) -> tuple[Float[Tensor, "D 4"], Int64[Tensor, "D"], Float[Tensor, "D"]]:
    """The detections of one image, best first: boxes in image pixels, classes, scores.

    `scores` and `boxes` (image pixels, clipped) are those of every RoI and class; class 0, background, is
    never a detection, nor is an empty box. Candidates are scores > `score_threshold`; of those that NMS (`suppress`)
    or soft NMS (`decay`) leaves, the best `max_detections` over all classes stay (py-faster-rcnn,
    lib/fast_rcnn/test.py). Equal scores rank by RoI, then by class. With `box_voting`, an IoU, detections get the boxes
    that all candidates vote for (`vote`).
    """
    wanted = (scores > score_threshold) & nonempty(boxes)
    wanted[:, 0] = False
    roi, classes = wanted.nonzero(as_tuple=True)
    boxes, scores = boxes[roi, classes], scores[roi, classes]
    if soft_nms is None:
        kept, kept_scores = suppress(boxes, scores, classes, nms_iou, max_detections)
    else:
        kept, kept_scores = decay(boxes, scores, classes, score_threshold, nms_iou, max_detections, soft_nms)
    found = boxes[kept] if box_voting is None else vote(kept, boxes, scores, classes, box_voting)
    return found, classes[kept], kept_scores


def best_of_each_class(
    scores: Float[Tensor, "R K"], boxes: Float[Tensor, "R K 4"], nms_iou: float, count: int
) -> tuple[tuple[Float[Tensor, "D 4"], Int64[Tensor, "D"], Float[Tensor, "D"]], Float[Tensor, "K _"]]:
    """What NMS leaves of the best `count` RoIs of each class, whatever they score, as select_detections gives it; and
    the scores of these RoIs before NMS, best first, -inf for background and where there is no box."""
    scores = torch.where(nonempty(boxes) & scores.isfinite(), scores, -math.inf)
    scores[:, 0] = -math.inf
    top, best = (part[:count] for part in scores.sort(dim=0, descending=True, stable=True))
    wanted = torch.zeros_like(scores, dtype=torch.bool).scatter_(0, best, top > -math.inf)
    roi, classes = wanted.nonzero(as_tuple=True)
    boxes, scores = boxes[roi, classes], scores[roi, classes]
    kept, kept_scores = suppress(boxes, scores, classes, nms_iou, len(roi))
    return (boxes[kept], classes[kept], kept_scores), top.T


def suppress(
    boxes: Float[Tensor, "C 4"], scores: Float[Tensor, "C"], classes: Int64[Tensor, "C"], nms_iou: float, count: int
) -> tuple[Int64[Tensor, "D"], Float[Tensor, "D"]]:
    """The best `count` candidates, best first, and their scores, of those that stay in each class, greedily by score:
    boxes whose IoU with every better one kept is < `nms_iou`."""
    # torchvision suppresses IoU > threshold, the original (lib/utils/nms.pyx) IoU >= threshold: one float64 step below
    # makes them the same. Boxes that do not touch never suppress each other, so 0 stays 0.
    below = max(math.nextafter(nms_iou, -math.inf), 0.0)
    # In float64, so that the offset batched_nms adds to each class's boxes (or, when they are many, its loop over
    # classes) leaves every IoU as it is; in float32 an offset rounds the coordinates.
    kept = batched_nms(boxes.double(), scores.double(), classes, below).sort().values
    best = scores[kept].argsort(descending=True, stable=True)[:count]
    return kept[best], scores[kept[best]]


def decay(
    boxes: Float[Tensor, "C 4"],
    scores: Float[Tensor, "C"],
    classes: Int64[Tensor, "C"],
    score_threshold: float,
    nms_iou: float,
    count: int,
    kind: SoftNMS,
) -> tuple[Int64[Tensor, "D"], Float[Tensor, "D"]]:
    """Soft NMS: the best `count` candidates, best first, and their scores as they became.

    Again and again the candidate with the highest score is taken, and scores of its class fall by their IoU with it:
    times 1 - IoU where IoU >= `nms_iou` (linear), or times exp(-IoU^2 / SIGMA) (gaussian; `nms_iou` has no part in it).
    Which survive: those whose score is > `score_threshold` still when their turn comes (Bodla et al. use 0.001). No
    score ever rises, so one loop over all classes takes them in the order of final scores and may stop at `count`.
    """
    kept: list[Tensor] = []
    kept_scores: list[Tensor] = []
    boxes, left = boxes.double(), scores.double()
    while len(kept) < count and len(left) and left.max() > score_threshold:
        best = left.argmax()  # the first of equals
        kept.append(best)
        kept_scores.append(left[best].clone())
        same = (classes == classes[best]).nonzero().squeeze(1)
        overlap = iou(boxes[best][None], boxes[same])[0]
        linear = torch.where(overlap >= nms_iou, 1 - overlap, 1)
        left[same] *= linear if kind == "linear" else torch.exp(-overlap.square() / SIGMA)
        left[best] = -math.inf
    if not kept:
        return classes.new_empty(0), scores.new_empty(0)
    return torch.stack(kept), torch.stack(kept_scores).to(scores.dtype)


def vote(
    kept: Int64[Tensor, "D"],
    boxes: Float[Tensor, "C 4"],
    scores: Float[Tensor, "C"],
    classes: Int64[Tensor, "C"],
    least_iou: float,
) -> Float[Tensor, "D 4"]:
    """For each kept candidate the mean of the boxes of its class whose IoU with it is >= `least_iou`, its own included,
    weighted by their scores as they were before NMS. Sums are in float64."""
    voted = boxes[kept]
    for k in classes[kept].unique():
        mine, voters = classes[kept] == k, classes == k
        overlap = iou(boxes[kept[mine]].double(), boxes[voters].double())
        weights = torch.where(overlap >= least_iou, scores[voters].double(), 0)
        mean = weights @ boxes[voters].double() / weights.sum(dim=1, keepdim=True)
        voted[mine] = mean.to(boxes.dtype)
    return voted
