"""Which files belong together: VOC's folders and lists, and folders of images with XML beside or apart.

list_files lists and reads both layouts; see read.py for what every format gives. The pictures define a set: XML files
of other pictures are counted, and may serve another set.
"""

import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from fastrcnn.annotations.folders import OTHER_PICTURES, files_below, image_id, is_picture, kinds, suffix
from fastrcnn.annotations.matching import ListedNames, agree, match_annotations, read_lines
from fastrcnn.annotations.objects import ObjectReader, read_size, unlabelled, unreadable
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Found, Listing, Source, make_record
from fastrcnn.annotations.voc_xml import read_objects
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import SUFFIXES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Where a data set has its files."""

    images: Path  # folder
    annotations: Path  # folder
    listings: tuple[Path, ...]  # text files of ids; none: all that is in the folders
    voc: bool  # every image has an XML file, unless none has; in a folder, no XML file means no objects
    annotated: bool = True  # False: no image has an XML file


def list_files(dataset: DataSetConfig, data: DataConfig, index: dict[str, int]) -> Listing:
    """The images of VOC's layout and of folders, in the order of their list, else by name.

    Raises FastRCNNError when a folder or the list is missing, or no picture is there.
    """
    layout = _layout(dataset)
    for listing in layout.listings:
        if dataset.download and not listing.exists():
            download_voc(Path(dataset.root), listing.stem)
    if dataset.annotations and not layout.annotations.is_dir():
        raise FastRCNNError(f"{layout.annotations}: no such folder; check `annotations` of the data set")
    below = files_below(layout.images)
    names = [name for name in below if is_picture(name)]
    if not names:
        there = f" but {kinds(below)}" if below else ""
        raise FastRCNNError(f"{layout.images}: holds no pictures{there}; check the root of the data set")
    xmls = _xml_files(layout, below)
    chosen, problems = _listed(layout, names) if layout.listings else (_all_pictures(names), _unread(layout, below))
    annotations = match_annotations(names, xmls)
    if not layout.listings and annotations:
        problems += _other_annotations(layout, set(xmls) - set(annotations.values()))
    if not any(pictures and pictures[0] in annotations for _, pictures in chosen):
        problems.append(_without_annotations(layout, len(chosen), len(xmls)))
        layout = replace(layout, annotated=False)
    sources = []
    for identity, pictures in chosen:
        xml = annotations.get(pictures[0]) if pictures else None
        path = layout.images / (pictures[0] if pictures else f"{identity}.jpg")
        read = partial(_read_listed, identity, pictures, xml, layout, data, index)
        annotation = layout.annotations / xml if xml is not None and len(pictures) == 1 else None
        sources.append(Source(path, read, identity, annotation))
    return Listing(sources, problems)


def _layout(dataset: DataSetConfig) -> Layout:
    root, voc = Path(dataset.root), dataset.format == "voc"
    annotations = Path(dataset.annotations or (root / "Annotations" if voc else root))
    if voc:
        listings = tuple(root / "ImageSets" / "Main" / f"{name}.txt" for name in dataset.split_names)
        return Layout(root / "JPEGImages", annotations, listings, voc=True)
    return Layout(root, annotations, tuple(map(Path, dataset.split_names)), voc=False)


def _xml_files(layout: Layout, below_images: list[str]) -> list[str]:
    """Paths below the folder of annotations, which VOC's test sets lack."""
    if layout.annotations == layout.images:
        below = below_images
    elif layout.voc and not layout.annotations.exists():
        below = []
    else:
        below = files_below(layout.annotations)
    return [name for name in below if suffix(name) == ".xml"]


Chosen = list[tuple[str, list[str]]]  # (id, paths of its pictures below their folder)


def _all_pictures(names: Sequence[str]) -> Chosen:
    by_id: dict[str, list[str]] = {}
    for name in names:
        by_id.setdefault(image_id(name), []).append(name)
    return sorted(by_id.items())


def _listed(layout: Layout, names: Sequence[str]) -> tuple[Chosen, list[Problem]]:
    """The images of all lists, joined; each once."""
    joined: dict[tuple[str, ...], tuple[str, list[str]]] = {}  # by id and pictures
    problems: list[Problem] = []
    for listing in layout.listings:
        chosen, new = _listed_pictures(layout, listing, names)
        new_ones = {(identity, *pictures): (identity, pictures) for identity, pictures in chosen}
        doubled = [key[0] for key in new_ones if key in joined]
        if doubled:
            text = f"{len(doubled)} of its images are in a list before it; each counts once (the first: {doubled[0]})"
            new.append(Problem("listed twice", listing, None, text, "noted"))
        joined |= new_ones
        problems += new
    return list(joined.values()), problems


