"""Detection in all images of data.test, by one process or the ranks of a run: what is killed resumes."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.config_data import DataSetConfig
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.detect.ahead import Ready, ahead, make_ready, search_processes
from fastrcnn.detect.detector import Detector, detection_settings, load_detector
from fastrcnn.detections import DetectedImage
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.set_limits import chosen
from fastrcnn.files import file_digest, lock
from fastrcnn.journal import Journal, pack, unpack
from fastrcnn.model.score_thresholds import network_digest
from fastrcnn.model.weights import weights_file
from fastrcnn.processes import deaths_told
from fastrcnn.proposals.recall import Covering, best_iou
from fastrcnn.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

PARTIAL = "detections.partial.jsonl"
PART = "detections.partial.{}.jsonl"  # of the other ranks
# An image with the scores that test.detections_per_class chooses by, or None, and recall.best_iou, None for proposals
# of a file, of which it is known without the network.
Item = tuple[DetectedImage, Any, list[float] | None]


def test_sets(config: Config) -> list[DataSetConfig]:
    """Those of data.test. Raises FastRCNNError when there is none."""
    if not config.data.test:
        raise FastRCNNError("data.test names no data set to evaluate on; set data.test, as data.train is set")
    return config.data.test


def detect_part(config: Config, weights: str | Path, folder: str | Path, ranks: Ranks) -> None:
    """This rank's part of the detection that evaluate_weights, with the same arguments, then finds done in `folder`.

    What was detected before is shared out anew, so that the number of ranks may differ from that of a killed run.
    Raises FastRCNNError as evaluate_weights does.
    """
    folder, weights, device = Path(folder), weights_file(weights), choose_device(config.device, ranks)
    held = lock(folder / ".lock", "the results folder") if ranks.main else contextlib.nullcontext()
    with held:
        seen = Pass(with_recall=False)
        with ranks.one_first():
            images = seen.open(config)
        key = detection_key(config, weights, seen.digest)
        own = open_journal(folder / (PARTIAL if ranks.main else PART.format(ranks.rank)), key)
        before = {image.id for part in (own, *open_parts(folder, key)) for image, *_ in part.items}
        known = before.union(*ranks.gather(before))  # on machines that share no disk, others are
        left = [i for i, record in enumerate(images.records) if record.id not in known]
        share = ranks.share(left)
        detector, _ = load_detector(config, weights, device)
        detect_all(detector, replace(images, records=[images.records[i] for i in share]), own, [], ranks)
        ranks.wait()


def detect_all(
    detector: Detector,
    images: ImageSet,
    journal: Journal[Item],
    parts: Sequence[Journal[Item]],
    ranks: Ranks = ALONE,
    covering: Covering | None = None,
) -> list[DetectedImage]:
    """What is found in each image; those that the journal or one of its parts holds are skipped. Images are read, and
    searched where there is no file of proposals, while the network is at the ones before; `covering` takes these."""
    done = {item[0].id: item for part in (*parts, journal) for item in part.items}
    per_class = detector.config.test.detections_per_class
    if done:
        log.info("%s: %d of %d images are done already", journal.path, len(done), len(images))
    calls, processes = _ready_ahead(detector, images, done, ranks)
    told = deaths_told("selective search", "free some, and run again to resume")
    with journal, told, closing(ahead(calls, processes=processes)) as ready:
        bar = tqdm(
            images.records, "evaluating", unit="image", mininterval=1, dynamic_ncols=True, disable=not ranks.main
        )
        for record in bar:
            ranks.check()
            if record.id not in done:
                pixels, proposals = next(ready).result()
                asked, top = (pixels, proposals, record.id), None
                if per_class is None:
                    found = detector.detect(*asked)
                else:
                    found, top = detector.best_of_each_class(*asked)
                image = DetectedImage(record.id, found, str(record.path), record.width, record.height)
                covered = best_iou(record, np.asarray(proposals)) if record.id in images.searched else None
                done[record.id] = image, top, covered
                journal.append(done[record.id])
    ordered = [done[image_id] for image_id in images.ids]
    for record, (_, _, covered) in zip(images.records, ordered, strict=True):
        if covering is not None and covered is not None:
            covering.add_best(record, covered)
    detected = [image for image, *_ in ordered]
    return detected if per_class is None else chosen(detected, [top for _, top, _ in ordered], per_class)


def _ready_ahead(
    detector: Detector, images: ImageSet, done: Container[str], ranks: Ranks
) -> tuple[Iterator[Callable[[], Ready]], int | None]:
    """What makes each image ready that is not done, and how many processes do."""
    config = detector.config.proposals
    todo = [record for record in images.records if record.id not in done]
    searches = sum(record.id in images.searched for record in todo)
    if searches:
        log.info(
            "searching for the proposals of %d images while the network runs, which data.test names no file of; to "
            "search once for all evaluations, set `proposals` of the data set, and make it with tools/proposals.py",
            searches,
        )

    def calls() -> Iterator[Callable[[], Ready]]:
        for record in todo:
            proposals = None if record.id in images.searched else images.proposals[record.id]
            yield partial(make_ready, record.path, proposals, record.id, config)

    return calls(), search_processes(searches, config, ranks.local_world)


def open_journal(path: Path, key: dict[str, Any]) -> Journal[Item]:
    """The images of an evaluation under way, or of a killed one under the same key."""
    return Journal(
        path,
        key,
        lambda item: [item[0].to_json(), None if item[1] is None else pack(item[1]), item[2]],
        lambda line: (
            DetectedImage.from_json(line[0], key["classes"]),
            None if line[1] is None else unpack(line[1]),
            None if line[2] is None else [float(value) for value in line[2]],
        ),
    )


def open_parts(folder: Path, key: dict[str, Any]) -> list[Journal[Item]]:
    """Those of the other ranks of an evaluation under way."""
    return [open_journal(path, key) for path in sorted(folder.glob(PART.format("*")))]


class Pass:
    """What is wanted of the images and their proposals, wherever they lie, from one pass over them."""

    def __init__(self, with_recall: bool) -> None:
        self.covering = Covering() if with_recall else None
        self._digest = hashlib.blake2b(digest_size=16)

    def open(self, config: Config, problems: list[Problem] | None = None) -> ImageSet:
        """The images of data.test, once they have been passed over; see open_data."""
        images = open_data(test_sets(config), config, problems, self._add, search=True)
        for record in images.records:
            if record.id in images.searched:
                self._add_picture(record)  # on which, and the settings, the boxes that are searched depend
                self._digest.update(record.boxes.tobytes() + record.difficult.tobytes())  # best_iou depends on these
        return images

    def _add(self, record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> None:
        self._add_picture(record)
        self._digest.update(np.ascontiguousarray(proposals).tobytes())
        if self.covering is not None:
            self.covering.add(record, proposals)

    def _add_picture(self, record: ImageRecord) -> None:
        self._digest.update(f"{record.id} {record.width} {record.height}\n".encode() + file_digest(record.path))

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


def detection_key(config: Config, weights: Path, images: str) -> dict[str, Any]:
    """All that detections depend on: the weights' bytes, the settings of detection, and Pass.digest of the images."""
    return {"weights": network_digest(weights).hex(), "images": images, **detection_settings(config)}
