"""The multi-task loss (section 2.3, equations 1 to 3).

Shapes: R RoIs in the batch, K classes with background, K4 = 4 * K.
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
    rois: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Softmax cross-entropy and smooth L1 of the true class's box, each divided by R, or by `rois`, where these R are a
    part of a mini-batch of so many.

    Deltas and targets are normalised; label 0 is background. Both losses divide by all R rows, foreground or not, as
    the Caffe layers do (softmax_loss_layer.cpp and smooth_L1_loss_layer.cu). No RoIs give zero.
    """
    rois = max(len(labels) if rois is None else rois, 1)
    loss_cls = F.cross_entropy(scores, labels, reduction="sum") / rois
    loss_bbox = _box_losses(deltas, labels, bbox_targets).sum() / rois
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
    boxes = _box_losses(deltas, labels, bbox_targets).sum(dim=1)
    return F.cross_entropy(scores, labels, reduction="none") + bbox_loss_weight * boxes


def _box_losses(
    deltas: Float[Tensor, "R K4"], labels: Int64[Tensor, "R"], bbox_targets: Float[Tensor, "R 4"]
) -> Float[Tensor, "R 4"]:
    """Smooth L1 of the true class's box, 0 for background. Of all rows: to pick out those of foreground, the processor
    would have to wait until a GPU says how many they are."""
    predicted = deltas.unflatten(1, (-1, 4)).take_along_dim(labels[:, None, None], dim=1).squeeze(1)
    return F.smooth_l1_loss(predicted, bbox_targets, reduction="none", beta=1.0).where(labels[:, None] > 0, 0.0)


@torch.no_grad()
def counts(scores: Float[Tensor, "R K"], labels: Int64[Tensor, "R"]) -> dict[str, Shaped[Tensor, ""]]:
    """How classification stands, as scalars on the same device: RoIs, those classified right, foreground RoIs, of which
    classified right, and called background. Those of parts of a mini-batch add up."""
    predicted, foreground = scores.argmax(dim=1), labels > 0
    right = predicted == labels
    return {
        "rois": torch.full((), len(labels), device=labels.device),  # no copy from the processor
        "right": right.sum(),
        "foreground": foreground.sum(),
        "foreground_right": (right & foreground).sum(),
        "foreground_missed": ((predicted == 0) & foreground).sum(),
    }


def diagnostics(counted: dict[str, float]) -> dict[str, float]:
    """Of what `counts` counted: accuracy of all and of foreground RoIs, the share of foreground RoIs called background,
    and their number. Shares of nothing are NaN."""
    foreground = counted["foreground"]
    return {
        "accuracy": _share(counted["right"], counted["rois"]),
        "fg_accuracy": _share(counted["foreground_right"], foreground),
        "false_negatives": _share(counted["foreground_missed"], foreground),
        "foreground": foreground,
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
