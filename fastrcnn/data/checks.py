"""Everything that is wrong, or worth a look, in a run's annotations, images and proposals, before any training."""

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.read import distinct_ids, image_paths, read_data_set
from fastrcnn.annotations.records import ImageRecord, class_index
from fastrcnn.config import Config
from fastrcnn.config_data import PARTS, DataSetConfig
from fastrcnn.data.check_images import Digests, as_problem, decode_all, in_two_parts, other_labels, same_pictures
from fastrcnn.data.check_labels import label_findings
from fastrcnn.data.check_proposals import (
    Coverage,
    not_made_yet,
    other_pictures,
    read_set_proposals,
)
from fastrcnn.detections import plain_name
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.proposals import Proposals
from fastrcnn.proposals.recall import Recall

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSet:
    """One data set: its readable images, and the recall of its proposals when they could be measured."""

    part: str  # of PARTS
    name: str
    records: list[ImageRecord]
    recall: Recall | None
    proposals: Proposals | None  # that can be trained on


@dataclass(frozen=True)
class Report:
    """What check found."""

    classes: list[str]
    sets: list[CheckedSet]
    findings: list[Problem]  # without repetitions, in the order of the files
    names: Counter[str]  # the class names in the files, also those that are not in classes, with their objects

    @property
    def wrong(self) -> bool:
        """Whether training would stop or learn something wrong; everything else is a remark."""
        return any(p.outcome == "error" for p in self.findings)


def check(config: Config, processes: int | None = None) -> Report:
    """Read every annotation, decode every image (in `processes`; all cores by default), look at every proposal.

    Nothing that is wrong with the data raises; all of it is in the report. Raises FastRCNNError when a process dies.
    """
    parts = [_read_part(part, config) for part in PARTS]
    paths = {part.name: [record.path for record in part.records] for part in parts}
    digests, seen = decode_all(sorted({path for part in paths.values() for path in part}), processes)
    findings = [finding for part in parts for finding in part.problems] + seen
    findings += [*in_two_parts(paths, digests), *same_pictures(paths, digests)]
    findings += other_labels([record for part in parts for record in part.records], digests)
    for part in parts:
        findings += label_findings(part.name, part.records, part.problems, config)
    waiting = [dataset for part in parts for dataset, records in part.sets if records and not_made_yet(dataset, config)]
    findings += [_wait_for_proposals(waiting)] if waiting else []
    checked = []
    for part in parts:
        for dataset, records in part.sets:
            recall = proposals = None
            if records and not not_made_yet(dataset, config):
                proposals, recall, new = _check_proposals(dataset, records, config, digests)
                findings += new
            checked.append(CheckedSet(part.name, f"{part.name} {dataset.label}", records, recall, proposals))
    names = sum((_names(part, config.classes) for part in parts), Counter())
    return Report(config.classes, checked, list(dict.fromkeys(findings)), names)


def readable(report: Report, part: str) -> list[ImageRecord]:
    """The images of a part that can be decoded."""
    unreadable = {p.file for p in report.findings if p.kind == "unreadable image"}
    return [r for s in report.sets if s.part == part for r in s.records if r.path not in unreadable]


def files_in_both(train: Sequence[ImageRecord], config: Config) -> list[Problem]:
    """Images that two parts of the data name, by their paths; `train` has been read already, no other is opened.

    A data set that is not there yet is left out.
    """
    paths = {"train": [record.path for record in train]}
    for part in PARTS[1:]:
        paths[part] = []
        for dataset in getattr(config.data, part):
            with contextlib.suppress(FastRCNNError):
                paths[part] += image_paths(dataset, config.data)
    if not any(paths[part] for part in PARTS[1:]):
        return []
    same: dict[Path, bytes | None] = {path: str(path.resolve()).encode() for part in paths.values() for path in part}
    return list(in_two_parts(paths, same))


# ---- annotations


@dataclass(frozen=True)
class _Part:
    """What reading the annotations of a part gives."""

    name: str
    sets: list[tuple[DataSetConfig, list[ImageRecord]]]
    problems: list[Problem]

    @property
    def records(self) -> list[ImageRecord]:
        return [record for _, records in self.sets for record in records]


def _read_part(name: str, config: Config) -> _Part:
    """A data set that cannot be read as a whole, or is empty, gives one problem."""
    datasets: list[DataSetConfig] = getattr(config.data, name)
    index = class_index(config.classes)
    problems: list[Problem] = []
    read: list[list[ImageRecord]] = []
    for dataset in datasets:
        read.append([])
        empty = True
        try:
            for record, new in read_data_set(dataset, config.data, index):
                problems += new
                read[-1] += [record] if record is not None else []
                empty = False
            if empty:
                raise FastRCNNError(f"{dataset.root}: holds no images; check the root and the split")
        except FastRCNNError as e:
            problems.append(as_problem("unreadable data set", Path(dataset.root), e))
    distinct, new = distinct_ids(datasets, read)
    return _Part(name, list(zip(datasets, distinct, strict=True)), problems + new)


def _names(part: _Part, classes: Sequence[str]) -> Counter[str]:
    names = Counter(classes[number - 1] for record in part.records for number in record.classes.tolist())
    left_out = (p.class_name for p in part.problems if p.outcome in ("error", "skipped", "ignored"))
    spelled = {plain_name(name): name for name in classes}  # spellings that differ in case are one class
    return names + Counter(spelled.setdefault(plain_name(name), name) for name in left_out if name is not None)


# ---- proposals


def _wait_for_proposals(datasets: Sequence[DataSetConfig]) -> Problem:
    """The one line on proposals that are not there yet."""
    files = list(dict.fromkeys(dataset.proposals for dataset in datasets if dataset.proposals))
    if files:
        others = f" ({len(files) - 1} more like it)" if len(files) > 1 else ""
        text = f"does not exist yet{others}; make it with tools/proposals.py, then check what it covers"
        return Problem("proposals not made yet", Path(files[0]), None, text, "noted")
    text = "names no proposals yet; set `proposals` to a file, and make it with tools/proposals.py"
    return Problem("proposals not made yet", Path(datasets[0].root), None, text, "noted")


def _check_proposals(
    dataset: DataSetConfig, records: list[ImageRecord], config: Config, digests: Digests
) -> tuple[Proposals | None, Recall | None, list[Problem]]:
    """Proposals that can be used, their recall, and what is wrong with them."""
    log.info("%s: looking at the proposals, and at how many objects they cover", dataset.label)
    coverage = Coverage(config.sampling.foreground_iou)
    proposals, findings = read_set_proposals(dataset, records, config, coverage.add)
    if proposals is None:
        return None, None, findings
    findings += other_pictures(proposals, [record for record in records if record.id in proposals], digests)
    findings += coverage.without_proposals
    if any(p.kind not in ("proposals missing", "proposals of another picture", "no proposals") for p in findings):
        return None, None, findings
    return proposals, coverage.covering.recall(), findings + coverage.without_foreground
