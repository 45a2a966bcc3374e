"""A run's data: the images of its data sets, joined, each with its proposals."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.read import read_each_data_set
from fastrcnn.annotations.records import ImageRecord, for_training
from fastrcnn.config import Config
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.proposals import Proposals, Visit, join, read_proposals, refuse_problems

Known: TypeAlias = Callable[[Sequence[Proposals], Sequence[ImageRecord]], bool]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their proposals: a sequence of (record, proposals), proposals float32 [P, 4] in image pixels.

    Proposals are looked up only when an image is asked for: those of a stored file stay on the disk until then.
    """

    records: Sequence[ImageRecord]
    proposals: Mapping[str, Float32[np.ndarray, "_ 4"]]  # by image id; may hold more images than `records`
    searched: Set[str] = frozenset()  # ids of images whose proposals whoever opened the set searches itself

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[ImageRecord, Float32[np.ndarray, "P 4"]]:
        record = self.records[index]
        return record, self.proposals[record.id]

    def __iter__(self) -> Iterator[tuple[ImageRecord, Float32[np.ndarray, "_ 4"]]]:
        return (self[index] for index in range(len(self)))

    @property
    def ids(self) -> list[str]:
        return [record.id for record in self.records]

    def for_training(self, data: DataConfig) -> "ImageSet":
        """The set without what drop_difficult and drop_empty leave out. Raises FastRCNNError when nothing is left."""
        return ImageSet(for_training(self.records, data), self.proposals)


def open_data(
    datasets: Sequence[DataSetConfig],
    config: Config,
    problems: list[Problem] | None = None,
    also: Visit | None = None,
    known: Known | None = None,
    search: bool = False,
) -> ImageSet:
    """Read all annotations and open all proposals; `problems` takes what was clipped, skipped, ignored or noted.

    All proposals are read once, to be checked; `also` is called with each image and its proposals in this same pass,
    which is left out if `known`, called with the stores and all records, says that they have been checked before.
    With `search`, the caller searches the proposals of data sets that name none. Raises FastRCNNError for what
    read_data_sets and open_proposals refuse, for an image in two of the sets, and without `search` for such a set.
    """
    sets = read_each_data_set(datasets, config.data, config.classes, problems)
    opened, searched = [], set()
    for dataset, records in zip(datasets, sets, strict=True):
        source = config.proposals.source(dataset.proposals)
        if source:
            opened.append((read_proposals(source, records, config.proposals), records))
        elif search:
            searched |= {record.id for record in records}
        else:
            raise FastRCNNError(
                f"{dataset.label}: has no proposals; set `proposals` of the data set to a file, and "
                "make it with tools/proposals.py"
            )
    stores = [store for store, _ in opened]
    joined = [record for records in sets for record in records]
    if known is None or not known(stores, joined):
        for store, records in opened:
            refuse_problems(store, records, also)
    return ImageSet(joined, join(stores), searched)
