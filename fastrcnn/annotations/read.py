"""Annotated images: the VOC layout, folders as LabelImg leaves them, and what is wrong with them.

XML files hold boxes in pixels of the upright picture (EXIF applied, as labelling tools show it). `xml_origin: 1` is
VOC: the first pixel is 1 and both ends belong to the box, so it becomes (xmin - 1, ymin - 1, xmax, ymax).
`xml_origin: 0` is what CVAT, Roboflow and labelme write: positions between pixels, where the right edge of the image is
its width, so the numbers are taken as they are, half open. (LabelImg writes such positions too, but never below 1.)
"""

import difflib
import logging
import math
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from fastrcnn.config import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import SUFFIXES, image_size

log = logging.getLogger(__name__)

TINY = 4  # image pixels: an object with a shorter side is more often a slip of the mouse than an object


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image with its G objects."""

    id: str  # file name without suffix, as in VOC's lists
    path: Path
    width: int  # image pixels, upright
    height: int
    boxes: np.ndarray  # float32 [G, 4], image pixels, half open
    classes: np.ndarray  # int64 [G], in 1..K-1
    difficult: np.ndarray  # bool [G]
    annotation: Path | None  # the XML file; None for an image without one


@dataclass(frozen=True)
class Problem:
    """Something found in one file. `outcome` says what was done about it; "error" stops training."""

    kind: str  # such as "box outside"; those of boxes start with "box"
    file: Path
    object: int | None  # number of the object in its XML file, from 1
    text: str  # what is wrong, and the remedy
    outcome: str = "error"  # error | clipped | skipped | ignored | noted

    def __str__(self) -> str:
        return f"{self.file}: " + (f"object {self.object}: " if self.object else "") + self.text


@dataclass(frozen=True)
class Entry:
    """The files of one image id, before any is opened."""

    id: str
    images: tuple[Path, ...]  # exactly one if all is well
    annotation: Path | None
    folder: Path  # where the image was looked for
    annotation_folder: Path
    listing: Path | None  # the list that names it; None: it was found in a folder
    needs_annotation: bool  # False: no XML means no objects


def read_data_sets(
    datasets: list[DataSetConfig],
    data: DataConfig,
    classes: list[str],
    problems: list[Problem] | None = None,
) -> list[ImageRecord]:
    """The images of several data sets, joined, in the order of their lists.

    Reads each XML file and each image's header. What was clipped, skipped, ignored or noted is logged by kind and
    appended to `problems`. Raises FastRCNNError for the first thing that is an error under `data`, for an id that
    stands twice, and for sets without images.
    """
    index = class_index(classes)
    found: list[Problem] = []
    records: list[ImageRecord] = []
    files: dict[str, Path] = {}
    for dataset in datasets:
        for entry in list_entries(dataset):
            record, new = read_entry(entry, data, index)
            if record is not None and entry.id in files:
                new.append(twice(record, files[entry.id]))
            for problem in new:
                if problem.outcome == "error":
                    raise FastRCNNError(str(problem))
            found += new
            files[entry.id] = record.path
            records.append(record)
    log_problems(found)
    if problems is not None:
        problems += found
    if not records:
        names = ", ".join(f"{dataset.root} {dataset.split}".strip() for dataset in datasets)
        raise FastRCNNError(f"{names or 'the list of data sets'}: holds no images; check the root and the split")
    return records


def class_index(classes: list[str]) -> dict[str, int]:
    """Number of each class, 1..K-1, under its name without case and surrounding space."""
    return {_plain(name): number for number, name in enumerate(classes, start=1)}


def twice(record: ImageRecord, first: Path) -> Problem:
    """The finding that `record` has the id of the image `first`."""
    text = f"its id {record.id} is that of {first}, read before; rename it, or leave it out of one list"
    return Problem("duplicate id", record.path, None, text)


def for_training(records: list[ImageRecord], data: DataConfig) -> list[ImageRecord]:
    """The records without what drop_difficult and drop_empty leave out; evaluation needs all.

    Raises FastRCNNError when nothing is left.
    """
    if data.drop_difficult:
        records = [_without_difficult(r) if r.difficult.any() else r for r in records]
    if data.drop_empty:
        records = [r for r in records if len(r.boxes)]
    if not records:
        raise FastRCNNError("data.train: holds no images with objects to train on; check classes, or data.drop_empty")
    return records


def _without_difficult(r: ImageRecord) -> ImageRecord:
    keep = ~r.difficult
    kept = r.boxes[keep], r.classes[keep], r.difficult[keep]
    return ImageRecord(r.id, r.path, r.width, r.height, *kept, r.annotation)


def log_problems(problems: list[Problem]) -> None:
    """Warn of each kind once, with its number and the first of its kind."""
    for (kind, outcome), count in Counter((p.kind, p.outcome) for p in problems).items():
        first = next(p for p in problems if p.kind == kind and p.outcome == outcome)
        log.warning("%s: %d %s; the first: %s", kind, count, outcome, first)


# ---- which files belong together


def list_entries(dataset: DataSetConfig) -> list[Entry]:
    """The files of every image of a data set, in the order of its list, else by name.

    Raises FastRCNNError when the folder or the list is missing. Single files may be: read_entry reports those.
    """
    return _voc_entries(dataset) if dataset.format == "voc" else _folder_entries(dataset)


def _voc_entries(dataset: DataSetConfig) -> list[Entry]:
    root = Path(dataset.root)
    listing = root / "ImageSets" / "Main" / f"{dataset.split}.txt"
    if dataset.download and not listing.exists():
        download_voc(root, dataset.split)
    images, xml = root / "JPEGImages", root / "Annotations"
    by_stem, xml_by_stem = _by_stem(images, SUFFIXES), _by_stem(xml, (".xml",))
    entries = []
    for line in _lines(listing):
        # VOC's per-class lists hold 1, 0 (difficult only) or -1 (class absent) behind the id; absent ones are left out.
        match = None if line in by_stem else re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
        stem, label = match.groups() if match else (line, "1")
        if label != "-1":
            entries.append(_entry(stem, by_stem, xml_by_stem, images, xml, listing, needs_annotation=True))
    return entries


def _folder_entries(dataset: DataSetConfig) -> list[Entry]:
    images = Path(dataset.root)
    xml = Path(dataset.annotations or dataset.root)
    by_stem, xml_by_stem = _by_stem(images, SUFFIXES), _by_stem(xml, (".xml",))
    if not xml_by_stem:
        raise FastRCNNError(f"{xml}: holds no XML file; set `annotations` of the data set to the folder that does")
    stems = sorted(by_stem.keys() | xml_by_stem.keys())
    listing = Path(dataset.split) if dataset.split else None
    if listing:
        lines = _lines(listing)
        stems = [Path(line).stem if Path(line).suffix.lower() in SUFFIXES else line for line in lines]
    return [_entry(stem, by_stem, xml_by_stem, images, xml, listing, needs_annotation=False) for stem in stems]


def _entry(
    stem: str, by_stem: dict, xml_by_stem: dict, images: Path, xml: Path, listing: Path | None, needs_annotation: bool
) -> Entry:
    annotation = xml_by_stem.get(stem, [None])[0]
    return Entry(stem, tuple(by_stem.get(stem, ())), annotation, images, xml, listing, needs_annotation)


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of a folder by name without suffix: one listing instead of a stat for each of 17,000 files."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as e:
        reason = "no such folder" if isinstance(e, FileNotFoundError) else f"cannot be read: {e.strerror}"
        raise FastRCNNError(f"{folder}: {reason}; check the root of the data set") from None
    result: dict[str, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            result.setdefault(path.stem, []).append(path)
    return result


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FastRCNNError(f"{path}: no such list of images; check the split of the data set") from None
    except OSError as e:
        raise FastRCNNError(f"{path}: cannot be read: {e.strerror}; check its permissions") from None
    except UnicodeDecodeError:
        raise FastRCNNError(f"{path}: is not a text file; write one image name a line, in UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


# ---- one image


def read_entry(entry: Entry, data: DataConfig, index: dict[str, int]) -> tuple[ImageRecord | None, list[Problem]]:
    """The record of one image and what is wrong with it; no record when a file is missing or unreadable.

    Never raises for bad input: problems whose outcome is "error" are the caller's to raise or to list.
    """
    if not entry.images:
        path = entry.folder / f"{entry.id}.jpg"
        where = f"; {entry.annotation} has no image" if entry.annotation else ""
        drop = f"drop {entry.id} from {entry.listing}" if entry.listing else f"remove {entry.annotation}"
        return None, [Problem("missing image", path, None, f"no such image{where}; restore it or {drop}")]
    if len(entry.images) > 1:
        others = ", ".join(path.name for path in entry.images[1:])
        text = f"has the same name as {others} but for the suffix; remove or rename all but one"
        return None, [Problem("duplicate id", entry.images[0], None, text)]
    path = entry.images[0]
    try:
        width, height = image_size(path)
    except FastRCNNError as e:
        return None, [Problem("unreadable image", path, None, str(e).removeprefix(f"{path}: "))]

    objects: list[tuple[np.ndarray, int, bool]] = []
    problems: list[Problem] = []
    if entry.annotation is not None:
        try:
            root = parse_xml(entry.annotation)
        except FastRCNNError as e:
            text = str(e).removeprefix(f"{entry.annotation}: ")
            return None, [Problem("unreadable annotation", entry.annotation, None, text)]
        problems += _check_size(root, entry.annotation, width, height)
        for number, element in enumerate(root.findall("object"), start=1):
            found, new = _read_object(element, number, entry.annotation, width, height, data, index)
            objects += found
            problems += new
    elif entry.needs_annotation:
        xml = entry.annotation_folder / f"{entry.id}.xml"
        text = f"no such annotation; restore it or drop {entry.id} from {entry.listing}"
        return None, [Problem("missing annotation", xml, None, text)]
    else:
        text = f"no {entry.id}.xml in {entry.annotation_folder}: taken as an image without objects"
        problems.append(Problem("missing annotation", path, None, text, "noted"))

    boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
    classes = np.array([number for _, number, _ in objects], np.int64)
    difficult = np.array([flag for _, _, flag in objects], bool)
    return ImageRecord(entry.id, path, width, height, boxes, classes, difficult, entry.annotation), problems


def parse_xml(path: str | Path) -> Element:
    """The root of an annotation file. Raises FastRCNNError if it is no XML, declares entities, or is no annotation."""
    try:
        # With the C tree builder: defusedxml's own, in Python, takes six times as long.
        parser = DefusedXMLParser(target=TreeBuilder())
        parser.feed(Path(path).read_bytes())
        root = parser.close()
    except DefusedXmlException:
        raise FastRCNNError(f"{path}: declares XML entities, which are refused; remove its DOCTYPE") from None
    except OSError as e:
        raise FastRCNNError(f"{path}: cannot be read: {e.strerror}; check its permissions") from None
    except (ParseError, ValueError, LookupError) as e:
        raise FastRCNNError(f"{path}: is not XML: {e}; restore it or label the image again") from None
    if root.tag != "annotation":
        raise FastRCNNError(f"{path}: is not a VOC annotation: its root is <{root.tag}>; export it as Pascal VOC")
    return root


def _check_size(root: Element, path: Path, width: int, height: int) -> list[Problem]:
    said = tuple((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    if said in (("", ""), (str(width), str(height))):
        return []
    text = f"<size> says {said[0]} x {said[1]}, the upright image has {width} x {height}; the image's is used"
    if said == (str(height), str(width)):
        text += " (if the boxes were drawn on the picture lying on its side, draw them again)"
    return [Problem("size differs", path, None, text, "noted")]


def _read_object(
    element: Element, number: int, path: Path, width: int, height: int, data: DataConfig, index: dict[str, int]
) -> tuple[list[tuple[np.ndarray, int, bool]], list[Problem]]:
    """[(box [4], class, difficult)] of an <object>, or [] if it is left out, and what is wrong with it."""
    name = (element.findtext("name") or "").strip()
    if _plain(name) not in index:
        if data.on_unknown_class == "ignore":
            return [], [Problem("unknown class", path, number, f"its class {name!r} is not in classes", "ignored")]
        near = difflib.get_close_matches(_plain(name), index, n=1, cutoff=0.0)[0]
        text = f"its class {name!r} is not in classes (nearest: {near!r}); add it, or set data.on_unknown_class: ignore"
        return [], [Problem("unknown class", path, number, text)]

    flag = (element.findtext("difficult") or "0").strip().lower()
    if flag not in ("", "0", "1", "false", "true"):
        return [], [Problem("bad <difficult>", path, number, f"its <difficult> is {flag!r}; write 0 or 1")]

    problems = []
    box, kind, text = _read_box(element, width, height, data.xml_origin)
    if kind:
        box, outcome = _mend(box, width, height, data.on_bad_box)
        if outcome == "error":
            text += "; correct it, or set data.on_bad_box: clip or skip"
        problems = [Problem(kind, path, number, text, outcome)]
    elif min(box[2] - box[0], box[3] - box[1]) < TINY:
        text = f"its box {_shown(element)} has a side below {TINY} pixels; remove it if it is a slip of the mouse"
        problems = [Problem("box tiny", path, number, text, "noted")]
    objects = [] if box is None else [(box, index[_plain(name)], flag in ("1", "true"))]
    return objects, problems


def _mend(box: np.ndarray | None, width: int, height: int, on_bad_box: str) -> tuple[np.ndarray | None, str]:
    """What becomes of a bad box, and the outcome; one that clipping leaves empty or inside out is skipped."""
    if on_bad_box == "error":
        return None, "error"
    if on_bad_box == "clip" and box is not None:
        clipped = np.clip(box, 0, np.array([width, height, width, height], np.float32))
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            return clipped, "clipped"
    return None, "skipped"


def _read_box(element: Element, width: int, height: int, origin: int) -> tuple[np.ndarray | None, str, str]:
    """(float32 [4] half open in image pixels, kind of what is wrong with it or "", description); None if unreadable."""
    try:
        raw = [float(text) for text in _sides(element)]
    except ValueError:
        raw = [math.nan]
    shown = _shown(element)
    if not all(map(math.isfinite, raw)):
        return None, "box unreadable", f"its <bndbox> {shown} does not hold four numbers"
    with np.errstate(over="ignore"):
        box = np.array([raw[0] - origin, raw[1] - origin, raw[2], raw[3]], np.float64).astype(np.float32)
    if box[2] < box[0] or box[3] < box[1]:
        return box, "box inside out", f"its box {shown} is inside out"
    if not (box[2] > box[0] and box[3] > box[1]):
        return box, "box empty", f"its box {shown} is empty"
    if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
        text = f"its box {shown} leaves the image of {width} x {height} pixels"
        if origin == 1 and 0 <= min(raw[:2]) < 1:
            text += "; the first pixel is 1 here: set data.xml_origin: 0 if your tool counts from 0"
        return box, "box outside", text
    return box, "", ""


def _sides(element: Element) -> list[str]:
    """What stands in the object's own <bndbox>; a <part> in it has another."""
    return [(element.findtext(f"bndbox/{side}") or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]


def _shown(element: Element) -> str:
    return f"({', '.join(_sides(element))})"


def _plain(name: str) -> str:
    return name.strip().lower()


# ---- download


def download_voc(root: Path, split: str) -> None:
    """Fetch a year of VOC through torchvision and leave it at `root`, whose name says which: VOC2007, VOC2012, ...

    Raises FastRCNNError when the name is no year, the archive cannot be had, or it cannot be written.
    """
    match = re.fullmatch(r"VOC(20\d\d)", root.name)
    if not match:
        raise FastRCNNError(f"{root}: download needs a root named after its year, such as data/VOCdevkit/VOC2007")
    from torchvision.datasets import VOCDetection  # late: it takes a second to import

    # Both archives of 2007 hold the folder VOCdevkit/VOC2007: unpack aside, then move. The lists go last, so that a
    # list which is there means that its images are.
    aside = root.parent / f"{root.name}.download"
    image_set = "test" if split.endswith("test") else "trainval"
    log.info("%s: downloading VOC %s %s", root, match[1], image_set)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        VOCDetection(str(aside), year=match[1], image_set=image_set, download=True)
        unpacked = next(aside.rglob(root.name))
        files = [path for path in unpacked.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: "ImageSets" in path.parts):
            target = root / path.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        shutil.rmtree(aside)
    except (OSError, RuntimeError, ValueError, StopIteration) as e:
        raise FastRCNNError(
            f"{root}: VOC {match[1]} {image_set} cannot be downloaded: {e}; unpack the archive here yourself"
        ) from e
