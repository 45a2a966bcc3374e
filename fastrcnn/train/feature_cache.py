"""The output of the frozen layers never changes: compute it once for each image, flip and scale, and train from there.

A file for each, named by what the picture holds and how it is shown, in a folder named by all else that the numbers
depend on. Nothing can go stale: what depends on something else has another name. Runs that freeze the same layers
share their files.
"""

import contextlib
import copy
import functools
import hashlib
import logging
import math
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import PIL
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.data.sampling import PlannedImage
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import file_digest, lock, read_tensors, remove_leftovers, write_tensors
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model.backbones import Normalisation
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.ranks import ALONE, Ranks
from fastrcnn.train import int8_features

log = logging.getLogger(__name__)

VERSION = 1  # of what is stored; a change of fastrcnn that changes the numbers raises it
NAME = "maps"  # the tensor in a file, [h, w, c]: as convolutions in channels_last leave it
STEPS = "int8_steps.safetensors"  # in the folder of maps in int8: of each activation
MEASURED = 300  # images, evenly spread, by which the steps of int8 are measured
Entry: TypeAlias = tuple[int, bool, int]  # index of the image, flip, short side


class FeatureCache:
    """FastRCNN.frozen_features of every image that training can ask for, bit for bit; with cache_precision, in int8.

    `make` computes what is missing. Reading needs no network: loader processes carry the cache along.
    """

    step: float | None = None  # of maps in int8, once they are made

    def __init__(self, records: Sequence[ImageRecord], config: Config, model: FastRCNN):
        """Raises FastRCNNError when no layer is frozen, and for an image that cannot be read."""
        if not model.frozen_depth:
            raise FastRCNNError("cache_features: no layer is frozen; set model.freeze_up_to, or cache_features: false")
        self.int8 = config.cache_precision == "int8" and int8_features.possible(model)
        self.records, self.image = records, config.image
        self.digests = [_digest(record) for record in records]
        self.dtype = model.feature_type
        self.stored = torch.uint8 if self.int8 else self.dtype
        measured = (self.digests[:: self._apart], self.image.train_short_side[0]) if self.int8 else None
        self.folder = Path(config.feature_cache) / _key(model, config.image.train_long_side, measured)
        self.shapes = _shapes(model, {self._size(index, side) for index, _, side in self._entries()})

    def path(self, index: int, flip: bool, short_side: int) -> Path:
        """The file of image `index` of the records, mirrored or not, its short side scaled to so many pixels."""
        return self.folder / f"{self.digests[index]}-{short_side}{'-flip' if flip else ''}.safetensors"

    @property
    def _apart(self) -> int:
        """How far apart the images are that int8 is measured on."""
        return max(math.ceil(len(self.records) / MEASURED), 1)

    def _scale(self, index: int, short_side: int) -> float:
        record = self.records[index]
        return image_scale(record.width, record.height, short_side, self.image.train_long_side)

    def _size(self, index: int, short_side: int) -> tuple[int, int]:
        """Width and height that prepare_image gives, in scaled pixels."""
        record, scale = self.records[index], self._scale(index, short_side)
        return max(round(record.width * scale), 1), max(round(record.height * scale), 1)

    def features(self, plan: PlannedImage) -> Float[Tensor, "c h w"]:
        """What the frozen layers make of a planned image, in their layout and type.

        Raises FastRCNNError for a damaged file.
        """
        path = self.path(plan.index, plan.flip, plan.short_side)
        try:
            with safe_open(path, "pt") as file:
                maps = file.get_tensor(NAME).permute(2, 0, 1)
        except (OSError, SafetensorError, ValueError, RuntimeError) as e:
            raise FastRCNNError(f"{path}: cannot be read ({e}); remove it and --resume: it is made again") from None
        if maps.shape != self.shapes[self._size(plan.index, plan.short_side)] or maps.dtype != self.stored:
            raise FastRCNNError(f"{path}: is of another image; remove it and --resume: it is made again")
        return maps if self.step is None else maps.to(self.dtype).mul_(self.step)

    def make(self, model: FastRCNN, device: torch.device, stop: threading.Event, ranks: Ranks = ALONE) -> None:
        """Compute what is missing, image by image; a finished file stays, whatever happens. Ranks share the work, and,
        where machines share no disk, those of each machine what is then still missing there.

        Raises KeyboardInterrupt once `stop` is set, FastRCNNError for too small a disk, and while another
        process makes the same features.
        """
        missing = [entry for entry in self._entries() if self._is_missing(*entry)]
        whole, size = (sum(map(self._nbytes, entries)) for entries in (self._entries(), missing))
        all_, left = (tqdm.format_sizeof(n, "B") for n in (whole, size))
        log.info("features of the frozen layers: %s in %s, %s to make", all_, self.folder, left)
        if ranks.any(bool(missing) or self.int8 and not self._steps.exists()):
            self._make_missing(model, device, stop, ranks, size)
        if self.int8:
            self.step = int8_features.output_step(model, self._read_steps())

    def _make_missing(
        self, model: FastRCNN, device: torch.device, stop: threading.Event, ranks: Ranks, size: int
    ) -> None:
        one = not ranks.local_rank  # of this machine's
        with lock(self.folder / ".lock", "the feature cache") if one else contextlib.nullcontext():
            if one:
                remove_leftovers(self.folder)
                self._refuse_small_disk(size)
                if self.int8 and not self._steps.exists():
                    self._measure_steps(model, device, stop)
            ranks.wait()
            layers = int8_features.frozen_features(model, self._read_steps()) if self.int8 else model.frozen_features
            for part, of, show in (
                (ranks.rank, ranks.world, ranks.main),
                (ranks.local_rank, ranks.local_world, one),
            ):
                missing = [e for i, e in enumerate(self._entries()) if i % of == part and self._is_missing(*e)]
                images = self._images(missing, "frozen features", model.normalisation, device, stop, show)
                for entry, image in zip(missing, images, strict=True):
                    write_tensors(self.path(*entry), {NAME: layers(image).permute(1, 2, 0)}, {})
                ranks.wait()

    def _images(
        self,
        entries: Sequence[Entry],
        what: str,
        normalisation: Normalisation,
        device: torch.device,
        stop: threading.Event,
        show: bool,
    ) -> Iterator[Float[Tensor, "3 _ _"]]:
        """What the first layer takes of each entry, under a bar. Raises KeyboardInterrupt once `stop` is set."""
        read = functools.lru_cache(maxsize=1)(read_image)
        bar = tqdm(entries, what, unit="image", mininterval=1, dynamic_ncols=True, disable=not (show and entries))
        with logging_redirect_tqdm():
            for index, flip, side in bar:
                if stop.is_set():
                    raise KeyboardInterrupt
                pixels, scale = read(self.records[index].path), self._scale(index, side)
                yield prepare_image(pixels, scale, normalisation.mean, normalisation.std, flip).to(device)

    @property
    def _steps(self) -> Path:
        return self.folder / STEPS

    def _measure_steps(self, model: FastRCNN, device: torch.device, stop: threading.Event) -> None:
        side = self.image.train_short_side[0]
        entries = [(index, False, side) for index in range(0, len(self.records), self._apart)]
        images = self._images(entries, "measuring activations", model.normalisation, device, stop, show=True)
        write_tensors(self._steps, int8_features.measure(model, images), {})

    def _read_steps(self) -> dict[str, Tensor]:
        try:
            return read_tensors(self._steps)[0]
        except FastRCNNError as e:
            raise FastRCNNError(f"{e}, or remove it and --resume: it is measured again") from None

    def _is_missing(self, index: int, flip: bool, side: int) -> bool:
        path = self.path(index, flip, side)
        return not path.exists() or path.stat().st_size < self._nbytes((index, flip, side))

    def _nbytes(self, entry: tuple[int, bool, int]) -> int:
        index, _, side = entry
        return self.shapes[self._size(index, side)].numel() * self.stored.itemsize

    def _refuse_small_disk(self, size: int) -> None:
        free, left = shutil.disk_usage(self.folder).free, tqdm.format_sizeof(size, "B")
        if free < size:
            raise FastRCNNError(
                f"{self.folder}: the features need {left}, the disk has {tqdm.format_sizeof(free, 'B')} left; "
                "free space, set feature_cache to another disk, or cache_features: false and cache_precision: null"
            )

    def _entries(self) -> Iterator[Entry]:
        """Everything that a plan can ask for."""
        for index in range(len(self.records)):
            for side in dict.fromkeys(self.image.train_short_side):
                for flip in (False, True) if self.image.flip else (False,):
                    yield index, flip, side


