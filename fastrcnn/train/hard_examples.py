"""Online hard example mining (Shrivastava, Gupta and Girshick 2016, arXiv 1604.03540): learn from RoIs of high loss.

Many RoIs of each image go through the fully connected layers without gradient, those that the network does worst on
through the training step. The convolutions run once for both. As in the authors' code (abhi2610/ohem,
lib/roi_data_layer), but for the IoU, which is that of unscaled half-open boxes as everywhere here.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.config_train import SamplingConfig
from fastrcnn.data.loader import Batch
from fastrcnn.data.sampling import MINING_DROPOUT, dropout_seed
from fastrcnn.model.fast_rcnn import FastRCNN, Features
from fastrcnn.model.losses import roi_losses

NMS_IOU = 0.7  # TRAIN.OHEM_NMS_THRESH of lib/fast_rcnn/config.py


def learnt_from(rois: int, config: SamplingConfig) -> int:
    """How many of so many RoIs of an image are learnt from; of hard examples at most."""
    return min(rois, config.rois_per_image) if config.hard_candidates else rois


@torch.no_grad()
def hardest_batch(
    model: FastRCNN,
    features: Features,
    batch: Batch,
    statistics: TargetStatistics,
    config: Config,
) -> Batch:
    """The batch with the hardest sampling.rois_per_image RoIs of each image alone; `features` are its maps.

    The loss that ranks them has dropout, with masks of its own, as in the authors' train.prototxt.
    """
    seeds = [dropout_seed(config.seed, batch.iteration, position, MINING_DROPOUT) for position in batch.positions]
    scores, deltas = model.head_without_gradient(features, batch.rois, batch.scales, seeds)
    targets = statistics.normalise(batch.bbox_targets, batch.labels)
    loss = roi_losses(scores, deltas, batch.labels, targets, config.solver.bbox_loss_weight)
    rois, kept, start = [], [], 0
    for boxes in batch.rois:
        own = slice(start, start + len(boxes))
        rows = hardest(boxes, batch.labels[own], loss[own], config.sampling.rois_per_image)
        rois.append(boxes[rows])
        kept.append(start + rows)
        start = own.stop
    rows = torch.cat(kept)
    return replace(batch, rois=rois, labels=batch.labels[rows], bbox_targets=batch.bbox_targets[rows])


def hardest(
    boxes: Float[Tensor, "R 4"], labels: Int64[Tensor, "R"], losses: Float[Tensor, "R"], count: int
) -> Int64[Tensor, "_"]:
    """The rows of an image's `count` RoIs of highest loss, hardest first; the first of equals.

    Without RoIs that have the label of a harder one and overlap it by more than NMS_IOU: their losses would count the
    same mistake twice. Boxes are in image pixels.
    """
    # In float64 and sorted, for what batched_nms does to boxes, and its order, depend on how many there are.
    kept = batched_nms(boxes.double(), losses.double(), labels, NMS_IOU).sort().values
    return kept[losses[kept].argsort(descending=True, stable=True)[:count]]
