"""Data sets of any format to records.

A format turns a data set's configuration into a Listing: the images in the order of the set, each with a function that
reads it to (record, problems). The record is None when a file of the image is missing or unreadable. For bad input the
format raises only when the set as a whole cannot be read; what is wrong with single images is among the problems. A new
format is a module with such a function beside coco.py, and a line in FORMATS. What all formats share is in objects.py:
whether a class is in the list, and what becomes of a bad box or an unreadable image.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from fastrcnn.annotations.coco import list_coco
from fastrcnn.annotations.folders import image_id
from fastrcnn.annotations.kept import KeptRecords
from fastrcnn.annotations.layouts import list_files
from fastrcnn.annotations.problems import Problem, duplicate_id_problem, log_problems, refuse_errors
from fastrcnn.annotations.recognise import recognise
from fastrcnn.annotations.records import Found, ImageRecord, Listing, Source, class_index
from fastrcnn.annotations.yolo import list_yolo
from fastrcnn.config_data import DataConfig, DataSetConfig, SplitConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import file_digest
from fastrcnn.processes import cores, map_images

MANY = 10_000  # images; fewer are read within some seconds, by this process alone

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
    """The images of each data set, in the order of its list; ids are distinct over all (distinct_ids).

    Reads each annotation and each image's header; of a large set, what has changed since it was read last. What was
    clipped, skipped, ignored or noted is logged by kind and appended to `problems`. Raises FastRCNNError for the first
    thing that is an error under `data`, for an image that is listed twice, and for sets without images.
    """
    found: list[Problem] = []
    sets: list[list[ImageRecord]] = []
    for dataset in datasets:
        sets.append([])
        index = class_index(classes)
        kept = KeptRecords(dataset, data, index) if dataset.proposals else None
        for record, new in read_data_set(dataset, data, index, kept):
            refuse_errors(new)
            found += new
            sets[-1] += [record] if record is not None else []
    sets, new = distinct_ids(datasets, sets)
    refuse_errors(new)
    found += new
    log_problems(found)
    if problems is not None:
        problems += found
    if not any(sets):
        names = ", ".join(dataset.label for dataset in datasets)
        raise FastRCNNError(f"{names or 'the list of data sets'}: holds no images; check the root and the split")
    return sets


def read_data_set(
    dataset: DataSetConfig, data: DataConfig, index: dict[str, int], kept: KeptRecords | None = None
) -> Iterator[Found]:
    """The images of one data set, one after another; what is wrong with the set itself first, without a record.

    `index` is class_index's. With `kept`, files that an earlier run has read are not opened again. A large set is read
    by as many processes as there are cores, with data.workers 0 by this one. Raises FastRCNNError when the set as a
    whole cannot be read.
    """
    root, labelled, images = Path(dataset.root), 0, 0
    try:
        listing = FORMATS[dataset.format](dataset, data, index)
    except FastRCNNError as e:
        other = recognise(root, dataset.format)
        hints = [hint for hint in (other, _origin(dataset)) if hint and hint not in str(e)]
        raise FastRCNNError("; ".join([str(e), *hints])) from None
    if listing.problems:
        yield None, listing.problems
    sources = choose(listing.sources, dataset, data)
    many = len(sources) >= MANY and data.workers > 0
    opened = partial(map_images, _read, processes=cores() if many else 1, doing="annotations", delay=1)
    for record, problems in kept.read(sources, opened) if kept else opened(sources):
        refused = sum(p.object is not None and p.outcome in ("error", "skipped") for p in problems)
        if record is not None and refused:
            record = replace(record, refused=refused)
        yield record, problems
        images += 1
        labelled += record is not None and record.annotation is not None
    if images and not labelled and (other := recognise(root, dataset.format)):
        text = f"no annotation of this format belongs to a picture; {other}"
        yield None, [Problem("another format", root, None, text)]


def absent(dataset: DataSetConfig) -> str | None:
    """Of a data set that is not there: a sentence that says so, and how it gets there.

    A file of coco or yolo may name pictures anywhere: where there is one, root need not exist.
    """
    given = dataset.annotations if dataset.format in ("coco", "yolo") else None
    needed = Path(given or dataset.root)
    if needed.exists():
        return None
    if dataset.download and dataset.format == "voc":
        return f"{needed}: fetched when it is first read"
    return f"{needed}: not there; {_origin(dataset) or 'put it there, or check the configuration'}"


def _origin(dataset: DataSetConfig) -> str | None:
    return f"it comes from {dataset.source}" if dataset.source else None


def _read(source: Source) -> Found:
    return source.read()


def image_paths(dataset: DataSetConfig, data: DataConfig) -> list[Path]:
    """The image files of a data set, without opening any. Raises FastRCNNError as read_data_set does."""
    return [source.path for source in choose(FORMATS[dataset.format](dataset, data, {}).sources, dataset, data)]


def distinct_ids(
    datasets: Sequence[DataSetConfig], sets: Sequence[Sequence[ImageRecord]]
) -> tuple[list[list[ImageRecord]], list[Problem]]:
    """The records of each data set, no id twice, and what was found.

    Where sets have different files under one id, the part in which their roots differ is put before their ids:
    d1/frame_0001 and d2/frame_0001. A file that is listed twice stays once, and is an error.
    """
    holders: dict[str, list[tuple[int, ImageRecord]]] = defaultdict(list)
    for i, records in enumerate(sets):
        for record in records:
            holders[record.id].append((i, record))
    clashes = [some for some in holders.values() if len(some) > 1 and len({r.path.resolve() for _, r in some}) > 1]
    prefixes = _prefixes([Path(d.root) for d in datasets], sorted({i for some in clashes for i, _ in some}))
    problems = []
    if prefixes:
        some = ", ".join(f"{prefix}{clashes[0][0][1].id}" for prefix in prefixes.values())
        text = f"{len(clashes)} names of its images are those of others; ids get the folder before them ({some})"
        problems.append(Problem("same names", Path(datasets[min(prefixes)].root), None, text, "noted"))
    seen: dict[str, ImageRecord] = {}
    distinct: list[list[ImageRecord]] = []
    for i, records in enumerate(sets):
        distinct.append([])
        for record in records:
            new = replace(record, id=prefixes[i] + record.id) if i in prefixes else record
            first = seen.setdefault(new.id, new)
            if first is new:
                distinct[i].append(new)
            else:
                problems.append(duplicate_id_problem(new.id, new.path, first.path))
    return distinct, problems


def _prefixes(roots: Sequence[Path], chosen: Sequence[int]) -> dict[int, str]:
    """The part in which the chosen roots differ, with a slash behind it: what they share at both ends is left out."""
    parts = {i: list(roots[i].resolve().parts) for i in chosen}
    if len({tuple(part) for part in parts.values()}) < 2:
        return {}
    for end in (0, -1):
        # A root that lies in another keeps one part.
        while min(map(len, parts.values())) > 1 and len({part[end] for part in parts.values()}) == 1:
            for part in parts.values():
                del part[end]
    return {i: image_id("/".join(part)) + "/" for i, part in parts.items()}


def choose(sources: list[Source], dataset: DataSetConfig, data: DataConfig) -> list[Source]:
    """Those of the part that `split` asks for, if it asks for a share; of these the first data.limit.

    {part: train, of: [0.8, 0.2], seed: 0} decides for each picture on its own, by a hash of what its file holds: added
    or renamed pictures move no other one, and equal pictures are in the same part. The shares are met on average.
    Raises FastRCNNError when the part is empty.
    """
    split = dataset.split
    if isinstance(split, SplitConfig) and sources:
        every = len(sources)
        sources = [source for source in sources if part_of(source.path, split) == split.part]
        if not sources:
            raise FastRCNNError(
                f"{dataset.label}: none of its {every} images is in this part; choose larger shares or another seed"
            )
    return sources[: data.limit]


def part_of(path: Path, split: SplitConfig) -> str:
    """The part a picture is in. One that cannot be read is put in a part by its name."""
    try:
        content = file_digest(path)
    except OSError:
        content = path.name.encode(errors="surrogateescape")
    digest = hashlib.blake2b(content, digest_size=8, key=str(split.seed).encode()).digest()
    position = int.from_bytes(digest, "big") / 2**64
    ends = zip(split.parts, accumulate(split.parts.values()), strict=True)
    return next((part for part, end in ends if position < end), list(split.parts)[-1])
