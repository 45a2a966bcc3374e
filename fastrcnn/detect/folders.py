"""Which pictures a user means, and the names of what is written for each: nothing of the user's is ever overwritten."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrcnn.annotations.folders import files_below, image_id, is_picture, kinds, normal
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import refuse_overwrite
from fastrcnn.images import SUFFIXES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedPicture:
    """One picture to detect in."""

    path: Path
    id: str  # without suffix: the file's name, or its path below the folder that was named, with "/"
    output: str  # the id, with a number where another picture has the same: the name of what is written, no suffix

    def below(self, folder: Path, suffix: str = ".jpg") -> Path:
        """Where a file for this picture is written."""
        return folder / (self.output + suffix)


def find_pictures(paths: Sequence[str | Path], output: Path | None = None) -> list[ListedPicture]:
    """The pictures named, and those in the folders named and their sub-folders, each once.

    Hidden files and folders are left out, and so is a sub-folder that is `output` and holds earlier detections. Files
    of other kinds are counted in the log. Raises FastRCNNError for a path that is not there and a folder without any.
    """
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            names = _names_below(path, output)
            inside = [name for name in names if is_picture(name)]
            if not inside:
                raise FastRCNNError(f"{path}: holds no pictures ({', '.join(SUFFIXES)}){_others(names)}")
            if len(inside) < len(names):
                log.warning("%s: %d pictures%s", path, len(inside), _others(names))
            found |= {path / name: image_id(name) for name in inside}
        elif path.exists():
            found.setdefault(path, image_id(path.name))
        else:
            raise FastRCNNError(f"{path}: no such picture or folder")
    outputs = _distinct(list(found.values()))
    return [ListedPicture(path, name, o) for (path, name), o in zip(found.items(), outputs, strict=True)]


def _names_below(folder: Path, output: Path | None) -> list[str]:
    """The files in a folder and its sub-folders, without those of `output` if it holds earlier detections."""
    below = ""
    if output is not None and holds_detections(output):
        real = Path(os.path.realpath(folder)), Path(os.path.realpath(output))
        if real[1] != real[0] and real[1].is_relative_to(real[0]):
            below = f"{real[1].relative_to(real[0]).as_posix()}/"
            log.info("%s: holds earlier detections; left out", output)
    return [name for name in files_below(folder) if not below or not name.startswith(below)]


def _others(names: list[str]) -> str:
    """`; skipped 3 files of other kinds: 2 .txt, 1 .xml`, or nothing."""
    others = [name for name in names if not is_picture(name)]
    return f"; skipped {len(others)} files of other kinds: {kinds(others)}" if others else ""


def _distinct(ids: Sequence[str]) -> list[str]:
    """The ids with a number where an earlier one is the same, to file systems that know neither case nor normal forms
    of Unicode, too."""
    used: set[str] = set()
    numbers: Counter[str] = Counter()  # kept, so that a thousand of one name take a thousand steps
    result = []
    for name in ids:
        distinct, key = name, normal(name).casefold()
        while normal(distinct).casefold() in used:
            numbers[key] += 1
            distinct = f"{name}_{numbers[key] + 1}"
        used.add(normal(distinct).casefold())
        result.append(distinct)
    return result


JSON_NAME, JOURNAL_NAME = "detections.json", ".detections.partial"


def holds_detections(output: Path) -> bool:
    """Whether a folder is one that detect_pictures has written to."""
    return (output / JSON_NAME).exists() or (output / JOURNAL_NAME).exists()


def check_outputs(
    output: Path, pictures: Sequence[ListedPicture], files: Sequence[Path], inputs: Sequence[Path]
) -> None:
    """Raise FastRCNNError if writing `files` below `output` would harm something, or mix it with what is read.

    That is: a file to write is one of the pictures or `inputs`; a folder to write to holds pictures to detect in; a
    file is there already, and `output` holds no earlier detections.
    """
    refuse_overwrite([*(picture.path for picture in pictures), *inputs], files)
    read = {os.path.realpath(folder): folder for folder in {picture.path.parent for picture in pictures}}
    for folder in dict.fromkeys(file.parent for file in files):
        if os.path.realpath(folder) in read:
            raise FastRCNNError(
                f"{folder}: holds pictures to detect in; choose another folder for the output, so that drawings and "
                "photographs do not mix"
            )
    if not holds_detections(output):
        there = [file for file in files if file.exists()]
        if there:
            raise FastRCNNError(
                f"{there[0]}: is there already and not of an earlier detection; choose another folder for the output"
            )
