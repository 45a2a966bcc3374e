"""Pictures found by the names that annotation files give them, wherever the set was moved to."""

from collections.abc import Sequence
from pathlib import Path

from fastrcnn.annotations.folders import files_below, normal
from fastrcnn.errors import FastRCNNError


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
