"""Which files belong together: VOC's folders and lists, and folders of images with XML beside or apart.

list_files lists and reads both layouts; see read.py for what every format gives.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastrcnn.annotations.download import download_voc
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import make_record
from fastrcnn.annotations.splits import Found, Listing, Source
from fastrcnn.annotations.voc_xml import read_objects
from fastrcnn.config import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import SUFFIXES, image_size


@dataclass(frozen=True)
class ListedImage:
    """The files of one image id, before any is opened."""

    id: str
    images: tuple[Path, ...]  # exactly one if all is well
    annotation: Path | None
    listing: Path | None  # the list that names it; None: it was found in a folder


@dataclass(frozen=True)
class Layout:
    """Where a data set has its files."""

    images: Path  # folder
    annotations: Path  # folder
    listing: Path | None  # text file of ids; None: all that is in the folders
    needs_annotation: bool  # False: no XML file means no objects


def list_files(dataset: DataSetConfig, data: DataConfig, index: dict[str, int]) -> Listing:
    """The images of VOC's layout and of folders, in the order of their list, else by name.

    Raises FastRCNNError when the folder or the list is missing.
    """
    layout = _layout(dataset)
    sources = []
    for listed in list_images(dataset):
        path = listed.images[0] if listed.images else layout.images / f"{listed.id}.jpg"
        sources.append(Source(path, partial(_read_listed, listed, layout, data, index)))
    return Listing(sources, [])


def list_images(dataset: DataSetConfig) -> list[ListedImage]:
    """The files of every image of a data set, in the order of its list, else by name.

    Raises FastRCNNError when the folder or the list is missing. Single files may be: list_files reports those.
    """
    layout = _layout(dataset)
    if dataset.download and layout.listing and not layout.listing.exists():
        download_voc(Path(dataset.root), dataset.split)
    by_stem, xml_by_stem = _by_stem(layout.images, SUFFIXES), _by_stem(layout.annotations, (".xml",))
    if dataset.format == "folder" and not xml_by_stem:
        raise FastRCNNError(
            f"{layout.annotations}: holds no XML file; set `annotations` of the data set to the folder that does"
        )
    if layout.listing is None:
        ids = sorted(by_stem.keys() | xml_by_stem.keys())
    elif dataset.format == "voc":
        ids = list(_voc_ids(_lines(layout.listing), by_stem))
    else:
        ids = [Path(line).stem if Path(line).suffix.lower() in SUFFIXES else line for line in _lines(layout.listing)]
    return [ListedImage(i, tuple(by_stem.get(i, ())), xml_by_stem.get(i, [None])[0], layout.listing) for i in ids]


def _layout(dataset: DataSetConfig) -> Layout:
    root = Path(dataset.root)
    if dataset.format == "voc":
        listing = root / "ImageSets" / "Main" / f"{dataset.split}.txt"
        return Layout(root / "JPEGImages", root / "Annotations", listing, needs_annotation=True)
    listing = Path(dataset.split) if dataset.split else None
    return Layout(root, Path(dataset.annotations or dataset.root), listing, needs_annotation=False)


def _voc_ids(lines: Sequence[str], by_stem: dict[str, list[Path]]) -> Iterator[str]:
    """VOC's per-class lists hold 1, 0 (difficult only) or -1 (class absent) behind the id; absent ones are left out."""
    for line in lines:
        match = None if line in by_stem else re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
        if match is None:
            yield line
        elif match[2] != "-1":
            yield match[1]


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


def _read_listed(listed: ListedImage, layout: Layout, data: DataConfig, index: dict[str, int]) -> Found:
    """The record of one image and what is wrong with it; no record when a file is missing or unreadable."""
    problem = _check_files(listed, layout)
    if problem is not None and problem.outcome == "error":
        return None, [problem]
    path = listed.images[0]
    try:
        size = image_size(path)
    except FastRCNNError as e:
        return None, [Problem("unreadable image", path, None, str(e).removeprefix(f"{path}: "))]
    if listed.annotation is None:
        return make_record(listed.id, path, *size, [], None), [problem] if problem else []
    try:
        objects, problems = read_objects(listed.annotation, size, data, index)
    except FastRCNNError as e:
        text = str(e).removeprefix(f"{listed.annotation}: ")
        return None, [Problem("unreadable annotation", listed.annotation, None, text)]
    return make_record(listed.id, path, *size, objects, listed.annotation), problems


def _check_files(listed: ListedImage, layout: Layout) -> Problem | None:
    """Whether there is one image, and an XML file where there must be one."""
    if not listed.images:
        where = f"; {listed.annotation} has no image" if listed.annotation else ""
        drop = f"drop {listed.id} from {listed.listing}" if listed.listing else f"remove {listed.annotation}"
        text = f"no such image{where}; restore it or {drop}"
        return Problem("missing image", layout.images / f"{listed.id}.jpg", None, text)
    if len(listed.images) > 1:
        others = ", ".join(path.name for path in listed.images[1:])
        text = f"has the same name as {others} but for the suffix; remove or rename all but one"
        return Problem("duplicate id", listed.images[0], None, text)
    if listed.annotation is None and layout.needs_annotation:
        text = f"no such annotation; restore it or drop {listed.id} from {listed.listing}"
        return Problem("missing annotation", layout.annotations / f"{listed.id}.xml", None, text)
    if listed.annotation is None:
        text = f"no {listed.id}.xml in {layout.annotations}: taken as an image without objects"
        return Problem("missing annotation", listed.images[0], None, text, "noted")
    return None
