"""The files of a folder as people have them: sub-folders, hidden files, names in any Unicode form or none."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastrcnn.errors import FastRCNNError
from fastrcnn.images import SUFFIXES

# Left by systems, not by people; so is whatever starts with a dot. Compared in lower case.
HIDDEN = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
OTHER_PICTURES = set(
    ".heic .heif .avif .jp2 .j2k .jxl .ppm .pgm .pnm .tga .svg .psd .eps .pdf .ico .exr .hdr .dcm .nef .cr2 .cr3 .arw "
    ".dng .raf .orf .rw2".split()
)


def files_below(folder: Path) -> list[str]:
    """The files in a folder and its sub-folders, sorted, as paths below it with "/"; hidden ones are left out.

    Links to folders are followed, each folder once. Raises FastRCNNError when the folder cannot be read.
    """
    found, seen, todo = [], set(), [""]
    while todo:
        below = todo.pop()
        try:
            real = os.path.realpath(folder / below)
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.lower() in HIDDEN:
                        continue
                    if entry.is_dir():
                        todo.append(f"{below}{entry.name}/")
                    else:
                        found.append(f"{below}{entry.name}")
        except OSError as e:
            reason = "no such folder" if isinstance(e, FileNotFoundError) else f"cannot be read: {e.strerror}"
            raise FastRCNNError(f"{folder / below}: {reason}; check the root of the data set") from None
    return sorted(found)


def is_picture(name: str) -> bool:
    """Whether the name has a suffix of pictures."""
    return suffix(name) in SUFFIXES


def suffix(name: str) -> str:
    """In lower case, with the dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each of 100,000 names takes a second)


def image_id(name: str) -> str:
    """The id of a picture: its path below the folder of pictures, without suffix, in Unicode's normal form C.

    A byte that is not UTF-8 is %E9, as in a URL, so that every file format can hold the id.
    """
    stem = name[: len(name) - len(suffix(name))] if is_picture(name) else name
    if stem.isascii():
        return stem
    return re.sub("[\ud800-\udfff]", lambda match: f"%{ord(match[0]) & 0xFF:02X}", normal(stem))


def normal(name: str) -> str:
    """A name in the one form in which it is compared: macOS stores ä as two characters, most lists hold one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def kinds(names: Iterable[str]) -> str:
    """How many files there are of each suffix, the most frequent first: "3 .heic, 1 .txt"."""
    counts = Counter(suffix(name) or "without suffix" for name in names)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


class Pictures:
    """The files below `root`, by name. Raises FastRCNNError as files_below does."""

    def __init__(self, root: Path):
        self.root = root
        self.names: dict[str, str] = {}  # path below root in one Unicode normal form -> as on the disk
        self._by_tail: dict[str, list[str]] = {}
        for name in files_below(root):
            self.names[normal(name)] = name
            parts = normal(name).split("/")
            for start in range(len(parts)):
                self._by_tail.setdefault("/".join(parts[start:]), []).append(name)

    def find(self, written: str, near: Sequence[str] = ("",)) -> tuple[str, Path]:
        """(name, path) of the picture that a file calls `written`: a path of any system, perhaps of another machine.

        The longest end of `written` that is the end of one path below root serves; of several such paths the one in the
        first folder of `near` (below root, with "/"; "" is root itself). The name is that end. Raises FastRCNNError
        with the reason when there is none, or several.
        """
        for spelled in dict.fromkeys((written, written.replace("\\", "/"))):
            parts = [part for part in normal(spelled).split("/") if part not in ("", ".", "..")]
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                found = self._by_tail.get(tail)
                if found:
                    return self._choose(found, tail, near)
        raise FastRCNNError(f"no such picture in {self.root} or below it")

    def _choose(self, found: list[str], tail: str, near: Sequence[str]) -> tuple[str, Path]:
        inside = [self.names[name] for folder in near if (name := f"{folder}/{tail}".lstrip("/")) in self.names]
        if not inside and len(found) > 1:
            raise FastRCNNError(f"may be {found[0]} or {found[1]} in {self.root}; write its folder before its name")
        chosen = inside[0] if inside else found[0]
        depth = tail.count("/") + 1
        return "/".join(chosen.split("/")[-depth:]), self.root / chosen
