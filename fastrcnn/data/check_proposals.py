"""What is wrong with the proposals of a data set, and which objects they cannot find."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.config_data import DataSetConfig
from fastrcnn.data.check_images import Digests, as_problem
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.proposals import Proposals, find_problems, read_proposals
from fastrcnn.proposals.recall import Recall, proposal_recall


def not_made_yet(dataset: DataSetConfig, config: Config) -> bool:
    """Whether the data set has no proposals so far; a file of another format than ours is not made but missing."""
    source = config.proposals.source(dataset.proposals)
    return source is None or (source.endswith(".safetensors") and not Path(source).exists())


def read_set_proposals(
    dataset: DataSetConfig, records: list[ImageRecord], config: Config
) -> tuple[Proposals | None, list[Problem]]:
    """The proposals of a data set that names some, and what is wrong with them; None: they cannot be read."""
    path = Path(config.proposals.source(dataset.proposals) or "")
    try:
        proposals = read_proposals(path, records, config.proposals)
    except FastRCNNError as e:
        return None, [as_problem("unreadable proposals", path, e)]
    return proposals, find_problems(proposals, records)


def other_pictures(proposals: Proposals, records: list[ImageRecord], digests: Digests) -> Iterator[Problem]:
    """Images whose file has changed since the proposals were made, where the proposals file can tell."""
    if proposals.stored.digests is None:
        return
    made_from = dict(zip(proposals.stored.ids, proposals.stored.digests, strict=True))
    for record in records:
        digest = digests[record.path]
        if digest is not None and digest != made_from[record.id].tobytes():
            text = f"has changed since its proposals in {proposals.path} were made; run tools/proposals.py again"
            yield Problem("proposals of another picture", record.path, None, text, "noted")


def without_proposals(record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> list[Problem]:
    """A remark if an image has no proposal [P, 4] at all."""
    if len(proposals):
        return []
    gives = "it trains on its objects alone" if len(record.boxes) else "it gives training no RoI"
    return [
        Problem("no proposals", record.path, None, f"has 0 proposals: {gives}, and nothing in it can be found", "noted")
    ]


def without_foreground(
    records: list[ImageRecord], proposals: Proposals, recall: Recall, foreground_iou: float
) -> Iterator[Problem]:
    """Images with proposals and objects, difficult ones included, none of which has a proposal with this IoU."""
    end = 0
    for record in records:
        start, end = end, end + int((~record.difficult).sum())
        if len(record.boxes) == 0 or recall.best_iou[start:end].max(initial=0) >= foreground_iou:
            continue
        if len(proposals[record.id]) == 0:
            continue
        with_difficult = replace(record, difficult=np.zeros_like(record.difficult))
        highest = proposal_recall([(with_difficult, proposals[record.id])]).best_iou.max()
        if highest < foreground_iou:
            text = f"no proposal has IoU {foreground_iou:g} with any of its objects (at most {highest:.3f})"
            hint = "; foreground comes from the objects alone, and nothing in it can be found"
            yield Problem("no foreground proposal", record.path, None, text + hint, "noted")
