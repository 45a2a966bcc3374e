"""What is finished of a proposals file that is not yet written: journals beside it, one of each part of the work.

Their names hold the settings, so that none is taken for one of others: `voc07.safetensors.1a2b3c4d.partial` of a run
that does all, `voc07.safetensors.1a2b3c4d.3-8.partial` of part 3 of 8.
"""

import contextlib
import glob
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import Real

from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock
from fastrcnn.journal import Journal, pack, read_key, unpack
from fastrcnn.proposals.stored import compact

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SearchedImage:
    """The finished work on one image."""

    id: str
    digest: bytes  # of the image file
    size: tuple[int, int]  # width, height of the upright image
    boxes: Real[np.ndarray, "P 4"]  # best first, as `compact` leaves them: of 100,000 images they are 1.6 GB


class Part(NamedTuple):
    """Which share of the images: number 1 to `total`."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Of "3/8". Raises FastRCNNError for anything else."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        part = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= part.number <= part.total:
            raise FastRCNNError(f"part {text}: is none; of 8 parts, the first is 1/8 and the last 8/8")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every total-th item: all parts together have each once, whatever is finished already."""
        return items[self.number - 1 :: self.total]


class Unfinished:
    """What runs with the same settings, in one or in parts, have finished of a file."""

    def __init__(self, path: Path, config: ProposalsConfig) -> None:
        self.path = path
        self.made_by = config.model_dump(exclude={"dense"}) | {
            "max_per_image": config.search_cap,
            "opencv": cv2.__version__,
        }
        self.key = hashlib.sha256(json.dumps(self.made_by, sort_keys=True).encode()).hexdigest()[:8]

    def parts(self) -> list[Part]:
        """Those that have a journal."""
        return sorted(part for _, key, part in self._beside() if part and key == self.key)

    def journal(self, part: Part | None = None) -> Journal[SearchedImage]:
        """Read what a part, or a run that did all, has finished. Raises FastRCNNError as Journal does."""
        return Journal(self._journal(part), {"proposals": self.made_by}, _encode, _decode)

    def lock(self, part: Part) -> AbstractContextManager[None]:
        """To be held by who writes the part's journal, or removes it. Raises FastRCNNError as `lock` does."""
        return lock(self._lock(part), f"part {part} of the proposals file {self.path.name}")

    def remove(self, parts: Sequence[Part]) -> None:
        """Remove these parts, whose locks the caller holds, and what a run that did all has finished."""
        for part in (None, *parts):
            self._journal(part).unlink(missing_ok=True)
        for part in parts:
            with contextlib.suppress(OSError):  # Windows, where it goes by itself when it is not held any more
                self._lock(part).unlink()

    def difference(self, other: dict[str, Any]) -> str:
        """In which settings the work of others differs from this."""
        changed = [key for key in self.made_by if other.get(key) != self.made_by[key]]
        return ", ".join(f"{key} {other.get(key)} instead of {self.made_by[key]}" for key in changed)

    def tell_of_other_settings(self) -> None:
        """One sentence for each settings with which others have worked on the file: their work is of no use here."""
        others = {key: path for path, key, _ in self._beside() if key != self.key}
        for key, path in others.items():
            made_by = (read_key(path) or {}).get("proposals")
            log.warning(
                "%s: unfinished work with %s is not used; start with its settings to use it, or remove it if no run "
                "needs it",
                self.path.with_name(f"{self.path.name}.{key}.*partial"),
                self.difference(made_by) if made_by else "other settings",
            )

    def _journal(self, part: Part | None) -> Path:
        of = f".{part.number}-{part.total}" if part else ""
        return self.path.with_name(f"{self.path.name}.{self.key}{of}.partial")

    def _lock(self, part: Part) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.key}.{part.number}-{part.total}.lock")

    def _beside(self) -> list[tuple[Path, str, Part | None]]:
        """The journals of the file, the settings' key of each, and its part if it is of one."""
        found = []
        for path in sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.*.partial")):
            name = path.name.removeprefix(self.path.name)
            if match := re.fullmatch(r"\.([0-9a-f]{8})(?:\.([0-9]+)-([0-9]+))?\.partial", name):
                key, number, total = match.groups()
                found.append((path, key, Part(int(number), int(total)) if number else None))
        return found


def _encode(made: SearchedImage) -> dict[str, Any]:
    return {"id": made.id, "digest": made.digest.hex(), "size": made.size, "boxes": pack(made.boxes)}


def _decode(line: dict[str, Any]) -> SearchedImage:
    width, height = line["size"]
    return SearchedImage(
        line["id"], bytes.fromhex(line["digest"]), (width, height), compact(unpack(line["boxes"]).reshape(-1, 4))
    )
