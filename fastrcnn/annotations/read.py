"""Data sets of any format to records.

A format turns a data set's configuration into a Listing: the images in the order of the set, each with a function that
reads it to (record, problems). The record is None when a file of the image is missing or unreadable. For bad input the
format raises only when the set as a whole cannot be read; what is wrong with single images is among the problems. A new
format is a module with such a function beside coco.py, and a line in FORMATS. What all formats share is in objects.py:
whether a class is in the list, and what becomes of a bad box or an unreadable image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from fastrcnn.annotations.coco import list_coco
from fastrcnn.annotations.ids import distinct_ids
from fastrcnn.annotations.layouts import list_files
from fastrcnn.annotations.problems import Problem, log_problems
from fastrcnn.annotations.recognise import recognise
from fastrcnn.annotations.records import ImageRecord, class_index
from fastrcnn.annotations.splits import Found, Listing, choose
from fastrcnn.annotations.yolo import list_yolo
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

FORMATS: dict[str, Callable[[DataSetConfig, DataConfig, dict[str, int]], Listing]] = {
    "voc": list_files,
    "folder": list_files,
    "coco": list_coco,
    "yolo": list_yolo,
}


def read_data_sets(
    datasets: Sequence[DataSetConfig],
    data: DataConfig,
    classes: Sequence[str],
    problems: list[Problem] | None = None,
) -> list[ImageRecord]:
    """The images of several data sets, joined, in the order of their lists; see read_each_data_set."""
    return [record for records in read_each_data_set(datasets, data, classes, problems) for record in records]


def read_each_data_set(
    datasets: Sequence[DataSetConfig],
    data: DataConfig,
    classes: Sequence[str],
    problems: list[Problem] | None = None,
) -> list[list[ImageRecord]]:
    """The images of each data set, in the order of its list; ids are distinct over all (ids.py).

    Reads each annotation and each image's header. What was clipped, skipped, ignored or noted is logged by kind and
    appended to `problems`. Raises FastRCNNError for the first thing that is an error under `data`, for an image that is
    listed twice, and for sets without images.
    """
    found: list[Problem] = []
    sets: list[list[ImageRecord]] = []
    for dataset in datasets:
        sets.append([])
        for record, new in read_data_set(dataset, data, class_index(classes)):
            _raise_first_error(new)
            found += new
            sets[-1] += [record] if record is not None else []
    sets, new = distinct_ids(datasets, sets)
    _raise_first_error(new)
    found += new
    log_problems(found)
    if problems is not None:
        problems += found
    if not any(sets):
        names = ", ".join(dataset.label for dataset in datasets)
        raise FastRCNNError(f"{names or 'the list of data sets'}: holds no images; check the root and the split")
    return sets


def _raise_first_error(problems: Sequence[Problem]) -> None:
    for problem in problems:
        if problem.outcome == "error":
            raise FastRCNNError(str(problem))


def read_data_set(dataset: DataSetConfig, data: DataConfig, index: dict[str, int]) -> Iterator[Found]:
    """The images of one data set, one after another; what is wrong with the set itself first, without a record.

    `index` is class_index's. Raises FastRCNNError when the set as a whole cannot be read.
    """
    root, labelled, images = Path(dataset.root), 0, 0
    try:
        listing = FORMATS[dataset.format](dataset, data, index)
    except FastRCNNError as e:
        other = recognise(root, dataset.format)
        raise FastRCNNError(f"{e}; {other}" if other and other not in str(e) else str(e)) from None
    if listing.problems:
        yield None, listing.problems
    sources = choose(listing.sources, dataset, data)
    for source in tqdm(sources, desc="annotations", unit="image", leave=False, delay=1):
        record, problems = source.read()
        refused = sum(p.object is not None and p.outcome in ("error", "skipped") for p in problems)
        if record is not None and refused:
            record = replace(record, refused=refused)
        yield record, problems
        images += 1
        labelled += record is not None and record.annotation is not None
    if images and not labelled and (other := recognise(root, dataset.format)):
        yield (
            None,
            [Problem("another format", root, None, f"no annotation of this format belongs to a picture; {other}")],
        )


def image_paths(dataset: DataSetConfig, data: DataConfig) -> list[Path]:
    """The image files of a data set, without opening any. Raises FastRCNNError as read_data_set does."""
    return [source.path for source in choose(FORMATS[dataset.format](dataset, data, {}).sources, dataset, data)]
