"""Everything that is wrong, or worth a look, in a run's annotations, images and proposals, before any training."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastrcnn.annotations.ids import distinct_ids
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.read import image_paths, read_data_set
from fastrcnn.annotations.records import ImageRecord, class_index
from fastrcnn.config import Config, DataSetConfig
from fastrcnn.data.image_set import ImageSet
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import file_digest
from fastrcnn.images import FORMATS, orientation, read_image, used_range
from fastrcnn.processes import cores, workers
from fastrcnn.proposals.fit import find_problems
from fastrcnn.proposals.proposals import Proposals, join, read_proposals
from fastrcnn.proposals.recall import SIZES, Recall, proposal_recall

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSet:
    """One data set: its readable images, and the recall of its proposals when they could be measured."""

    part: str  # train | test
    name: str
    records: list[ImageRecord]
    recall: Recall | None


@dataclass(frozen=True)
class Report:
    """What check found."""

    classes: list[str]
    sets: list[CheckedSet]
    findings: list[Problem]  # without repetitions, in the order of the files

    @property
    def wrong(self) -> bool:
        """Whether training would stop or learn something wrong; everything else is a remark."""
        return any(p.outcome == "error" for p in self.findings)

    def text(self, per_kind: int | None = 10) -> str:
        """The report for people: findings by kind, errors first, at most `per_kind` of each; then the tables."""
        return "\n\n".join([_findings_text(self.findings, per_kind), _class_table(self), *_recall_tables(self)])


def check(config: Config, processes: int | None = None) -> Report:
    """Read every annotation, decode every image (in `processes`; all cores by default), look at every proposal.

    Nothing that is wrong with the data raises; all of it is in the report. Raises FastRCNNError when a process dies.
    """
    findings: list[Problem] = []
    index = class_index(config.classes)
    sets = []
    for part in ("train", "test"):
        datasets = getattr(config.data, part)
        read: list[list[ImageRecord]] = []
        for dataset in datasets:
            read.append([])
            for record, problems in _read_all(dataset, config, index):
                findings += problems
                read[-1] += [record] if record is not None else []
        distinct, problems = distinct_ids(datasets, read)
        findings += problems
        sets += [(part, dataset, records) for dataset, records in zip(datasets, distinct, strict=True)]

    paths = {part: [r.path for p, _, records in sets if p == part for r in records] for part in ("train", "test")}
    pixels = _decode_all(sorted({*paths["train"], *paths["test"]}), processes or cores())
    findings += [finding for seen in pixels.values() for finding in seen.findings]
    findings += _same_pictures(paths, {path: seen.digest for path, seen in pixels.items()})

    checked = []
    usable: dict[str, list[Proposals]] = {"train": [], "test": []}
    for part, dataset, records in sets:
        proposals, problems = _read_proposals(dataset, records, config)
        findings += problems
        recall = None
        if proposals is not None:
            usable[part].append(proposals)
            known = [r for r in records if r.id in proposals]
            findings += _other_pictures(proposals, known, pixels)
            if all(p.kind == "proposals missing" for p in problems):
                log.info("measuring how many objects %s covers", proposals.path)
                recall = proposal_recall(ImageSet(known, proposals))
                findings += _without_foreground(known, proposals, recall, config.sampling.foreground_iou)
        name = f"{part} {dataset.label}"
        checked.append(CheckedSet(part, name, records, recall))
    for part, stores in usable.items():
        records = [record for checked_set in checked if checked_set.part == part for record in checked_set.records]
        if getattr(config.data, part):
            findings += quick_findings(part, ImageSet(records, join(stores)), config.classes)
    return Report(config.classes, checked, list(dict.fromkeys(findings)))


def quick_findings(part: str, images: ImageSet, classes: list[str]) -> list[Problem]:
    """Remarks on all records of a part (train or test) without opening a file: what will give little."""
    found = []
    for record in images.records:
        if len(record.boxes) == 0 and record.annotation is not None:
            text = "has no objects of these classes; data.drop_empty: true leaves such images out of training"
            found.append(Problem("no objects", record.annotation, None, text, "noted"))
        if record.id in images.proposals and len(images.proposals[record.id]) == 0:
            text = "has 0 proposals: it trains on its objects alone, and nothing in it can be found"
            found.append(Problem("no proposals", record.path, None, text, "noted"))
    present = {int(number) for record in images.records for number in record.classes}
    if part == "test" and not any(record.annotation for record in images.records):
        return found  # nothing will be scored
    if part == "train" and images.records and not present:
        text = "holds no object of any class, so that there is nothing to learn; see what was left out, and classes"
        return [*found, Problem("no objects at all", Path("data.train"), None, text)]
    for number, name in enumerate(classes, start=1):
        if number not in present:
            text = f"holds no object of class {name!r}; check how the XML files spell it, or leave it out of classes"
            found.append(Problem("class without objects", Path(f"data.{part}"), None, text, "noted"))
    return found


def files_in_both(config: Config) -> list[Problem]:
    """Images of data.train that data.test names too, by their paths. Raises FastRCNNError as image_paths does."""
    paths = {
        part: [path for dataset in getattr(config.data, part) for path in image_paths(dataset, config.data)]
        for part in ("train", "test")
    }
    same = {path: str(path.resolve()).encode() for part in paths.values() for path in part}
    return [p for p in _same_pictures(paths, same) if p.outcome == "error"]


# ---- annotations


def _read_all(
    dataset: DataSetConfig, config: Config, index: dict[str, int]
) -> Iterator[tuple[ImageRecord | None, list[Problem]]]:
    """read_data_set; for a set that cannot be read as a whole, or is empty, one problem."""
    where = Path(dataset.root)
    empty = True
    try:
        for found in read_data_set(dataset, config.data, index):
            yield found
            empty = False
    except FastRCNNError as e:
        yield None, [_as_problem("unreadable data set", where, e)]
        return
    if empty:
        yield None, [Problem("unreadable data set", where, None, "holds no images; check the root and the split")]


def _as_problem(kind: str, file: Path, error: FastRCNNError) -> Problem:
    """An error as a finding; its message may name another file than `file` as the culprit, which then comes first."""
    culprit, colon, text = str(error).partition(": ")
    return Problem(kind, Path(culprit), None, text) if colon else Problem(kind, file, None, str(error))


# ---- images


@dataclass(frozen=True)
class Pixels:
    """What decoding one image file tells."""

    digest: bytes | None  # of the file's bytes, as in a proposals file; None when unreadable
    findings: list[Problem]


def _decode_all(paths: list[Path], processes: int) -> dict[Path, Pixels]:
    processes = max(min(processes, len(paths) // 64), 1)  # a process takes as long to start as to decode some hundred
    with nullcontext() if processes == 1 else workers(processes) as pool:
        results = map(_decode, paths) if pool is None else pool.map(_decode, paths, chunksize=16)
        bar = tqdm(results, total=len(paths), desc="images", unit="image", leave=False)
        try:
            return dict(zip(paths, bar, strict=True))
        except BrokenProcessPool:
            raise FastRCNNError(
                "decoding images: a process died, perhaps for lack of memory; run again with fewer processes"
            ) from None


def _decode(path: Path) -> Pixels:
    try:
        read_image(path)
    except FastRCNNError as e:
        return Pixels(None, [_as_problem("unreadable image", path, e)])
    with Image.open(path, formats=FORMATS) as image:
        turn = orientation(image)
    findings = []
    if turn != 1:
        text = (
            f"EXIF orientation {turn}: it is turned upright, and its boxes are taken to be drawn upright; look at one"
        )
        findings.append(Problem("EXIF rotation", path, None, text, "noted"))
    used = used_range(path)
    if used is not None:
        text = f"has 16 bits a pixel but uses {used[0]} to {used[1]} only, so that it is read as dark or black"
        text += f"; multiply its values by {65535 // max(used[1], 1)}, or save it with 8 bits"
        findings.append(Problem("dark 16 bits", path, None, text, "noted"))
    return Pixels(file_digest(path), findings)


def _same_pictures(paths: dict[str, list[Path]], digests: Mapping[Path, bytes | None]) -> list[Problem]:
    """Images with equal digests: an error between train and test, whose score would be a lie; else a remark."""
    found = []
    first: dict[str, dict[bytes, Path]] = {"train": {}, "test": {}}
    for part in ("train", "test"):
        for path in paths[part]:
            digest = digests[path]
            if digest is None:
                continue
            if part == "test" and digest in first["train"]:
                text = f"is trained on as {first['train'][digest]}; take it out of data.train or data.test"
                found.append(Problem("image in train and test", path, None, text))
            if digest in first[part]:
                text = f"is the same file as {first[part][digest]}; it counts twice in data.{part}"
                found.append(Problem("duplicate image", path, None, text, "noted"))
            first[part].setdefault(digest, path)
    return found


# ---- proposals


def _read_proposals(
    dataset: DataSetConfig, records: list[ImageRecord], config: Config
) -> tuple[Proposals | None, list[Problem]]:
    if dataset.proposals is None:
        text = "the data set names no proposals; set `proposals` to a file, and make it with tools/proposals.py"
        return None, [Problem("proposals missing", Path(dataset.root), None, text)]
    path = Path(dataset.proposals)
    try:
        proposals = read_proposals(path, records, config.proposals)
    except FastRCNNError as e:
        return None, [_as_problem("unreadable proposals", path, e)]
    return proposals, find_problems(proposals, records)


def _other_pictures(proposals: Proposals, records: list[ImageRecord], pixels: dict[Path, Pixels]) -> Iterator[Problem]:
    """Images whose file has changed since the proposals were made, where the proposals file can tell."""
    if proposals.stored.digests is None:
        return
    made_from = dict(zip(proposals.stored.ids, proposals.stored.digests, strict=True))
    for record in records:
        digest = pixels[record.path].digest
        if digest is not None and digest != made_from[record.id].tobytes():
            text = f"has changed since its proposals in {proposals.path} were made; run tools/proposals.py again"
            yield Problem("proposals of another picture", record.path, None, text, "noted")


def _without_foreground(
    records: list[ImageRecord], proposals: Proposals, recall: Recall, foreground_iou: float
) -> Iterator[Problem]:
    """Images none of whose objects, difficult ones included, has a proposal with this IoU."""
    end = 0
    for record in records:
        start, end = end, end + int((~record.difficult).sum())
        if len(record.boxes) == 0 or recall.best_iou[start:end].max(initial=0) >= foreground_iou:
            continue
        with_difficult = replace(record, difficult=np.zeros_like(record.difficult))
        highest = proposal_recall([(with_difficult, proposals[record.id])]).best_iou.max()
        if highest < foreground_iou:
            text = f"no proposal has IoU {foreground_iou:g} with any of its objects (at most {highest:.3f})"
            hint = "; foreground comes from the objects alone, and nothing in it can be found"
            yield Problem("no foreground proposal", record.path, None, text + hint, "noted")


# ---- the report


def _findings_text(findings: list[Problem], per_kind: int | None) -> str:
    if not findings:
        return "nothing to report"
    groups: dict[tuple[bool, str, str], list[Problem]] = defaultdict(list)
    for problem in findings:
        groups[problem.outcome != "error", problem.kind, problem.outcome].append(problem)
    lines = []
    for (_, kind, outcome), problems in sorted(groups.items()):
        lines.append(f"{kind}: {len(problems)} ({outcome})")
        lines += [f"    {problem}" for problem in problems[:per_kind]]
        if len(problems) > len(problems[:per_kind]):
            lines.append(f"    and {len(problems) - len(problems[:per_kind])} more")
    return "\n".join(lines)


def _class_table(report: Report) -> str:
    """Objects (difficult ones among them) and images with objects, by class and part."""
    counts: dict[str, Counter] = {part: Counter() for part in ("train", "test")}
    for checked in report.sets:
        for record in checked.records:
            count = counts[checked.part]
            count.update(("objects", k) for k in record.classes.tolist())
            count.update(("difficult", k) for k in record.classes[record.difficult].tolist())
            count.update(("images", k) for k in set(record.classes.tolist()))
    columns = [(part, what) for part in counts for what in ("objects", "difficult", "images")]
    width = max(map(len, [*report.classes, "class"]))
    lines = [f"{'class':{width}}" + "".join(f"{part + ' ' + what:>17}" for part, what in columns)]
    for k, name in enumerate(report.classes, start=1):
        lines.append(f"{name:{width}}" + "".join(f"{counts[part][what, k]:17}" for part, what in columns))
    for part in counts:
        images = sum(len(checked.records) for checked in report.sets if checked.part == part)
        empty = sum(len(r.boxes) == 0 for checked in report.sets if checked.part == part for r in checked.records)
        lines.append(f"{part}: {images} images, {empty} of them without objects")
    return "\n".join(lines)


def _recall_tables(report: Report) -> list[str]:
    tables = []
    for checked in report.sets:
        recall = checked.recall
        if recall is None or not len(recall.best_iou):
            reason = "its proposals cannot be used" if recall is None else "it has no objects"
            tables.append(f"recall of {checked.name}: not measured, as {reason}")
            continue
        width = max(map(len, [*report.classes, "medium"]))
        head = f"recall of {checked.name} ({recall.difficult} difficult objects left out)"
        rows = {"all": (recall.overall(), len(recall.best_iou))}
        rows |= {name: (recall.by_size()[name], recall.of_size(name).sum()) for name in SIZES}
        by_class = recall.by_class(len(report.classes) + 1)
        for k, name in enumerate(report.classes, start=1):
            rows[name] = (by_class[k], (recall.classes == k).sum())
        lines = [head, f"{'':{width}}" + "".join(f"{f'IoU {t:g}':>9}" for t in recall.thresholds) + f"{'objects':>9}"]
        for name, (shares, objects) in rows.items():
            lines.append(f"{name:{width}}" + "".join(f"{share:9.3f}" for share in shares) + f"{objects:9}")
        tables.append("\n".join(lines))
    return tables
