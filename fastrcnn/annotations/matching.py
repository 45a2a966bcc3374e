"""Which XML file belongs to which picture, and which picture a line of an image list means."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from fastrcnn.annotations.folders import image_id, normal
from fastrcnn.annotations.text import national_texts, unicode_text
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_bytes

# Folders that stand side by side: images/day/1.jpg belongs to annotations/day/1.xml.
SIDE_BY_SIDE = set("images image img imgs jpegimages pictures photos annotations annotation xml xmls labels".split())


def match_annotations(pictures: Sequence[str], xmls: Sequence[str]) -> dict[str, str]:
    """The XML file of each picture that has one; all are paths below their folders.

    The XML file has the picture's path, with .xml in place of its suffix or behind it. Where only one of each fits, it
    may differ in case, lie beside the pictures' folder, or at the top.
    """
    at_path = {normal(xml[:-4]): xml for xml in xmls}
    found = {}
    for picture in pictures:
        xml = at_path.get(normal(picture[: picture.rindex(".")])) or at_path.get(normal(picture))
        if xml is not None:
            found[picture] = xml
    for spelling in (str.casefold, _without_side_folders, _name_alone):
        left = set(xmls) - set(found.values())
        if not left or len(found) == len(pictures):
            break
        _match_unique(found, pictures, [xml for xml in xmls if xml in left], spelling)
    return found


def _match_unique(
    found: dict[str, str], pictures: Sequence[str], xmls: Sequence[str], spelling: Callable[[str], str]
) -> None:
    """Add to `found` where one picture and one XML file are spelled alike."""
    groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for picture in pictures:
        groups[spelling(image_id(picture))][0].append(picture)
    for xml in xmls:
        if spelling is not _name_alone or "/" not in xml:
            groups[spelling(image_id(xml[:-4]))][1].append(xml)
    for some, candidates in groups.values():
        if len(some) == len(candidates) == 1:
            found.setdefault(some[0], candidates[0])


def _without_side_folders(name: str) -> str:
    return "/".join(part for part in name.casefold().split("/") if part not in SIDE_BY_SIDE)


def _name_alone(name: str) -> str:
    return name.casefold().rpartition("/")[2]


def read_lines(path: Path, known: "ListedNames") -> list[str]:
    """The lines of an image list without blank ones and comments. Raises FastRCNNError when it cannot be read.

    A list that is not Unicode is read in the national encoding in which it names pictures that are there.
    """
    data = read_bytes(path, missing="no such list of images; check the split of the data set")
    text = unicode_text(data)
    texts = [data.decode("utf-8", "surrogateescape"), *(guess for _, guess in national_texts(data))]
    texts = texts if text is None else [text]
    for candidate in texts:
        lines = [line.strip().strip("\ufeff") for line in candidate.splitlines()]
        lines = [line for line in lines if line and (line[0] != "#" or known.find(line))]
        if text is not None or all(line.isascii() or known.find(line) for line in lines):
            return lines
    raise FastRCNNError(f"{path}: is not a text file in UTF-8, and names no pictures that are there; save it as UTF-8")


@dataclass(frozen=True)
class Line:
    """What a line of an image list means."""

    written: str  # the name in the line, without a label
    pictures: list[str]  # paths below the folder, one if all is well; none for an absent one
    absent: bool = False  # VOC's lists of a class: -1, the class is not in the image
    loosely: bool = False  # found by the end of its path, or by another case


class ListedNames:
    """The pictures below `folder`, found by what lists call them; `names` are their paths below it."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_folded: dict[str, list[str]] = defaultdict(list)
        for name in names:
            identity = image_id(name)
            self._by_name[normal(name)].append(name)
            self._by_name[identity].append(name)
            self._by_folded[identity.casefold()].append(name)

    def find(self, line: str) -> Line | None:
        """The pictures of a line: a path with or without suffix, with either slash, and perhaps a label behind it."""
        match = re.fullmatch(r"(.*\S)\s+(-?\d+)", line)
        written = [(line, False)] + ([(match[1], match[2] == "-1")] if match else [])
        for text, absent in written:
            found = self._exact(text)
            if found:
                return Line(text, found, absent)
        for text, absent in written:
            found = self._loose(text)
            if found:
                return Line(text, found, absent, loosely=True)
        return Line(line, [], absent=True) if written[-1][1] else None

    def _exact(self, text: str) -> list[str]:
        for spelled in dict.fromkeys((text, text.replace("\\", "/").removeprefix("./"))):
            for name in (normal(spelled), image_id(spelled)):
                if name in self._by_name:
                    return self._by_name[name]
        return []

    def _loose(self, text: str) -> list[str]:
        """By the end of a path that leads to the folder, here or on the machine where the list was made; by case."""
        for spelled in self._ends(text.strip("\"'").replace("\\", "/")):
            found = self._exact(spelled)
            if found:
                return found
        for spelled in self._ends(text.strip("\"'").replace("\\", "/")):
            found = self._by_folded.get(image_id(spelled).casefold(), [])
            if len(found) == 1:
                return found
        return []

    def _ends(self, path: str) -> Iterator[str]:
        """The ends of a path below something that may be the folder, the longest first."""
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        yield "/".join(parts)
        elsewhere = PureWindowsPath(path).is_absolute() or path.startswith("/")
        for start in range(1, len(parts)):
            here = parts[start - 1] == self._folder.resolve().name
            if here or (elsewhere and start == len(parts) - 1 and not Path(path).exists()):
                yield "/".join(parts[start:])


def agree(one: str, other: str) -> bool:
    """Whether two spellings in a list may mean one picture: one is the end of the other, but for suffix and case."""
    a, b = (image_id(text.replace("\\", "/")).casefold().strip("./") for text in (one, other))
    return f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}")
