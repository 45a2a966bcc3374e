"""From weights to mAP: detect in every test image, then score and write all that an evaluation leaves behind."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.annotations.problems import Problem, log_problems, refuse_errors
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config
from fastrcnn.data.check_labels import crowded, nothing_labelled
from fastrcnn.data.image_set import open_data
from fastrcnn.detect.detector import load_detector
from fastrcnn.detections import DetectedImage, read_detections, write_detections
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate import coco, report, voc
from fastrcnn.evaluate.analysis import Analysis, analyse
from fastrcnn.evaluate.detect_set import (
    PARTIAL,
    Pass,
    detect_all,
    detect_part,
    detection_key,
    open_journal,
    open_parts,
    test_sets,
)
from fastrcnn.evaluate.html_report import write_report
from fastrcnn.evaluate.keep_thresholds import keep_thresholds
from fastrcnn.evaluate.report_sections import Evaluated
from fastrcnn.evaluate.results import RESULTS, Origin, named_from, trained_for
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, join
from fastrcnn.files import atomic_write, lock, refuse_overwrite, write_json
from fastrcnn.model.weights import weights_file
from fastrcnn.proposals.recall import Covering
from fastrcnn.ranks import Ranks

log = logging.getLogger(__name__)

DETECTIONS = "detections.json"
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

    The network is that of the weights file, the settings of detection are config's. Proposals of data sets that name
    none are searched on the way, by processes, which import the calling script. The score thresholds of best F1 are
    kept in the weights file (see keep_thresholds), unless with_thresholds is False. A killed evaluation resumes when it
    is started again with the same weights, settings and images; so is one that `detect_part` has begun. Raises
    FastRCNNError for wrong input.
    """
    folder, weights, device = Path(folder), weights_file(weights), choose_device(config.device)
    _check_outputs(config, weights, folder, (DETECTIONS, *SCORES, *[REPORT] * with_report))
    with lock(folder / ".lock", "the results folder"):
        problems: list[Problem] = []
        seen = Pass(with_recall=with_report)
        images = seen.open(config, problems)
        _check_labels(config, images.records, problems)
        detector, trained = load_detector(config, weights, device)
        key = detection_key(config, weights, seen.digest)
        journal, parts = open_journal(folder / PARTIAL, key), open_parts(folder, key)
        found = detect_all(detector, images, journal, parts, covering=seen.covering)
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
    records = read_data_sets(test_sets(config), config.data, config.classes, problems)
    _check_labels(config, records, problems)
    origin = Origin(config, trained_for(detections), named_from(folder, detections))
    evaluation = _score(config, images, records, Path(folder), origin, with_coco)
    if with_report:
        try:
            seen = Covering()
            open_data(test_sets(config), config, None, seen.add)
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