def _listed_pictures(layout: Layout, listing: Path, names: Sequence[str]) -> tuple[Chosen, list[Problem]]:
    """The images of a list in its order, each once; VOC's per-class lists leave out what they mark with -1."""
    known = ListedNames(layout.images, names)
    chosen: dict[str, tuple[str, list[str]]] = {}  # by first picture, or by line for missing ones
    written: dict[str, str] = {}  # how the list calls each picture
    doubled, loose, absent = [], [], []
    for text in read_lines(listing, known):
        line = known.find(text)
        if line is not None and line.absent:
            absent.append(text)
        elif line is None or not agree(line.written, written.setdefault(line.pictures[0], line.written)):
            chosen.setdefault(text, (text, []))  # missing: the list means another picture than the one it may fit
        elif line.pictures[0] in chosen:
            doubled.append(text)
        else:
            loose += [text] if line.loosely else []
            chosen[line.pictures[0]] = image_id(line.pictures[0]), line.pictures
    if not chosen:
        marked = f" but {len(absent)} marked -1" if absent else ""
        raise FastRCNNError(f"{listing}: names no images{marked}; check the split of the data set")
    remarks = {
        "listed twice": (doubled, "are listed more than once; each counts once"),
        "listed otherwise": (loose, "have another path or case in the folder; the files there are used"),
        "class absent": (absent, "are marked -1, as not holding the class of this list; they are left out"),
    }
    problems = [
        Problem(kind, listing, None, f"{len(lines)} images {text} (the first: {lines[0]})", "noted")
        for kind, (lines, text) in remarks.items()
        if lines
    ]
    return list(chosen.values()), problems


def _unread(layout: Layout, below: Sequence[str]) -> list[Problem]:
    """Files beside the pictures that are not read, by kind."""
    apart = layout.annotations != layout.images
    inside = f"{layout.annotations.relative_to(layout.images).as_posix()}/" if _is_below(layout) else ""
    rest = [name for name in below if not is_picture(name) and (apart or suffix(name) != ".xml")]
    rest = [name for name in rest if not (inside and name.startswith(inside))]
    pictures = [name for name in rest if suffix(name) in OTHER_PICTURES]
    found = []
    if pictures:
        text = f"holds {kinds(pictures)}: pictures that are not read; save them as JPEG or PNG under the same names"
        found.append(Problem("pictures not read", layout.images, None, text, "noted"))
    others = [name for name in rest if suffix(name) not in OTHER_PICTURES]
    if others:
        text = f"holds {kinds(others)}, which are not read (the first: {others[0]})"
        found.append(Problem("files not read", layout.images, None, text, "noted"))
    return found


def _is_below(layout: Layout) -> bool:
    return layout.annotations != layout.images and layout.annotations.is_relative_to(layout.images)


def _other_annotations(layout: Layout, xmls: set[str]) -> list[Problem]:
    if not xmls:
        return []
    text = f"{len(xmls)} XML files have no picture of their name in {layout.images} (the first: {min(xmls)}); not read"
    return [Problem("annotations of other pictures", layout.annotations, None, text, "noted")]


def _without_annotations(layout: Layout, images: int, xmls: int) -> Problem:
    text = f"none of its {images} images has an XML file" + (f" ({xmls} are of other pictures)" if xmls else "")
    text += "; they can be used for detection, like a test set without annotations"
    if not layout.voc:
        text += ", unless `annotations` of the data set names the folder of their XML files"
    return Problem("no annotations", layout.annotations, None, text, "noted")


def _read_listed(
    identity: str, pictures: list[str], xml: str | None, layout: Layout, data: DataConfig, index: dict[str, int]
) -> Found:
    """The record of one image and what is wrong with it; no record when a file is missing or unreadable."""
    if not pictures:
        return unreadable(_missing(identity, layout), data)
    path = layout.images / pictures[0]
    if len(pictures) > 1:
        others = ", ".join(Path(name).name for name in pictures[1:])
        text = (
            f"has the same name as {others} but for the suffix, so that their XML file is not known; name the one you "
            "mean with its suffix in a list of images (`split`), or move the other to another folder"
        )
        return None, [Problem("duplicate id", path, None, text)]
    size, problems = read_size(path, data)
    if size is None:
        return None, problems
    if xml is None:
        record = make_record(identity, path, *size, [], None)
        if not layout.annotated:
            return record, []
        usual: Literal["error", "empty"] = "error" if layout.voc else "empty"
        return unlabelled(record, f"no {identity}.xml in {layout.annotations}", data, usual)
    annotation = layout.annotations / xml
    try:
        reader = ObjectReader(annotation, size, data, index)
        stated = read_objects(reader, path)
    except FastRCNNError as e:
        return None, [Problem("unreadable annotation", annotation, None, str(e).removeprefix(f"{annotation}: "))]
    return reader.record(identity, path, stated=stated)


def _missing(identity: str, layout: Layout) -> Problem:
    """The picture of a line of a list is not there, or is none that is read."""
    path = layout.images / (identity if suffix(identity) in {*SUFFIXES, *OTHER_PICTURES} else f"{identity}.jpg")
    if path.exists() and suffix(path.name) in OTHER_PICTURES:
        return Problem("pictures not read", path, None, "is a picture of a kind that is not read; save it as JPEG")
    text = f"no such image; restore it or drop {identity} from {layout.listings[0]}"
    if path.exists():
        text = f"no such image in {layout.images}, the folder of the set; set `root` to one that holds all"
    return Problem("missing image", path, None, text)


# ---- VOC from the web


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
