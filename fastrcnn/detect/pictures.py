"""The detector on files and folders: pictures with boxes drawn in, and one detections.json of all that was found."""

import logging
import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from fastrcnn.config import ProposalsConfig
from fastrcnn.detect.ahead import Ready, ahead, make_ready
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
        done = dict(journal.items)
        try:
            with journal:
                bar = tqdm(pictures, "detecting", unit="image", mininterval=1)
                calls = [partial(_make_ready, p, output, store, done, detector.config.proposals) for p in pictures]
                with closing(ahead(calls)) as ready:
                    for picture, future in zip(bar, ready, strict=True):
                        _detect_and_draw(detector, picture, future, output, limits, journal, result)
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


def _make_ready(
    picture: ListedPicture,
    output: Path,
    store: Proposals | None,
    done: dict[str, DetectedImage],
    search: ProposalsConfig,
) -> tuple[str, DetectedImage | Ready]:
    """The stamp of a picture, and one of `done`, from the journal, if it is drawn, else what the network takes."""
    stamp = _stamp(picture)
    if picture.below(output).exists() and stamp in done:
        return stamp, done[stamp]
    if store is not None and picture.id not in store:
        raise FastRCNNError(
            f"{picture.path}: {store.path} has no proposals of {picture.id}; make them, or leave it out"
        )
    return stamp, make_ready(picture.path, store[picture.id] if store is not None else None, picture.id, search)


def _detect_and_draw(
    detector: Detector,
    picture: ListedPicture,
    future: Future[tuple[str, DetectedImage | Ready]],
    output: Path,
    limits: Limits,
    journal: Journal[Item],
    result: DetectedPictures,
) -> None:
    """One picture into `result`, detected and drawn unless it is so already."""
    drawn = picture.below(output)
    try:
        stamp, made = future.result()
        image = made if isinstance(made, DetectedImage) else _detect(detector, picture, made, limits)
    except FastRCNNError as e:
        log.error("%s", e)
        result.failed.append(picture.path)
        return
    result.images.append(image)
    if not isinstance(made, DetectedImage):
        journal.append((stamp, image))  # before it is drawn: what is drawn is in detections.json
        shown = image.found.above(limits)
        write_image(drawn, draw_detections(made[0], shown.boxes, shown.names, shown.scores))
    result.drawn.append(drawn)


def _detect(detector: Detector, picture: ListedPicture, ready: Ready, limits: Limits) -> DetectedImage:
    if limits.min() < np.float32(detector.config.test.score_threshold):
        found = detector.detect(*ready, picture.id, score=float(limits.min()))
    else:
        found = detector.detect(*ready, picture.id)
    height, width = ready[0].shape[:2]
    return DetectedImage(picture.id, found, str(picture.path), width, height)


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
    """Changes when the picture does, or the name that it is drawn under."""
    try:
        about = picture.path.stat()
    except OSError as e:
        raise FastRCNNError(f"{picture.path}: cannot be read: {e.strerror}; check its permissions") from None
    return f"{about.st_size} {about.st_mtime_ns} {picture.output} {picture.path}"
