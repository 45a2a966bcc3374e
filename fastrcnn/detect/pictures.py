"""The detector on files and folders: pictures with boxes drawn in, and one detections.json of all that was found."""

import contextlib
import logging
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from tqdm import tqdm

from fastrcnn.config import ProposalsConfig
from fastrcnn.detect.ahead import Ready, ahead, make_ready, search_processes
from fastrcnn.detect.detector import Detector, Score, detection_settings
from fastrcnn.detect.folders import JOURNAL_NAME, JSON_NAME, ListedPicture, check_outputs, find_pictures
from fastrcnn.detect.labels import write_labels
from fastrcnn.detections import DetectedImage, write_detections
from fastrcnn.drawing import draw_detections, write_image
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock
from fastrcnn.journal import Journal
from fastrcnn.model.score_thresholds import network_digest
from fastrcnn.model.weights import weights_file
from fastrcnn.processes import cores, deaths_told
from fastrcnn.proposals.proposals import Proposals, read_proposals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectedPictures:
    """What detect_pictures did."""

    images: list[DetectedImage]  # those that could be read
    drawn: list[Path]  # the picture with boxes drawn in, for each of them
    failed: list[Path]  # the others; the log says why
    json: Path
    labels: list[Path]  # what was written in other formats: a folder each


Item: TypeAlias = tuple[str, DetectedImage]  # with its stamp
Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"]
Limits: TypeAlias = Float32[np.ndarray, "K"]  # the score that a class must have to be drawn


def detect_pictures(
    detector: Detector,
    paths: Sequence[str | Path],
    output: str | Path,
    score: Score = 0.5,
    proposals: str | Path | None = None,
    weights: str | Path | None = None,
    formats: Sequence[str] = (),
) -> DetectedPictures:
    """Detect in the pictures of find_pictures; draw what scores at least `score` to output/<id>.jpg, and write
    output/detections.json with everything above test.score_threshold, or above `score` where that is lower.

    `score` is a number, `auto` for the thresholds that the weights hold, or None for test.score_threshold. `proposals`
    is a file of them by the pictures' ids. What scores at least `score` is also written as labels in each of `formats`
    (of write_labels). A picture that cannot be read is reported and skipped. Stopped on the way, detections.json
    holds what was finished, and the same call resumes if `weights` names the detector's file. Raises FastRCNNError,
    before any work, where check_outputs and Detector.score_limits do, and when none could be read.

    Many pictures are searched by processes, which import the calling script: have it call this below
    `if __name__ == "__main__":`.
    """
    output, limits = Path(output), detector.score_limits(score)
    pictures = find_pictures(paths, output)
    inputs = [Path(proposals)] if proposals else []
    inputs += [weights_file(weights)] if weights else []
    written = [*(picture.below(output) for picture in pictures), output / JSON_NAME]
    check_outputs(output, pictures, [*written, *(output / name for name in formats)], inputs)
    store = read_proposals(proposals, []) if proposals else None
    result = DetectedPictures([], [], [], output / JSON_NAME, [])
    with lock(output / ".lock", "the output folder"):
        journal = _journal(detector, output, inputs if weights else None, score, limits)
        work = _Work(detector, output, limits, journal, result)
        try:
            # One thread draws and writes while the network is at the next picture.
            with journal, closing(work.detected(pictures, store)) as drawings, closing(ahead(drawings, 1)) as futures:
                for future in futures:
                    future.result()
        finally:  # Ctrl-C and a full disk too: what is finished is written
            if result.images:
                write_detections(result.json, detector.config.classes, result.images)
        if not result.images:
            raise FastRCNNError(
                f"{pictures[0].path}: none of the {len(pictures)} pictures could be used; see the messages above"
            )
        names = {picture.path: picture.output for picture in pictures}
        for name in formats:
            folder = write_labels(name, result.images, names, detector.config.classes, output / name, limits)
            result.labels.append(folder)
        journal.remove()
    return result


