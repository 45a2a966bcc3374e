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
from fastrcnn.proposals.proposals import Proposals, Visit, find_problems, read_proposals
from fastrcnn.proposals.recall import Covering, proposal_recall


def not_made_yet(dataset: DataSetConfig, config: Config) -> bool:
    """Whether the data set has no proposals so far; a file of another format than ours is not made but missing."""
    source = config.proposals.source(dataset.proposals)
    return source is None or (source.endswith(".safetensors") and not Path(source).exists())


def read_set_proposals(
    dataset: DataSetConfig, records: list[ImageRecord], config: Config, also: Visit
) -> tuple[Proposals | None, list[Problem]]:
    """The proposals of a data set that names some, and what is wrong with them; None: they cannot be read.

    `also` is as for find_problems.
    """
    path = Path(config.proposals.source(dataset.proposals) or "")
    try:
        proposals = read_proposals(path, records, config.proposals)
    except FastRCNNError as e:
        return None, [as_problem("unreadable proposals", path, e)]
    return proposals, find_problems(proposals, records, also)


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


class Coverage:
    """What one pass over the proposals of a data set tells of its objects; `add` is for find_problems."""

    def __init__(self, foreground_iou: float) -> None:
        self.foreground_iou, self.covering = foreground_iou, Covering()
        self.without_proposals: list[Problem] = []
        self.without_foreground: list[Problem] = []  # images with proposals and objects, none of which has this IoU

    def add(self, record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> None:
        self.without_proposals += without_proposals(record, proposals)
        best = self.covering.add(record, proposals)
        if not len(record.boxes) or not len(proposals) or max(best, default=0) >= self.foreground_iou:
            return
        with_difficult = replace(record, difficult=np.zeros_like(record.difficult))
        highest = proposal_recall([(with_difficult, proposals)]).best_iou.max()
        if highest < self.foreground_iou:
            text = f"no proposal has IoU {self.foreground_iou:g} with any of its objects (at most {highest:.3f})"
            hint = "; foreground comes from the objects alone, and nothing in it can be found"
            self.without_foreground.append(Problem("no foreground proposal", record.path, None, text + hint, "noted"))
