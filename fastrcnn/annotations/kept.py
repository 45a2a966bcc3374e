"""What an earlier run read of a large data set, so that its files need not all be opened again.

One file beside the proposals of the data set; it may be deleted at any time. A record is kept under all that it was
made from: the names, sizes and times of its picture and its annotation file, its id, the settings of reading, the
classes, and the code of the readers. What is not found under the same is read.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from fastrcnn import images
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Found, ImageRecord, Source, Stated
from fastrcnn.config_data import PARTS, DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors, settled_stamp, write_tensors

log = logging.getLogger(__name__)

LARGE = 2000  # images; fewer are read within half a second
OTHER_KEYS = {*PARTS, "limit", "workers", "drop_difficult", "drop_empty"}  # of `data`: no reader looks at them


class KeptRecords:
    """The records of one data set, those of an earlier run and new ones."""

    def __init__(self, dataset: DataSetConfig, data: DataConfig, index: dict[str, int]) -> None:
        """`index` is class_index's. A file that is not there, damaged, or of other settings holds nothing."""
        about = dataset.model_dump(mode="json", include={"format", "root", "split", "annotations"})
        name = hashlib.blake2b(json.dumps(about).encode(), digest_size=4).hexdigest()
        proposals = Path(dataset.proposals or "")
        self.path = proposals.with_name(f".{proposals.name}.{name}.kept")
        self._key = [dataset.format, data.model_dump(mode="json", exclude=OTHER_KEYS), index, _code()]
        self._known: dict[bytes, int] = {}
        self._kept: dict[bytes, Found] = {}
        self._new = False
        if self.path.exists():
            self._load()

    def read(self, sources: Sequence[Source], opened: Callable[[Sequence[Source]], Iterator[Found]]) -> Iterator[Found]:
        """The images as source.read gives them; those that no earlier run has read come from `opened`. In the end all
        are kept for the next run, unless the caller has stopped at one that is an error, or the folder cannot be
        written."""
        names = list(map(_name, sources))  # before their files are opened: what changes from here on is not kept
        rows = [None if name is None else self._known.get(name) for name in names]
        others = opened([source for source, row in zip(sources, rows, strict=True) if row is None])
        for source, name, row in zip(sources, names, rows, strict=True):
            found = next(others) if row is None else self._restored(row, source)
            if name is not None and found[0] is not None:
                self._kept[name] = found
                self._new |= row is None
            yield found
        self._save()

    def _save(self) -> None:
        if not self._new or len(self._kept) < LARGE or not self.path.parent.is_dir():
            return
        import torch

        records = [record for record, _ in self._kept.values() if record is not None]
        ends = np.cumsum([0, *(len(record.boxes) for record in records)])
        columns = {
            "names": np.frombuffer(b"".join(self._kept), np.uint8).reshape(-1, 16).copy(),
            "sizes": np.array([(record.width, record.height) for record in records]),
            "ends": ends,
            **{name: np.concatenate([getattr(r, name) for r in records]) for name in ("boxes", "classes", "difficult")},
        }
        found = [[asdict(p) | {"file": str(p.file)} for p in problems] for _, problems in self._kept.values()]
        stated = [None if r.stated is None else [r.stated.name, r.stated.origins] for r in records]
        about = {"key": self._key, "problems": {i: some for i, some in enumerate(found) if some}, "stated": stated}
        try:
            write_tensors(self.path, {name: torch.from_numpy(column) for name, column in columns.items()}, about)
        except FastRCNNError as e:
            log.info("%s; the next run reads all files again", e)

    def _load(self) -> None:
        try:
            tensors, about = read_tensors(self.path)
        except FastRCNNError as e:
            log.info("%s", e)
            return
        if about.get("key") != json.loads(json.dumps(self._key)):
            return
        columns = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._known = {name.tobytes(): row for row, name in enumerate(columns["names"])}
        self._sizes, self._ends = columns["sizes"].tolist(), columns["ends"].tolist()
        self._objects = [columns[name] for name in ("boxes", "classes", "difficult")]
        self._problems: dict[str, list[dict[str, Any]]] = about["problems"]
        self._stated: list[Any] = about["stated"]

    def _restored(self, row: int, source: Source) -> Found:
        objects = slice(self._ends[row], self._ends[row + 1])
        boxes, classes, difficult = (column[objects] for column in self._objects)
        stated = self._stated[row]
        if stated is not None:
            stated = Stated(stated[0], tuple((number, how) for number, how in stated[1]))
        problems = [Problem(**p | {"file": Path(p["file"])}) for p in self._problems.get(str(row), ())]
        width, height = self._sizes[row]
        record = ImageRecord(
            source.id, source.path, width, height, boxes, classes, difficult, source.annotation, stated=stated
        )
        return record, problems


def _name(source: Source) -> bytes | None:
    """What the record of a source is made from; None for an image without an annotation file, whose record depends on
    the others' files, and for files that have changed just now."""
    if source.annotation is None:
        return None
    stamps = settled_stamp(source.path), settled_stamp(source.annotation)
    if None in stamps:
        return None
    parts = (source.id, source.path, source.annotation, source.about, *stamps)
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


@functools.cache
def _code() -> str:
    """Another one when the readers change."""
    digest = hashlib.blake2b(PIL.__version__.encode(), digest_size=16)
    for path in (Path(images.__file__), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
