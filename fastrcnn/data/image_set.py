"""A run's data: the images of its data sets, joined, each with its proposals."""

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastrcnn.annotations.problems import Problem, duplicate_id_problem
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import ImageRecord, for_training
from fastrcnn.config import Config, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.stored import open_proposals


def open_data(
    datasets: list[DataSetConfig], config: Config, training: bool = False, problems: list[Problem] | None = None
) -> tuple[list[ImageRecord], Mapping[str, np.ndarray]]:
    """Read all annotations and open all proposals (image id -> float32 [P, 4], image pixels).

    `training` leaves out what drop_difficult and drop_empty say; `problems` takes what was clipped, skipped or ignored.

    Raises FastRCNNError for what read_data_sets and open_proposals refuse, and for an image in two of the sets.
    """
    records: dict[str, ImageRecord] = {}
    stores = []
    for dataset in datasets:
        new = read_data_sets([dataset], config.data, config.classes, problems)
        for record in new:
            if record.id in records:
                raise FastRCNNError(str(duplicate_id_problem(record.id, record.path, records[record.id].path)))
            records[record.id] = record
        if not dataset.proposals:
            raise FastRCNNError(
                f"{dataset.root} {dataset.split}: has no proposals; set `proposals` of the data set to a file, and "
                "make it with tools/proposals.py"
            )
        stores.append(open_proposals(Path(dataset.proposals), new, config.proposals))
    joined = list(records.values())
    return for_training(joined, config.data) if training else joined, ChainMap(*stores)
