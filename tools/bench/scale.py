"""Time and memory of all that grows with the number of pictures, each measured in a Python of its own.

The sets of scale_set.py are made in a temporary folder, one after another, and deleted, also after Ctrl-C.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastrcnn.errors import FastRCNNError

from bench.scale_set import DETECTIONS, MadeSet, make_set

TOOLS = Path(__file__).resolve().parent.parent
CHILD = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); from bench.scale_parts import child; child(*sys.argv[1:])"


def scale(numbers: Sequence[int]) -> dict[str, Any]:
    """Seconds and MB of each part, for each of these numbers of pictures."""
    cases: dict[str, Any] = {}
    for pictures in numbers:
        with tempfile.TemporaryDirectory(prefix="fastrcnn_scale_") as folder:
            began = time.perf_counter()
            made = make_set(Path(folder) / "set", pictures)
            size = made.proposals.stat().st_size / 1e6
            cases[f"{pictures} pictures, made for this"] = {"s": time.perf_counter() - began, "proposals MB": size}
            for name, words in (bar := tqdm(list(_parts(made)), unit="part", leave=False, disable=None)):
                bar.set_description(f"{pictures} pictures, {name}")
                cases[f"{pictures} pictures, {name}"] = _measured(words, made)
    return {"cases": cases}


def _parts(made: MadeSet) -> Iterator[tuple[str, list[str]]]:
    """What is measured, with the words for scale_parts.child, in this order."""
    for form in ("VOC", "COCO"):
        for run in ("first", "second"):
            yield f"training starts, {form}, {run} time", ["start", form.lower(), run, ""]
        yield f"training resumes, {form}", ["start", form.lower(), "first", "resume"]
    yield "loader, all pictures once", ["load"]
    yield "check_data", ["check"]
    yield "detect, without the network", ["detect"]
    yield f"test.py on saved detections, {DETECTIONS} a picture", ["test"]
    yield f"VOC AP, {DETECTIONS} a picture", ["voc"]
    yield f"pycocotools, {DETECTIONS} a picture", ["coco"]


def _measured(words: Sequence[str], made: MadeSet) -> dict[str, float]:
    """The figures that a Python of its own prints, whose seconds are from before its start."""
    command = [sys.executable, "-c", CHILD, words[0], repr(time.time()), str(made.root), str(made.pictures), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FastRCNNError(f"{' '.join(words)}, {made.pictures} pictures: failed: {done.stderr[-2000:]}")
    figures = (pair.split("=") for pair in done.stdout.splitlines()[-1].split(", "))
    return {name: float(value) for name, value in figures}
