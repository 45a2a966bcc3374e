"""Data sets of any format to records.

A reader of a format turns a data set's configuration into an iterable of (record, problems), one pair an image, in the
order of the set; the record is None when a file of the image is missing or unreadable. For bad input it raises only
when the set as a whole cannot be read; what is wrong with single images is among the problems. A new format is a module
with a reader beside layouts.py, and a line in READERS. What all formats share is in objects.py: whether a class is in
the list, and what becomes of a bad box.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastrcnn.annotations.layouts import list_images, read_listed_images
from fastrcnn.annotations.problems import Problem, duplicate_id_problem, log_problems
from fastrcnn.annotations.records import ImageRecord, class_index
from fastrcnn.config import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

Reader = Callable[[DataSetConfig, DataConfig, dict[str, int]], Iterable[tuple[ImageRecord | None, list[Problem]]]]
READERS: dict[str, Reader] = {"voc": read_listed_images, "folder": read_listed_images}


def read_data_sets(
    datasets: Sequence[DataSetConfig],
    data: DataConfig,
    classes: Sequence[str],
    problems: list[Problem] | None = None,
) -> list[ImageRecord]:
    """The images of several data sets, joined, in the order of their lists.

    Reads each annotation and each image's header. What was clipped, skipped, ignored or noted is logged by kind and
    appended to `problems`. Raises FastRCNNError for the first thing that is an error under `data`, for an id that is
    listed twice, and for sets without images.
    """
    found: list[Problem] = []
    records: dict[str, ImageRecord] = {}
    for dataset in datasets:
        for record, new in read_data_set(dataset, data, class_index(classes)):
            if record is not None and record.id in records:
                new = [*new, duplicate_id_problem(record.id, record.path, records[record.id].path)]
            for problem in new:
                if problem.outcome == "error":
                    raise FastRCNNError(str(problem))
            found += new
            if record is not None:
                records[record.id] = record
    log_problems(found)
    if problems is not None:
        problems += found
    if not records:
        names = ", ".join(f"{dataset.root} {dataset.split}".strip() for dataset in datasets)
        raise FastRCNNError(f"{names or 'the list of data sets'}: holds no images; check the root and the split")
    return list(records.values())


def read_data_set(
    dataset: DataSetConfig, data: DataConfig, index: dict[str, int]
) -> Iterable[tuple[ImageRecord | None, list[Problem]]]:
    """The images of one data set by the reader of its format; `index` is class_index's.

    Raises FastRCNNError when the set as a whole cannot be read, perhaps only once the first image is asked for.
    """
    return READERS[dataset.format](dataset, data, index)


def image_paths(dataset: DataSetConfig) -> list[Path]:
    """The image files of a data set, without opening any. Raises FastRCNNError as read_data_set does."""
    return [path for listed in list_images(dataset) for path in listed.images]
