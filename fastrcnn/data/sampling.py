"""Which images, then which RoIs: the image-centric mini-batches of section 2.3.

The batch of iteration i is a pure function of (seed, i). Nothing here keeps state, so resuming is starting at i, and
the number of loader processes changes no batch.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import ImageConfig
from fastrcnn.config_train import SamplingConfig

# What a random number is for; keeps the streams of one seed apart.
EPOCH_ORDER, ROIS, DROPOUT, MINING_DROPOUT, SVM_IMAGES = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class PlannedImage:
    """One image of one batch: its index among the records, mirrored or not, short side in pixels, seed of its RoIs."""

    index: int
    flip: bool
    short_side: int
    roi_seed: tuple[int, ...]


@dataclass(frozen=True)
class SampledRoIs:
    """What one image gives to a batch."""

    boxes: Float32[Tensor, "R 4"]  # image pixels
    labels: Int64[Tensor, "R"]  # 0 is background
    bbox_targets: Float32[Tensor, "R 4"]


def plan_batch(
    seed: int,
    iteration: int,
    image_count: int,
    config: ImageConfig,
    images_per_batch: int,
    wide: Bool[np.ndarray, "I"] | None = None,
) -> list[PlannedImage]:
    """The images of one iteration (counted from 0) of a set of `image_count`; `config` says flips and scales.

    With `wide`, which of the images are (width >= height), batches hold wide images or others alone, but for one of an
    epoch where the numbers do not come out even (py-faster-rcnn, lib/roi_data_layer/layer.py).

    The set is doubled by flips; an epoch is floor(set / N) iterations over its own permutation. The original
    (fast-rcnn lib/roi_data_layer/layer.py) reshuffles as soon as N or fewer are left (cur + N >= len), so that the last
    N of a set that N divides are not shown in that pass; here they are.
    """
    entries = image_count * (2 if config.flip else 1)
    per_epoch = max(entries // images_per_batch, 1)
    epoch, step = divmod(iteration, per_epoch)
    order = _epoch_order(seed, epoch, entries, images_per_batch, None if wide is None else wide.tobytes())
    planned = []
    for position, entry in enumerate(order[step].tolist()):
        roi_seed = (seed, ROIS, iteration, position)
        side = np.random.default_rng((*roi_seed, 1)).choice(config.train_short_side)
        planned.append(PlannedImage(entry % image_count, entry >= image_count, int(side), roi_seed))
    return planned


@functools.lru_cache(maxsize=2)  # else each iteration would take time in proportion to the set
def _epoch_order(seed: int, epoch: int, entries: int, images_per_batch: int, wide: bytes | None) -> np.ndarray:
    """The entries of each iteration of an epoch, int64 [iterations, images_per_batch]; `wide` as for plan_batch."""
    per_epoch = max(entries // images_per_batch, 1)
    rng = np.random.default_rng((seed, EPOCH_ORDER, epoch))
    order = np.resize(rng.permutation(entries), per_epoch * images_per_batch)
    steps: np.ndarray | slice = slice(None)
    if wide is not None:
        is_wide = np.frombuffer(wide, bool)
        order = order[np.argsort(~is_wide[order % len(is_wide)], kind="stable")]
        steps = rng.permutation(per_epoch)
    return order.reshape(per_epoch, images_per_batch)[steps]


def dropout_seed(seed: int, iteration: int, position: int, stream: int = DROPOUT) -> int:
    """The seed of the dropout masks of one image's RoIs, a 63-bit number: the image at this position of the mini-batch
    of one iteration, whichever process has it. MINING_DROPOUT gives other masks."""
    return int(np.random.default_rng((seed, stream, iteration, position)).integers(2**63))


def sample_rois(
    proposals: Float32[Tensor, "P 4"],
    gt_boxes: Float32[Tensor, "G 4"],
    gt_classes: Int64[Tensor, "G"],
    config: SamplingConfig,
    rng: np.random.Generator,
    last_pixel: bool = False,
) -> SampledRoIs:
    """Draw one image's share of the mini-batch, without replacement (fast-rcnn lib/roi_data_layer/minibatch.py).

    Boxes are in unscaled image pixels. The objects themselves are among the RoIs. At most R / N RoIs: up to a quarter
    foreground (IoU >= 0.5 with some object), the rest background (IoU in [0.1, 0.5)); fewer when there are not enough.
    An image without objects gives background from all its proposals. `last_pixel` is as for encode.

    With config.hard_candidates, so many RoIs for hard example mining to choose from: all objects, and others in
    whatever shares they come, background from IoU 0 on.
    """
    rois = torch.cat((gt_boxes, proposals))
    overlap, nearest = torch.zeros(len(rois)), torch.zeros(len(rois), dtype=torch.int64)
    low, high = config.background_iou
    if len(gt_boxes):
        overlap, nearest = box_ops.iou(rois, gt_boxes).max(dim=1)
    if not len(gt_boxes) or config.hard_candidates:
        low = 0.0
    foreground = torch.nonzero(overlap >= config.foreground_iou).squeeze(1)
    background = torch.nonzero((overlap >= low) & (overlap < high)).squeeze(1)
    if config.hard_candidates:
        objects = torch.arange(len(gt_boxes))
        others = torch.cat((foreground, background))
        others = others[others >= len(objects)]
        chosen = torch.cat((objects, _choose(others, max(config.hard_candidates - len(objects), 0), rng)))
    else:
        foreground = _choose(foreground, round(config.foreground_fraction * config.rois_per_image), rng)
        chosen = torch.cat((foreground, _choose(background, config.rois_per_image - len(foreground), rng)))

    labels, bbox_targets = torch.zeros(len(chosen), dtype=torch.int64), torch.zeros(len(chosen), 4)
    rows = torch.nonzero(overlap[chosen] >= config.foreground_iou).squeeze(1)
    matched = nearest[chosen[rows]]
    labels[rows] = gt_classes[matched]
    bbox_targets[rows] = box_ops.encode(rois[chosen[rows]], gt_boxes[matched], last_pixel)
    return SampledRoIs(rois[chosen], labels, bbox_targets)


def _choose(candidates: Int64[Tensor, "_"], wanted: int, rng: np.random.Generator) -> Int64[Tensor, "_"]:
    if len(candidates) <= wanted:
        return candidates
    return candidates[torch.from_numpy(rng.permutation(len(candidates))[:wanted])]


AT_ONCE = 64  # images whose targets are computed together: of one there are few, and each operation costs its call
MIN_STD = 0.01  # ours: a class with one foreground RoI has std 0, which would divide its targets by nothing


class TargetSums:
    """Statistics over all RoIs with IoU >= foreground_iou, objects and flipped images included, image by image.

    As add_bbox_regression_targets in fast-rcnn lib/roi_data_layer/roidb.py: population variance E[x^2] - E[x]^2 per
    class. A flip changes the sign of dx alone, so the mirrored half of the set need not be visited.
    """

    def __init__(self, num_classes: int, foreground_iou: float, last_pixel: bool = False) -> None:
        self.foreground_iou, self.last_pixel = foreground_iou, last_pixel
        self.count = torch.zeros(num_classes, 1, dtype=torch.float64)
        self.total = torch.zeros(num_classes, 4, dtype=torch.float64)
        self.squares = torch.zeros(num_classes, 4, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # foreground RoIs, their objects, and classes

    def add(self, record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> None:
        """Add the RoIs of one image; proposals [P, 4] in image pixels."""
        if not len(record.boxes):
            return
        gt_boxes, gt_classes = torch.from_numpy(record.boxes), torch.from_numpy(record.classes)
        rois = torch.cat((gt_boxes, torch.from_numpy(proposals)))
        overlap, nearest = box_ops.iou(rois, gt_boxes).max(dim=1)
        foreground = torch.nonzero(overlap >= self.foreground_iou).squeeze(1)
        matched = nearest[foreground]
        self._waiting.append((rois[foreground], gt_boxes[matched], gt_classes[matched]))
        if len(self._waiting) == AT_ONCE:
            self._add_waiting()

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        rois, objects, labels = map(torch.cat, zip(*self._waiting, strict=True))
        self._waiting.clear()
        targets = box_ops.encode(rois, objects, self.last_pixel).double()
        self.count.index_add_(0, labels, torch.ones(len(labels), 1, dtype=torch.float64))
        self.total.index_add_(0, labels, targets)
        self.squares.index_add_(0, labels, targets.square())

    def numbers(self) -> list[Any]:
        """All that was added, as JSON holds it, to the bit."""
        self._add_waiting()
        return [self.count.tolist(), self.total.tolist(), self.squares.tolist()]

    def put_numbers(self, numbers: list[Any]) -> None:
        """The inverse of `numbers`. Raises ValueError for what is not of as many classes."""
        tensors = [torch.tensor(rows, dtype=torch.float64) for rows in numbers]
        if [t.shape for t in tensors] != [t.shape for t in (self.count, self.total, self.squares)]:
            raise ValueError("the sums are not of these classes")
        self.count, self.total, self.squares = tensors

    def statistics(self, flip: bool) -> TargetStatistics:
        """Mean and std of every class, [K, 4], with or without the flipped half of the set."""
        self._add_waiting()
        count, total = self.count.clamp(min=1), self.total.clone()
        if flip:
            total[:, 0] = 0
        mean = total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        std = torch.where(self.count > 0, variance.sqrt().clamp(min=MIN_STD), torch.ones_like(mean))
        return TargetStatistics(mean.float(), std.float())


def fixed_statistics(num_classes: int, std: list[float]) -> TargetStatistics:
    """Mean 0 and the same std for every class (sampling.target_std); the background's are 0 and 1 as always."""
    rows = torch.tensor(std).repeat(num_classes, 1)
    rows[0] = 1
    return TargetStatistics(torch.zeros(num_classes, 4), rows)