@dataclass(frozen=True)
class _Work:
    """What detecting and drawing have in common."""

    detector: Detector
    output: Path
    limits: Limits
    journal: Journal[Item]
    result: DetectedPictures

    def detected(
        self, pictures: Sequence[ListedPicture], store: Proposals | None
    ) -> Generator[Callable[[], None], None, None]:
        """Puts each picture into `result`, and gives what writes it, unless the journal has it and it is drawn."""
        done, stamps = dict(self.journal.items), {picture: _stamp(picture) for picture in pictures}
        finished = {p: done[s] for p, s in stamps.items() if s in done and p.below(self.output).exists()}
        todo = [picture for picture in pictures if picture not in finished]
        search = self.detector.config.proposals
        processes = search_processes(len(todo), search) if store is None else None
        if store is not None:
            calls = (partial(_read_with, store, p, search) for p in todo)
        else:
            threads = 1 if processes else cores()  # few pictures have all cores, each its turn
            calls = (partial(make_ready, p.path, None, p.id, search, threads) for p in todo)
        told = deaths_told("selective search", "free some, and run again to resume")
        with told, closing(ahead(calls, processes=processes)) as ready:
            for picture in tqdm(pictures, "detecting", unit="image", mininterval=1):
                drawn = picture.below(self.output)
                if picture in finished:
                    image = finished[picture]
                else:
                    try:
                        pixels, proposals = next(ready).result()
                        image = self._detect(picture, pixels, proposals)
                    except FastRCNNError as e:
                        log.error("%s", e)
                        self.result.failed.append(picture.path)
                        continue
                self.result.images.append(image)
                self.result.drawn.append(drawn)
                if picture not in finished:
                    yield partial(self._write, stamps[picture], image, pixels, drawn)

    def _detect(self, picture: ListedPicture, pixels: Pixels, proposals: ArrayLike) -> DetectedImage:
        lowest = float(self.limits.min())
        if lowest < np.float32(self.detector.config.test.score_threshold):
            found = self.detector.detect(pixels, proposals, picture.id, score=lowest)
        else:
            found = self.detector.detect(pixels, proposals, picture.id)
        height, width = pixels.shape[:2]
        return DetectedImage(picture.id, found, str(picture.path), width, height)

    def _write(self, stamp: str, image: DetectedImage, pixels: Pixels, drawn: Path) -> None:
        self.journal.append((stamp, image))  # before it is drawn: what is drawn is in detections.json
        shown = image.found.above(self.limits)
        write_image(drawn, draw_detections(pixels, shown.boxes, shown.names, shown.scores))


def _read_with(store: Proposals, picture: ListedPicture, search: ProposalsConfig) -> Ready:
    if picture.id not in store:
        raise FastRCNNError(
            f"{picture.path}: {store.path} has no proposals of {picture.id}; make them, or leave it out"
        )
    return make_ready(picture.path, store[picture.id], picture.id, search)


def _journal(
    detector: Detector, output: Path, inputs: Sequence[Path] | None, score: Score, limits: Limits
) -> Journal[Item]:
    """The pictures that an earlier call finished with the same inputs and settings; without inputs, none."""
    same = secrets.token_hex() if inputs is None else [network_digest(path).hex() for path in inputs]
    settings = detection_settings(detector.config) | {"precision": detector.precision}
    return Journal(
        output / JOURNAL_NAME,
        {"inputs": same, "score": limits.tolist() if score == "auto" else score, **settings},
        lambda item: [item[0], item[1].to_json()],
        lambda item: (str(item[0]), DetectedImage.from_json(item[1], detector.config.classes)),
    )


def _stamp(picture: ListedPicture) -> str:
    """Changes when the picture does, or the name that it is drawn under; before it is read, which says what is wrong
    with it."""
    size, time = -1, -1
    with contextlib.suppress(OSError):
        about = picture.path.stat()
        size, time = about.st_size, about.st_mtime_ns
    return f"{size} {time} {picture.output} {picture.path}"
