"""What other settings of selective search would find, and cost, on some of the user's own pictures."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.images import read_image
from fastrcnn.processes import cores, map_images
from fastrcnn.proposals.dense import find_proposals
from fastrcnn.proposals.recall import Recall, proposal_recall
from fastrcnn.proposals.selective_search import WAYS

LOW = 0.6  # recall at IoU 0.5; on VOC 2007 it is 0.94
SAMPLE = 20  # images


@dataclass(frozen=True)
class Trial:
    """Selective search with some settings on a sample of images."""

    settings: dict[str, str | int]  # what differs from the configuration
    images: int
    recall: Recall
    boxes: float  # of an image
    seconds: float  # of an image, on one core


def is_low(recall: Recall) -> bool:
    """Whether the proposals miss so many objects, of all or of small ones if these are most, that a cure is due."""
    small = recall.of_size("small")
    shares = [recall.overall()[0]] + [recall.by_size()["small"][0]] * bool(small.sum() * 2 > len(small))
    return len(small) > 0 and bool(min(shares) < LOW)


def try_settings(
    records: Sequence[ImageRecord], config: ProposalsConfig, count: int = SAMPLE, processes: int | None = None
) -> list[Trial]:
    """The configured settings, `quality`, and a larger long side, on `count` images with objects, the same for all.

    The images are drawn with a seed. None without such images. Raises FastRCNNError for one that cannot be read.
    """
    labelled = [record for record in records if not record.difficult.all()]
    sample = random.Random(0).sample(labelled, min(count, len(labelled)))
    if not sample:
        return []
    variants = _variants(sample, config)
    jobs = [(record, config.model_copy(update=settings)) for settings in variants for record in sample]
    found = list(map_images(_search, jobs, min(processes or cores(), len(jobs)), "trying settings"))
    trials = []
    for i, settings in enumerate(variants):
        rows = found[i * len(sample) : (i + 1) * len(sample)]
        recall = proposal_recall(zip(sample, (boxes for boxes, _ in rows), strict=True))
        boxes, seconds = (float(np.mean(values)) for values in ([len(b) for b, _ in rows], [s for _, s in rows]))
        trials.append(Trial(settings, len(sample), recall, boxes, seconds))
    return trials


def _variants(sample: Sequence[ImageRecord], config: ProposalsConfig) -> list[dict[str, str | int]]:
    variants: list[dict[str, str | int]] = [{}]
    if config.method != "quality":
        variants.append({"method": "quality"})
    longest = max(max(record.width, record.height) for record in sample)
    own_side = config.method in WAYS and WAYS[config.method].long_side
    if longest > config.long_side and not own_side:
        variants.append({"long_side": min(longest, 2 * config.long_side)})
    return variants


def _search(job: tuple[ImageRecord, ProposalsConfig]) -> tuple[np.ndarray, float]:
    """Boxes [P, 4] of an image, and the seconds that finding them took."""
    record, config = job
    image = read_image(record.path)
    start = time.perf_counter()
    return find_proposals(image, record.id, config), time.perf_counter() - start
