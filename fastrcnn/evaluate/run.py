"""From weights to mAP: detect in every test image, then score and write all that an evaluation leaves behind."""

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from fastrcnn.annotations.problems import Problem, log_problems, refuse_errors
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.config_data import DataSetConfig
from fastrcnn.data.check_labels import crowded, nothing_labelled
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.detect.detector import Detector, detection_settings, load_detector
from fastrcnn.detections import DetectedImage, read_detections, write_detections
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate import coco, report, voc
from fastrcnn.evaluate.analysis import Analysis, analyse
from fastrcnn.evaluate.html_report import write_report
from fastrcnn.evaluate.keep_thresholds import keep_thresholds
from fastrcnn.evaluate.report_sections import Evaluated
from fastrcnn.evaluate.results import RESULTS, Origin, named_from, trained_for
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, join
from fastrcnn.evaluate.set_limits import chosen
from fastrcnn.files import atomic_write, file_digest, lock, refuse_overwrite, write_json
from fastrcnn.journal import Journal, pack, unpack
from fastrcnn.model.score_thresholds import network_digest
from fastrcnn.model.weights import weights_file
from fastrcnn.proposals.recall import Covering
from fastrcnn.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

DETECTIONS, PARTIAL = "detections.json", "detections.partial.jsonl"
PART = "detections.partial.{}.jsonl"  # of the other ranks
Item = tuple[DetectedImage, Any]  # with the scores that test.detections_per_class chooses by, or None
SCORES = (RESULTS, "table.txt", "precision_recall.png")
REPORT = "report.html"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found."""

    result: voc.VOCResult
    ap: dict[str, float]  # by class name; NaN for a class without objects
    coco: dict[str, float]  # COCO's averages by their names, if they were asked for
    detections: Sequence[DetectedImage]
    table: str  # per class, for people
    rows: tuple[DetectionRows, ObjectRows]  # what was scored; images are numbered by sorted id
    analysis: Analysis

    @property
    def mean_ap(self) -> float:
        """Over the classes that have objects; NaN if none has."""
        return self.result.mean_ap


def evaluate_weights(
    config: Config,
    weights: str | Path,
    folder: str | Path,
    with_coco: bool = False,
    with_report: bool = False,
    with_thresholds: bool = True,
) -> Evaluation:
    """Detect in the images of config.data.test and score, into `folder`.

    The network is that of the weights file, the settings of detection are config's. The score thresholds of best F1 are
    kept in the weights file (see keep_thresholds), unless with_thresholds is False. A killed evaluation resumes when it
    is started again with the same weights, settings and images; so is one that `detect_part` has begun. Raises
    FastRCNNError for wrong input.
    """
    folder, weights, device = Path(folder), weights_file(weights), choose_device(config.device)
    _check_outputs(config, weights, folder, (DETECTIONS, *SCORES, *[REPORT] * with_report))
    with lock(folder / ".lock", "the results folder"):
        problems: list[Problem] = []
        seen = _Pass(with_recall=with_report)
        images = open_data(_test_sets(config), config, problems, seen.add)
        _check_labels(config, images.records, problems)
        detector, trained = load_detector(config, weights, device)
        key = _key(config, weights, seen.digest)
        journal, parts = _journal(folder / PARTIAL, key), _parts(folder, key)
        found = _detect_all(detector, images, journal, parts)
        write_detections(folder / DETECTIONS, config.classes, found)
        origin = Origin(config, trained, DETECTIONS)
        evaluation = _score(config, found, images.records, folder, origin, with_coco)
        for each in (journal, *parts):
            each.remove()
        if with_thresholds:
            keep_thresholds(config, weights, evaluation.analysis.thresholds, len(found))
        if with_report:
            _report(config, weights, images.records, seen.covering, evaluation, folder)
        return evaluation


def detect_part(config: Config, weights: str | Path, folder: str | Path, ranks: Ranks) -> None:
    """This rank's part of the detection that evaluate_weights, with the same arguments, then finds done in `folder`.

    What was detected before is shared out anew, so that the number of ranks may differ from that of a killed run.
    Raises FastRCNNError as evaluate_weights does.
    """
    folder, weights, device = Path(folder), weights_file(weights), choose_device(config.device, ranks)
    held = lock(folder / ".lock", "the results folder") if ranks.main else contextlib.nullcontext()
    with held:
        seen = _Pass(with_recall=False)
        with ranks.one_first():
            images = open_data(_test_sets(config), config, None, seen.add)
        key = _key(config, weights, seen.digest)
        own = _journal(folder / (PARTIAL if ranks.main else PART.format(ranks.rank)), key)
        before = {image.id for part in (own, *_parts(folder, key)) for image, _ in part.items}
        known = before.union(*ranks.gather(before))  # on machines that share no disk, others are
        left = [i for i, record in enumerate(images.records) if record.id not in known]
        share = ranks.share(left)
        detector, _ = load_detector(config, weights, device)
        _detect_all(detector, ImageSet([images.records[i] for i in share], images.proposals), own, [], ranks)
        ranks.wait()


def evaluate_on_ranks(
    config: Config, weights: str | Path, folder: str | Path, ranks: Ranks, with_thresholds: bool = True
) -> Evaluation | None:
    """evaluate_weights by all ranks that see the weights file, each with its share of the images; the first rank scores
    and alone is given what was found. Raises FastRCNNError as evaluate_weights does."""
    if ranks.world > 1 and not ranks.any(not Path(weights).exists()):
        detect_part(config, weights, folder, ranks)
    return evaluate_weights(config, weights, folder, with_thresholds=with_thresholds) if ranks.main else None


def evaluate_detections(
    config: Config, detections: str | Path, folder: str | Path, with_coco: bool = False, with_report: bool = False
) -> Evaluation:
    """Score saved detections (a detections.json) on config.data.test again, without the network."""
    _check_outputs(config, detections, Path(folder), (*SCORES, *[REPORT] * with_report))
    _, images = read_detections(detections)
    problems: list[Problem] = []
    records = read_data_sets(_test_sets(config), config.data, config.classes, problems)
    _check_labels(config, records, problems)
    origin = Origin(config, trained_for(detections), named_from(folder, detections))
    evaluation = _score(config, images, records, Path(folder), origin, with_coco)
    if with_report:
        try:
            seen = Covering()
            open_data(_test_sets(config), config, None, seen.add)
            covering: Covering | None = seen
        except FastRCNNError as e:
            log.warning("%s: says nothing of the proposals: %s", REPORT, e)
            covering = None
        _report(config, Path(detections), records, covering, evaluation, Path(folder))
    return evaluation


def _check_outputs(config: Config, source: str | Path, folder: Path, names: Sequence[str]) -> None:
    read = [source, *(dataset.proposals for dataset in config.data.test or [] if dataset.proposals)]
    refuse_overwrite(read, [folder / name for name in names])


def _check_labels(config: Config, records: Sequence[ImageRecord], problems: Sequence[Problem]) -> None:
    """Warn of images with more objects than detections. Raises FastRCNNError when there is no object to find."""
    nothing = nothing_labelled("test", records, problems, config.classes)
    refuse_errors([nothing] if nothing else [])
    if config.test.detections_per_class is None:
        log_problems(crowded(records, config.test.max_detections))


def _test_sets(config: Config) -> list[DataSetConfig]:
    if not config.data.test:
        raise FastRCNNError("data.test names no data set to evaluate on; set data.test, as data.train is set")
    return config.data.test


def _score(
    config: Config,
    images: Sequence[DetectedImage],
    records: Sequence[ImageRecord],
    folder: Path,
    origin: Origin,
    with_coco: bool,
) -> Evaluation:
    rows = join(images, records, config.classes)
    result = voc.evaluate(*rows, len(config.classes) + 1, metric=config.test.ap_rule)
    table = report.ap_table(result, config.classes)
    if not any(record.annotation for record in records):
        table = (
            f"nothing to score: the test set has no annotations; its detections are in {folder} and {folder / 'voc'}"
        )
    ap, averages = dict(zip(config.classes, result.ap[1:].tolist(), strict=True)), {}
    numbers: dict[str, Any] = {"map": _number(result.mean_ap), "metric": result.metric}
    numbers["ap"] = {name: _number(value) for name, value in ap.items()}
    if with_coco and any(record.annotation for record in records):
        averages = coco.evaluate_coco(*rows, len(config.classes) + 1, config.test.max_detections)
        numbers["coco"] = {name: _number(value) for name, value in averages.items()}
        table += "\nCOCO: " + ", ".join(f"{name} {value:.4f}" for name, value in averages.items())
    analysis = analyse(*rows, config.classes, len(records), config.test.ap_rule, config.test.score_threshold)
    write_json(folder / RESULTS, {**numbers, **analysis.to_json(config.classes), **origin.to_json()})
    with atomic_write(folder / "table.txt") as file:
        file.write(f"{table}\n".encode(errors="backslashreplace"))
    report.plot_precision_recall(result, config.classes, folder / "precision_recall.png")
    names = (Path(name).stem for dataset in config.data.test for name in dataset.split_names or ["all"])
    split = "+".join(dict.fromkeys(names))
    report.write_voc_files(folder / "voc", split, config.classes, images)
    return Evaluation(result, ap, averages, images, table, rows, analysis)


def _report(
    config: Config,
    source: Path,
    records: Sequence[ImageRecord],
    covering: Covering | None,
    evaluation: Evaluation,
    folder: Path,
) -> None:
    """Write report.html. All else is written by then: without it, there is a warning."""
    recall = None if covering is None else covering.recall()
    records = sorted(records, key=lambda record: record.id)  # as the rows number them
    found = (*evaluation.rows, evaluation.result, evaluation.analysis)
    try:
        write_report(folder / REPORT, Evaluated(config, source, records, *found, recall))
        log.info("%s: all this, curves and pictures, to read in a browser", folder / REPORT)
    except FastRCNNError as e:
        log.warning("%s", e)


def _number(value: float) -> float | None:
    """JSON has no NaN, the mean over nothing."""
    return None if np.isnan(value) else value


def _detect_all(
    detector: Detector, images: ImageSet, journal: Journal[Item], parts: Sequence[Journal[Item]], ranks: Ranks = ALONE
) -> list[DetectedImage]:
    """What is found in each image; those that the journal or one of its parts holds are skipped."""
    done = {image.id: (image, top) for part in (*parts, journal) for image, top in part.items}
    per_class = detector.config.test.detections_per_class
    if done:
        log.info("%s: %d of %d images are done already", journal.path, len(done), len(images))
    with journal:
        bar = tqdm(images, "evaluating", unit="image", mininterval=1, dynamic_ncols=True, disable=not ranks.main)
        for record, proposals in bar:
            ranks.check()
            if record.id not in done:
                asked, top = (record.path, proposals, record.id), None
                if per_class is None:
                    found = detector.detect(*asked)
                else:
                    found, top = detector.best_of_each_class(*asked)
                image = DetectedImage(record.id, found, str(record.path), record.width, record.height)
                done[record.id] = image, top
                journal.append(done[record.id])
    ordered = [done[image_id] for image_id in images.ids]
    detected = [image for image, _ in ordered]
    return detected if per_class is None else chosen(detected, [top for _, top in ordered], per_class)


def _journal(path: Path, key: dict[str, Any]) -> Journal[Item]:
    """The images of an evaluation under way, or of a killed one under the same key."""
    return Journal(
        path,
        key,
        lambda item: [item[0].to_json(), None if item[1] is None else pack(item[1])],
        lambda line: (DetectedImage.from_json(line[0], key["classes"]), None if line[1] is None else unpack(line[1])),
    )


def _parts(folder: Path, key: dict[str, Any]) -> list[Journal[Item]]:
    """Those of the other ranks of an evaluation under way."""
    return [_journal(path, key) for path in sorted(folder.glob(PART.format("*")))]


class _Pass:
    """What is wanted of the images and their proposals, wherever they lie, from one pass over them."""

    def __init__(self, with_recall: bool) -> None:
        self.covering = Covering() if with_recall else None
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> None:
        self._digest.update(f"{record.id} {record.width} {record.height}\n".encode() + file_digest(record.path))
        self._digest.update(np.ascontiguousarray(proposals).tobytes())
        if self.covering is not None:
            self.covering.add(record, proposals)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


def _key(config: Config, weights: Path, images: str) -> dict[str, Any]:
    """All that detections depend on: the weights' bytes, the settings of detection, and _Pass.digest of the images."""
    return {"weights": network_digest(weights).hex(), "images": images, **detection_settings(config)}
