"""The proposals of all data sets of a run: searched where the file is ours, and how many objects they cover."""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fastrcnn.annotations.problems import Problem, refuse_errors
from fastrcnn.annotations.read import absent, distinct_ids, read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.config_data import PARTS, DataSetConfig
from fastrcnn.data.check_labels import nothing_labelled
from fastrcnn.errors import FastRCNNError
from fastrcnn.processes import cores
from fastrcnn.proposals.make import ImagesFailedError, make_part, make_proposals
from fastrcnn.proposals.proposals import open_proposals
from fastrcnn.proposals.recall import Covering, Recall
from fastrcnn.proposals.unfinished import Part
from fastrcnn.ranks import joined

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProposedSet:
    """One data set with its proposals."""

    name: str  # such as data.train.0 (VOC2007 trainval)
    path: str  # the file of proposals, or "dense boxes"
    records: Sequence[ImageRecord]
    boxes: int  # in all its images
    recall: Recall

    @property
    def searched(self) -> bool:
        """Whether the proposals are of our own search; other files are only checked."""
        return self.path.endswith(".safetensors")


ReadSet: TypeAlias = tuple[str, DataSetConfig, list[ImageRecord]]  # a data set by its name, and its images


@dataclass(frozen=True)
class FinishedPart:
    """One part of the search for one file."""

    path: str
    images: int  # of the part
    searched: int  # of these, now


def propose(config: Config, processes: int | None = None) -> Iterator[ProposedSet]:
    """Each data set of the run, once its proposals are complete; several may share one file.

    All annotations are read first. Where torchrun has started several ranks, each searches a part of the images, on its
    share of the cores; the first then joins them, and the others get nothing here. Raises FastRCNNError for what
    read_data_sets, make_proposals and open_proposals refuse, a data set that names no proposals, unless it is of
    data.test, which evaluation searches, and a training set without objects.
    """
    with joined("cpu") as ranks:
        with ranks.one_first():
            by_file = _sets_by_file(config)
        if ranks.world > 1:
            part, share = Part(ranks.rank + 1, ranks.world), max(cores() // ranks.local_world, 1)
            with contextlib.suppress(ImagesFailedError):  # of which the first rank says more when it tries them again
                for _ in _search_part(by_file, config, part, processes or share):
                    pass
            ranks.wait()
        if ranks.main:
            yield from _completed(by_file, config, processes)


def propose_part(config: Config, part: Part, processes: int | None = None) -> Iterator[FinishedPart]:
    """Search one part of the images for each file of proposals that is ours; `propose` joins the parts.

    Raises FastRCNNError for what read_data_sets and make_part refuse, and when there is no such file.
    """
    by_file = _sets_by_file(config)
    if not any(path.endswith(".safetensors") for path in by_file):
        raise FastRCNNError(
            "data: no data set has a .safetensors file of proposals, and others are only read: there is nothing to "
            "search in parts; name one"
        )
    return _search_part(by_file, config, part, processes)


def _search_part(
    by_file: Mapping[str, list[ReadSet]], config: Config, part: Part, processes: int | None
) -> Iterator[FinishedPart]:
    failed = None
    for path, sets in by_file.items():
        if path.endswith(".safetensors"):
            try:
                images, searched = make_part(_images(sets), path, config.proposals, part, processes)
            except ImagesFailedError as e:  # the next file does not need them
                failed = e
            else:
                yield FinishedPart(path, images, searched)
    if failed:
        raise failed


def _completed(by_file: Mapping[str, list[ReadSet]], config: Config, processes: int | None) -> Iterator[ProposedSet]:
    for path, sets in by_file.items():
        if path.endswith(".safetensors"):
            make_proposals(_images(sets), path, config.proposals, processes)
        for name, _, records in sets:
            covering = Covering()
            open_proposals(path, records, config.proposals, covering.add)
            yield ProposedSet(name, path, records, covering.boxes, covering.recall())


def _images(sets: Sequence[ReadSet]) -> list[ImageRecord]:
    """Of all sets of one file: an image of two of them is searched once."""
    _, datasets, images = zip(*sets, strict=True)
    distinct, _ = distinct_ids(datasets, images)
    return [r for records in distinct for r in records]


def _sets_by_file(config: Config) -> dict[str, list[ReadSet]]:
    by_path = defaultdict(list)
    labelled: list[ImageRecord] = []
    left_out: list[Problem] = []
    _refuse_absent(config)
    for part in PARTS:
        for i, dataset in enumerate(getattr(config.data, part)):
            key = f"data.{part}.{i}"
            source = config.proposals.source(dataset.proposals)
            if not source and part == "test":
                log.info(
                    "%s (%s): names no file of proposals, and is searched when it is evaluated", key, dataset.label
                )
                continue
            if not source:
                raise FastRCNNError(f"{key}.proposals is not set; name a file, such as proposals.safetensors")
            problems: list[Problem] = []
            records = read_data_sets([dataset], config.data, config.classes, problems)
            if part == "train":
                labelled += records
                left_out += problems
            by_path[source].append((f"{key} ({dataset.label})", dataset, records))
    nothing = nothing_labelled("train", labelled, left_out, config.classes)
    refuse_errors([nothing] if nothing else [])
    return by_path


def _refuse_absent(config: Config) -> None:
    """Before another set is fetched."""
    for part in PARTS:
        for i, dataset in enumerate(getattr(config.data, part)):
            lacking = absent(dataset)
            if lacking and not dataset.download and config.proposals.source(dataset.proposals):
                without = "; or do without it: data.test=[]" if part == "test" else ""
                raise FastRCNNError(f"data.{part}.{i}: {lacking}{without}")
