"""From the plan of an iteration to its tensors: decode, scale, flip, draw RoIs. Workers only carry the plan out."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastrcnn import boxes as box_ops
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.data.image_set import ImageSet
from fastrcnn.data.sampling import PlannedImage, plan_batch, sample_rois
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.processes import ctrl_c_ignored


@dataclass(frozen=True)
class Batch:
    """One mini-batch, or one rank's part of it. RoIs are in the order of the images; R_i of them belong to image i."""

    iteration: int
    ids: list[str]  # of the whole mini-batch
    positions: list[int]  # in it, of the N images that are here
    images: list[Float32[Tensor, "3 _ _"]]  # N, normalised, scaled and flipped; none if there are maps
    maps: list[Float[Tensor, "c _ _"]]  # N outputs of the frozen layers, from a feature cache; none without one
    scales: list[float]  # N, scaled pixels per image pixel
    rois: list[Float32[Tensor, "_ 4"]]  # N, in image pixels of the flipped image
    labels: Int64[Tensor, "R"]  # 0 is background
    bbox_targets: Float32[Tensor, "R 4"]  # not normalised

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; copies do not wait when the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; DataLoader calls this for CUDA."""
        return self._each(Tensor.pin_memory)

    def parts(self, images: int) -> Iterator["Batch"]:
        """The same images, at most so many at a time."""
        rows = [0, *np.cumsum([len(boxes) for boxes in self.rois]).tolist()]
        for start in range(0, len(self.positions), images):
            own = slice(start, start + images)
            of_these = slice(rows[start], rows[min(own.stop, len(self.positions))])
            lists = {name: getattr(self, name)[own] for name in ("positions", "images", "maps", "scales", "rois")}
            yield replace(self, labels=self.labels[of_these], bbox_targets=self.bbox_targets[of_these], **lists)

    def record_stream(self, stream: torch.cuda.Stream) -> "Batch":
        """The same batch, whose memory on the GPU is not given away before the work of this stream on it is done."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        return self._each(record)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        images, maps, rois = ([change(t) for t in tensors] for tensors in (self.images, self.maps, self.rois))
        labels, targets = change(self.labels), change(self.bbox_targets)
        return replace(self, images=images, maps=maps, rois=rois, labels=labels, bbox_targets=targets)


class BatchDataset(Dataset):
    """Item i is the batch of iteration i, or the FastRCNNError that stood in its way: raised in a worker, it would
    arrive wrapped in the worker's traceback."""

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        frozen_features: Callable[[PlannedImage], Tensor] | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        """`frozen_features` gives batches maps in place of images: see train/feature_cache.py. Of `world` ranks, each
        has a part of every batch."""
        self.images, self.config, self.rank, self.world = images, config, rank, world
        self.mean, self.std, self.frozen_features = mean, std, frozen_features
        grouped = config.sampling.aspect_grouping
        self.wide = np.array([r.width >= r.height for r in images.records]) if grouped else None

    def __getitem__(self, iteration: int) -> Batch | FastRCNNError:
        try:
            return self.batch(iteration)
        except FastRCNNError as e:
            return e

    def batch(self, iteration: int) -> Batch:
        """The batch of an iteration. Raises FastRCNNError when a file of it cannot be read."""
        config, image_config = self.config, self.config.image
        per_batch = config.images_per_iteration
        planned = plan_batch(config.seed, iteration, len(self.images), image_config, per_batch, self.wide)
        first, end = (per_batch * rank // self.world for rank in (self.rank, self.rank + 1))
        images, maps, scales, drawn = [], [], [], []
        for plan in planned[first:end]:
            record, proposals = self.images[plan.index]
            scale = image_scale(record.width, record.height, plan.short_side, image_config.train_long_side)
            if self.frozen_features:
                maps.append(self.frozen_features(plan))
            else:
                images.append(self._image(record, scale, plan.flip))
            scales.append(scale)
            rois, gt_boxes = (torch.from_numpy(b) for b in (proposals, record.boxes))
            if plan.flip:
                rois, gt_boxes = (box_ops.flip(b, record.width) for b in (rois, gt_boxes))
            rng = np.random.default_rng(plan.roi_seed)
            settings = config.sampling, rng, config.model.size_to_last_pixel
            drawn.append(sample_rois(rois, gt_boxes, torch.from_numpy(record.classes), *settings))
        return Batch(
            iteration,
            [self.images.records[plan.index].id for plan in planned],
            [*range(first, end)],
            images,
            maps,
            scales,
            [d.boxes for d in drawn],
            torch.cat([d.labels for d in drawn]),
            torch.cat([d.bbox_targets for d in drawn]),
        )

    def _image(self, record: ImageRecord, scale: float, flip: bool) -> Float32[Tensor, "3 _ _"]:
        pixels = read_image(record.path)
        if pixels.shape[:2] != (record.height, record.width):
            raise FastRCNNError(f"{record.path}: has changed since training started; start again")
        return prepare_image(pixels, scale, self.mean, self.std, flip)


def batches(dataset: BatchDataset, start: int, stop: int, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches of iterations start to stop - 1, in order.

    Raises the FastRCNNError of one that cannot be made, and when a worker dies.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    for batch in _alive(loader, workers):
        if isinstance(batch, FastRCNNError):
            raise batch
        yield batch


def on_device(loaded: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device; on a GPU, the next one's copies run while this one is worked on.

    They are on a stream of their own, and pinned memory does not hold up the processor (it stays until they are done:
    torch sees to that). The stream of work waits for the event that ends its own batch's copies, not for later ones;
    and as the batch's memory belongs to the other stream, torch must be told that work uses it. What is wrong with the
    next batch is raised once this one has had its turn.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in loaded)
        return
    copying = torch.cuda.Stream(device)

    def start() -> tuple[Batch, torch.cuda.Event] | FastRCNNError | None:
        try:
            batch = next(loaded, None)
        except FastRCNNError as e:
            return e
        if batch is None:
            return None
        with torch.cuda.stream(copying):
            return batch.to(device), copying.record_event()

    following = start()
    while following is not None:
        if isinstance(following, FastRCNNError):
            raise following
        (batch, copied), following = following, start()
        working = torch.cuda.current_stream(device)
        working.wait_event(copied)
        yield batch.record_stream(working)


def _alive(loader: DataLoader, workers: int) -> Iterator[Batch | FastRCNNError]:
    """The items of a loader; a worker that dies, by the system's hand for lack of memory, is an error of our own."""
    with ctrl_c_ignored(), _no_child_signal():
        iterator = iter(loader)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as e:
            if not workers:
                raise
            raise FastRCNNError(
                f"data.workers: {str(e).splitlines()[0]}, perhaps for lack of memory; resume with --resume, and with "
                "data.workers=0 if it happens again"
            ) from None
        yield item


@contextlib.contextmanager
def _no_child_signal() -> Iterator[None]:
    """Take back the SIGCHLD handler that torch sets here, where the system has the signal.

    It would raise in the middle of a step when a worker dies; the loader notices at its next item anyway. Outside the
    main thread torch sets none. tests/test_loader.py fails should torch set it elsewhere.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if sys.platform == "win32" or not hasattr(signal, "SIGCHLD") or not in_main:
        yield
        return
    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _start_worker(_: int) -> None:
    """A worker uses one thread, and leaves Ctrl-C to the training process, which stops it in order."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
