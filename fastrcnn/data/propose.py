"""The proposals of all data sets of a run: searched where the file is ours, and how many objects they cover."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fastrcnn.annotations.problems import Problem, refuse_errors
from fastrcnn.annotations.read import distinct_ids, read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.config_data import PARTS, DataSetConfig
from fastrcnn.data.check_labels import nothing_labelled
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.make import make_proposals
from fastrcnn.proposals.proposals import open_proposals
from fastrcnn.proposals.recall import Covering, Recall


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


def propose(config: Config, processes: int | None = None) -> Iterator[ProposedSet]:
    """Each data set of the run, once its proposals are complete; several may share one file.

    All annotations are read first. Raises FastRCNNError for what read_data_sets, make_proposals and open_proposals
    refuse, a data set that names no proposals, and a training set without objects.
    """
    for path, sets in _sets_by_file(config).items():
        if path.endswith(".safetensors"):
            _, datasets, images = zip(*sets, strict=True)
            distinct, _ = distinct_ids(datasets, images)
            # An image of both parts is searched once.
            make_proposals([r for records in distinct for r in records], path, config.proposals, processes)
        for name, _, records in sets:
            covering = Covering()
            open_proposals(path, records, config.proposals, covering.add)
            yield ProposedSet(name, path, records, covering.boxes, covering.recall())


def _sets_by_file(config: Config) -> dict[str, list[ReadSet]]:
    by_path = defaultdict(list)
    labelled: list[ImageRecord] = []
    left_out: list[Problem] = []
    for part in PARTS:
        for i, dataset in enumerate(getattr(config.data, part)):
            key = f"data.{part}.{i}"
            source = config.proposals.source(dataset.proposals)
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
