"""One pass over a training set for all that is wanted of its boxes before the first iteration."""

import hashlib

import numpy as np
from jaxtyping import Float32

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord, training_record
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data.check_proposals import without_proposals
from fastrcnn.data.sampling import TargetSums, fixed_statistics


class Survey:
    """A digest of the data and the statistics of the targets; pass `add` to open_data as `also`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.findings: list[Problem] = []  # on images that their proposals do not help
        self._digest = hashlib.blake2b(digest_size=16)
        last_pixel = config.model.size_to_last_pixel
        self._sums = TargetSums(len(config.classes) + 1, config.sampling.foreground_iou, last_pixel)

    def add(self, record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> None:
        """Add an image, unless training leaves it out; proposals float32 [P, 4] in image pixels."""
        used = training_record(record, self.config.data)
        if used is None:
            return
        self._digest.update(f"{used.id} {used.width} {used.height} {len(used.boxes)}\n".encode())
        self._digest.update(used.boxes.tobytes() + used.classes.tobytes())
        self._digest.update(np.ascontiguousarray(proposals).tobytes())
        self._sums.add(used, proposals)
        self.findings += without_proposals(used, proposals)

    @property
    def digest(self) -> str:
        """Of all that training reads from its data set but the pixels: ids, sizes, boxes, classes, proposals."""
        return self._digest.hexdigest()

    def statistics(self) -> TargetStatistics:
        fixed = self.config.sampling.target_std
        if fixed is not None:
            return fixed_statistics(len(self.config.classes) + 1, fixed)
        return self._sums.statistics(self.config.image.flip)
