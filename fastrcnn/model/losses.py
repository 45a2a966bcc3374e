"""The multi-task loss (section 2.3, equations 1 to 3).

Shapes: R RoIs in the batch, K classes with background.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor


def multi_task_loss(
    scores: Float[Tensor, "R K"],
    deltas: Float[Tensor, "R 4*K"],
    labels: Int64[Tensor, "R"],
    bbox_targets: Float[Tensor, "R 4"],
    bbox_loss_weight: float,
) -> dict[str, Float[Tensor, ""]]:
    """Softmax cross-entropy and smooth L1 of the true class's box, each divided by R.

    Deltas and targets are normalised; label 0 is background. Both losses divide by all R rows, foreground or not, as
    the Caffe layers do (softmax_loss_layer.cpp and smooth_L1_loss_layer.cu). No RoIs give zero.
    """
    rois = max(len(labels), 1)
    loss_cls = F.cross_entropy(scores, labels, reduction="sum") / rois
    foreground = labels.nonzero().squeeze(1)
    predicted = deltas.unflatten(1, (-1, 4))[foreground, labels[foreground]]
    loss_bbox = F.smooth_l1_loss(predicted, bbox_targets[foreground], reduction="sum", beta=1.0) / rois
    return {"loss_cls": loss_cls, "loss_bbox": bbox_loss_weight * loss_bbox}


@torch.no_grad()
def roi_losses(
    scores: Float[Tensor, "R K"],
    deltas: Float[Tensor, "R 4*K"],
    labels: Int64[Tensor, "R"],
    bbox_targets: Float[Tensor, "R 4"],
    bbox_loss_weight: float,
) -> Float[Tensor, "R"]:
    """What each RoI adds to the sum of both losses of multi_task_loss, before it is divided by R."""
    loss = F.cross_entropy(scores, labels, reduction="none")
    foreground = labels.nonzero().squeeze(1)
    predicted = deltas.unflatten(1, (-1, 4))[foreground, labels[foreground]]
    boxes = F.smooth_l1_loss(predicted, bbox_targets[foreground], reduction="none", beta=1.0)
    loss[foreground] += bbox_loss_weight * boxes.sum(dim=1)
    return loss


@torch.no_grad()
def diagnostics(scores: Float[Tensor, "R K"], labels: Int64[Tensor, "R"]) -> dict[str, Shaped[Tensor, ""]]:
    """How classification stands: accuracy of all and of foreground RoIs, the share of foreground RoIs called
    background, and their number, as scalars on the same device. Shares of nothing are NaN."""
    predicted, foreground = scores.argmax(dim=1), labels > 0
    right, count = predicted == labels, foreground.sum()
    return {
        "accuracy": right.sum() / len(labels),
        "fg_accuracy": (right & foreground).sum() / count,
        "false_negatives": ((predicted == 0) & foreground).sum() / count,
        "foreground": count,
    }
