"""A run's data sets, written in another format: the same records when they are read again."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fastrcnn.annotations.coco import write_coco
from fastrcnn.annotations.problems import duplicate_id_problem
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.annotations.voc_xml import write_voc
from fastrcnn.annotations.writing import file_of
from fastrcnn.annotations.yolo import write_yolo
from fastrcnn.config import Config
from fastrcnn.config_data import PARTS, DataSetConfig
from fastrcnn.errors import FastRCNNError

# Each writes records of objects below a folder, and returns the folder in it where the pictures belong.
WRITERS: dict[str, Callable[[Sequence[ImageRecord], Sequence[str], Path, str], Path]] = {
    "voc": write_voc,
    "coco": write_coco,
    "yolo": write_yolo,
}
SPLITS = dict(zip(PARTS, ("train", "val", "test"), strict=True))  # the names that all formats know


def convert(config: Config, format_name: str, output: Path, link: bool = False) -> dict[str, list[ImageRecord]]:
    """Write the parts of a run's data as the SPLITS of one new data set, with copies of their pictures.

    `link` makes symbolic links in place of copies. Returns the records of each part that was written. Reads all before
    it writes. Raises FastRCNNError when `output` holds files or is in the folder of a data set, for what read_data_sets
    refuses, for names that the format cannot hold, and when a file cannot be written.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FastRCNNError(f"{output}: is there and not empty; name a new folder")
    parts: dict[str, list[DataSetConfig]] = {part: getattr(config.data, part) for part in PARTS}
    for dataset in (dataset for sets in parts.values() for dataset in sets):
        if output.resolve().is_relative_to(Path(dataset.root).resolve()):
            raise FastRCNNError(f"{output}: is in the folder of a data set, {dataset.root}; name one elsewhere")
    records = {name: read_data_sets(sets, config.data, config.classes) for name, sets in parts.items() if sets}
    first: dict[str, Path] = {}
    for record in (record for members in records.values() for record in members):
        if first.setdefault(record.id, record.path) != record.path:
            raise FastRCNNError(str(duplicate_id_problem(record.id, record.path, first[record.id])))
    for name, members in records.items():
        pictures = WRITERS[format_name](members, config.classes, output, SPLITS[name])
        for record in members:
            _place(record, file_of(pictures, record.id, record.path.suffix), link)
    return records


def _place(record: ImageRecord, path: Path, link: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if link and not path.is_symlink():
            path.symlink_to(record.path.resolve())
        elif not link:
            shutil.copyfile(record.path, path)
    except OSError as e:
        raise FastRCNNError(f"{path}: cannot be written: {e.strerror}; free space or choose another folder") from None
