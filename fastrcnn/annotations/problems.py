"""What is wrong with, or worth a look in, a data set: one type for all readers and checks."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastrcnn.errors import FastRCNNError

log = logging.getLogger(__name__)

Outcome = Literal["error", "clipped", "skipped", "ignored", "noted"]


@dataclass(frozen=True)
class Problem:
    """Something found in one file. `outcome` says what was done about it; "error" stops training."""

    kind: str  # such as "box outside"; those of boxes start with "box"
    file: Path
    object: int | str | None  # an object's number in its file, from 1, or what its file calls it, such as "line 3"
    text: str  # what is wrong, and the remedy
    outcome: Outcome = "error"
    class_name: str | None = None  # of the object, as its file spells it, where it is known

    def __str__(self) -> str:
        thing = f"object {self.object}" if isinstance(self.object, int) else self.object
        sentence = f"{self.file}: " + (f"{thing}: " if thing else "") + self.text
        return sentence.encode("utf-8", "backslashreplace").decode()  # a name that is not UTF-8 would not print


def duplicate_id_problem(image_id: str, path: Path, first: Path) -> Problem:
    """The image `path` has the id of the image `first`."""
    if path.resolve() == first.resolve():
        text = f"is listed twice, as {image_id}; leave it out of one list, or take one of the data sets out"
    else:
        text = f"its id {image_id} is that of {first}, read before; take one of the two out of its list"
    return Problem("duplicate id", path, None, text)


def refuse_errors(problems: Iterable[Problem]) -> None:
    """Raises FastRCNNError for the first problem that is an error."""
    for problem in problems:
        if problem.outcome == "error":
            raise FastRCNNError(str(problem))


def log_problems(problems: Sequence[Problem]) -> None:
    """Warn of each kind once, with its number and the first of its kind."""
    for (kind, outcome), count in Counter((p.kind, p.outcome) for p in problems).items():
        first = next(p for p in problems if p.kind == kind and p.outcome == outcome)
        log.warning("%s: %d %s; the first: %s", kind, count, outcome, first)