def _shapes(model: FastRCNN, sizes: set[tuple[int, int]]) -> dict[tuple[int, int], torch.Size]:
    """What frozen_features makes of pictures of these sizes (width, height in scaled pixels), without computing it."""
    layers = copy.deepcopy(model.backbone[: model.frozen_depth]).to("meta")
    return {(w, h): layers(torch.empty(1, 3, h, w, device="meta")).shape[1:] for w, h in sizes}


def _digest(record: ImageRecord) -> str:
    try:
        return file_digest(record.path).hex()
    except OSError as e:
        raise FastRCNNError(f"{record.path}: cannot be read: {e.strerror}; restore it or leave it out") from None


def _key(model: FastRCNN, long_side: int, measured: tuple[list[str], int] | None) -> str:
    """A digest of all that the numbers depend on but the picture: weights, pixels in, arithmetic, libraries; in int8,
    the pictures that it is measured on, and their short side."""
    layers = model.backbone[: model.frozen_depth]
    libraries = (torch.__version__, cv2.__version__, PIL.__version__, torch.backends.cpu.get_cpu_capability())
    names = [name for name, _ in layers.named_children()]
    # Written as the first version's class was called and wrote itself, so that features of that time still serve.
    pixels = f"Normalisation(mean={model.normalisation.mean}, deviation={model.normalisation.std})"
    about = f"(({VERSION}, {names}, {pixels}, {model.precision!r}), {model.device.type!r}, {long_side}, {libraries})"
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for tensor in layers.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    if measured is not None:
        digest.update(f"int8 {measured}".encode())
    return digest.hexdigest()
