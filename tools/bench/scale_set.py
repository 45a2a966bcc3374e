"""A made data set of any number of pictures, as VOC and as COCO, with proposals: for bench.py scale."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.lib.format import open_memmap
from tqdm import tqdm

from fastrcnn.annotations.coco import write_coco
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.annotations.voc_xml import write_voc
from fastrcnn.config import ProposalsConfig
from fastrcnn.detections import Detections
from fastrcnn.files import file_digest
from fastrcnn.proposals.stored import StoredProposals, write_stored

WIDTH, HEIGHT = 120, 90
CLASSES = [f"class {k}" for k in range(1, 21)]
OBJECTS, PROPOSALS, DETECTIONS = 3, 2000, 50  # of a picture
AT_ONCE = 500  # pictures whose boxes are drawn at once


@dataclass(frozen=True)
class MadeSet:
    """Where it lies, and how many pictures it has."""

    root: Path
    pictures: int

    @property
    def proposals(self) -> Path:
        return self.root / "proposals.safetensors"

    def config(self, form: str, output: Path) -> dict[str, Any]:
        """A run on it as `voc` or `coco`, of two iterations of the tiny network."""
        if form == "coco":
            one = {"format": "coco", "root": str(self.root / "JPEGImages"), "annotations": str(self.json)}
        else:
            one = {"root": str(self.root), "split": "train"}
        return {
            "classes": CLASSES,
            "data": {"train": [one | {"proposals": str(self.proposals)}]},
            "image": {"train_short_side": [HEIGHT], "test_short_side": [HEIGHT]},
            "model": {"backbone": "tiny", "weights": None, "freeze_up_to": None, "fc_width": 64},
            "solver": {"steps": [], "max_iterations": 2},
            "output": str(output),
        }

    def picture(self, number: int) -> Path:
        """From 1."""
        return self.root / "JPEGImages" / f"{number:06d}.jpg"

    @property
    def json(self) -> Path:
        return self.root / "annotations" / "instances_train.json"


def make_set(root: Path, pictures: int) -> MadeSet:
    """Pictures of some hundred bytes, no two the same, with 3 objects and 2,000 proposals each."""
    made = MadeSet(root, pictures)
    records = list(_draw(made))
    write_voc(records, CLASSES, root, "train")
    write_coco(records, CLASSES, root, "train")
    _write_proposals(made, records)
    return made


def _draw(made: MadeSet) -> Iterator[ImageRecord]:
    """A grey JPEG each, told from the others by a comment in it."""
    made.picture(1).parent.mkdir(parents=True)
    jpeg = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 128, np.uint8))[1].tobytes()
    rng = np.random.default_rng(0)
    for i in tqdm(range(1, made.pictures + 1), "making pictures", unit="image", leave=False, disable=None):
        path = made.picture(i)
        comment = f"{i:012d}".encode()
        path.write_bytes(jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:])
        boxes = _boxes(rng, OBJECTS).astype(np.float32)
        numbers = rng.integers(1, len(CLASSES) + 1, OBJECTS)
        yield ImageRecord(path.stem, path, WIDTH, HEIGHT, boxes, numbers, np.zeros(OBJECTS, bool), None)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """int16 [count, 4]: of 8 pixels and more."""
    size = rng.integers(8, (WIDTH, HEIGHT), (count, 2))
    corner = (rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size + 1)).astype(np.int64)
    return np.hstack((corner, corner + size)).astype(np.int16)


def _write_proposals(made: MadeSet, records: list[ImageRecord]) -> None:
    """In the form of tools/proposals.py; the boxes wait in a file of their own, not in memory."""
    aside, rng = made.root / "boxes.npy", np.random.default_rng(1)
    boxes = open_memmap(aside, "w+", np.int16, (made.pictures * PROPOSALS, 4))
    for start in tqdm(range(0, len(boxes), AT_ONCE * PROPOSALS), "making proposals", leave=False, disable=None):
        part = boxes[start : start + AT_ONCE * PROPOSALS]
        part[:] = _boxes(rng, len(part))
    digests = np.array([list(file_digest(record.path)) for record in records], np.uint8)
    config = ProposalsConfig()
    write_stored(
        made.proposals,
        StoredProposals(
            ids=[record.id for record in records],
            offsets=np.arange(made.pictures + 1) * PROPOSALS,
            boxes=boxes,
            sizes=np.tile(np.array([[WIDTH, HEIGHT]], np.int32), (made.pictures, 1)),
            digests=digests,
            made_by=config.model_dump(exclude={"dense"}) | {"max_per_image": config.search_cap},
        ),
    )
    del boxes
    aside.unlink()


def detected(rng: np.random.Generator, count: int) -> Detections:
    """So many detections of any class and place, with any score."""
    boxes, classes = _boxes(rng, count).astype(np.float32), rng.integers(1, len(CLASSES) + 1, count)
    return Detections(boxes, classes, rng.random(count, np.float32), tuple(CLASSES))
