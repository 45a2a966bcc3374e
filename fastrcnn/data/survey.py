"""One pass over a training set for all that is wanted of its boxes before the first iteration.

What it found in a large set is kept in a file beside the proposals, which may be deleted at any time, under all that it
was made from: the records, the names, sizes and times of the proposals files, the settings, and the code.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fastrcnn import boxes, proposals
from fastrcnn.annotations.kept import LARGE
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord, training_record
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data import check_proposals, sampling
from fastrcnn.data.check_proposals import without_proposals
from fastrcnn.data.sampling import TargetSums, fixed_statistics
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import settled_stamp, write_json
from fastrcnn.proposals.proposals import Proposals

log = logging.getLogger(__name__)


class Survey:
    """A digest of the data and the statistics of the targets; pass `add` and `known` to open_data, then call `keep`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.findings: list[Problem] = []  # on images that their proposals do not help
        self._digest = hashlib.blake2b(digest_size=16)
        last_pixel = config.model.size_to_last_pixel
        self._sums = TargetSums(len(config.classes) + 1, config.sampling.foreground_iou, last_pixel)
        self._path: Path | None = None  # where it is to be kept, under the key
        self._key = ""
        self._kept_digest: str | None = None

    def add(self, record: ImageRecord, proposals: Float32[np.ndarray, "P 4"]) -> None:
        """Add an image, unless training leaves it out; proposals float32 [P, 4] in image pixels."""
        used = training_record(record, self.config.data)
        if used is None:
            return
        self._digest.update(f"{used.id} {used.width} {used.height} {len(used.boxes)}\n".encode())
        self._digest.update(used.boxes.tobytes() + used.classes.tobytes())
        self._digest.update(np.ascontiguousarray(proposals).tobytes())
        self._sums.add(used, proposals)
        self.findings += without_proposals(used, proposals)

    @property
    def digest(self) -> str:
        """Of all that training reads from its data set but the pixels: ids, sizes, boxes, classes, proposals."""
        return self._kept_digest or self._digest.hexdigest()

    def statistics(self) -> TargetStatistics:
        fixed = self.config.sampling.target_std
        if fixed is not None:
            return fixed_statistics(len(self.config.classes) + 1, fixed)
        return self._sums.statistics(self.config.image.flip)

    # ---- what an earlier run found

    def known(self, stores: Sequence[Proposals], records: Sequence[ImageRecord]) -> bool:
        """Whether an earlier run went through the same images and proposals, and found them good; the survey is then as
        that run's was, and nothing must be added."""
        stamps = [settled_stamp(store.path) if store.is_stored else None for store in stores]
        if len(records) < LARGE or None in stamps:
            return False
        self._path = stores[0].path.with_name(f".{stores[0].path.name}.survey")
        files = [f"{store.path.name} {stamp}" for store, stamp in zip(stores, stamps, strict=True)]
        self._key = self._made_from(files, records)
        try:
            kept = json.loads(self._path.read_bytes())
            if kept["key"] != self._key:
                return False
            digest = bytes.fromhex(kept["digest"]).hex()
            findings = [Problem(**p | {"file": Path(p["file"])}) for p in kept["findings"]]
            self._sums.put_numbers(kept["sums"])
        except (OSError, ValueError, LookupError, TypeError):  # none, or damaged
            return False
        self._kept_digest, self.findings = digest, findings
        return True

    def _made_from(self, files: list[str], records: Sequence[ImageRecord]) -> str:
        """A digest of all that a survey depends on; `files` are the proposals files with their stamps."""
        config = self.config
        settings = [config.classes, config.data.drop_difficult, config.data.drop_empty]
        settings += [config.sampling.foreground_iou, config.model.size_to_last_pixel]
        settings += [config.proposals.model_dump(mode="json"), files, _code()]
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
        for r in records:
            about = f"{r.id}\0{r.path}\0{r.annotation}\0{r.width} {r.height} {len(r.boxes)}\n"
            digest.update(about.encode(errors="surrogatepass"))
            digest.update(r.boxes.tobytes() + r.classes.tobytes() + r.difficult.tobytes())
        return digest.hexdigest()

    def keep(self) -> None:
        """Keep what was found for the next run; a folder that cannot be written keeps nothing."""
        if self._path is None or self._kept_digest is not None:
            return
        findings = [asdict(problem) | {"file": str(problem.file)} for problem in self.findings]
        found = {"key": self._key, "digest": self.digest, "sums": self._sums.numbers(), "findings": findings}
        try:
            write_json(self._path, found)
        except FastRCNNError as e:
            log.info("%s; the next run goes through all proposals again", e)


@functools.cache
def _code() -> str:
    """Another one when the code that a survey runs changes."""
    digest = hashlib.blake2b(digest_size=16)
    modules = (__file__, boxes.__file__, sampling.__file__, check_proposals.__file__)
    for path in (*map(Path, modules), *sorted(Path(proposals.__path__[0]).glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
