"""The proposals of a whole data set: selective search in many processes, into one file."""

import hashlib
import json
import logging
from collections.abc import Generator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Real
from tqdm import tqdm

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import file_digest, lock, remove_leftovers
from fastrcnn.images import read_image
from fastrcnn.journal import Journal, pack, unpack
from fastrcnn.processes import cores, workers
from fastrcnn.proposals.proposals import check_settings
from fastrcnn.proposals.selective_search import selective_search
from fastrcnn.proposals.stored import StoredProposals, compact, read_stored, write_stored

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SearchedImage:
    """The finished work on one image."""

    id: str
    digest: bytes  # of the image file
    size: tuple[int, int]  # width, height of the upright image
    boxes: Real[np.ndarray, "P 4"]  # best first, as `compact` leaves them: of 100,000 images they are 1.6 GB


def make_proposals(
    records: Sequence[ImageRecord], path: str | Path, config: ProposalsConfig, processes: int | None = None
) -> None:
    """Selective search on every image, on all cores or `processes` of them, into the safetensors file `path`.

    Images that the file has already, made with the same settings from the same bytes, are skipped, and images
    beyond `records` stay in it. Each finished image goes at once to a journal beside the file, from which a killed run
    resumes; the file itself appears, or is replaced, when all are done. What it holds depends on the images and the
    settings, not on the number of processes.

    Raises FastRCNNError when another run works on the file, when the file was made with other settings, when it cannot
    be written, and, after all others are done, when an image cannot be read.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise FastRCNNError(f"{path}: proposals are written to .safetensors files only; name one")
    if processes is not None and processes < 1:
        raise FastRCNNError(f"the number of processes is {processes}; it must be at least 1")
    records = _distinct(records, path)
    made_by = config.model_dump(exclude={"dense"}) | {"max_per_image": config.search_cap, "opencv": cv2.__version__}
    # The journal's name holds the settings, so that it cannot be taken for one of others.
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
    with lock(path.with_name(f".{path.name}.lock"), f"the proposals file {path.name}"):
        remove_leftovers(path.parent, path.name)
        stored, stored_by = _read_finished(path)
        if stored:
            check_settings(path, stored_by, config)
        journal = Journal(path.with_name(f"{path.name}.{key}.partial"), {"proposals": made_by}, _encode, _decode)
        made = stored | {m.id: m for m in journal.items}
        todo = [r for r in records if r.id not in made or made[r.id].digest != _digest(r.path)]
        if todo and stored and stored_by != made_by:
            changed = [key for key in made_by if stored_by.get(key) != made_by[key]]
            differences = ", ".join(f"{key} {stored_by.get(key)} instead of {made_by[key]}" for key in changed)
            raise FastRCNNError(
                f"{path}: lacks {len(todo)} images and was made with {differences}; name another file to search all of "
                "them again"
            )
        changed = [r.id for r in todo if r.id in made]
        if changed:
            log.warning("%s: %d images have changed (first: %s) and are searched again", path, len(changed), changed[0])
        if len(todo) < len(records):
            log.info("%s: %d of %d images are finished already", path, len(records) - len(todo), len(records))
        if todo:
            with journal, closing(_search_all(todo, config, processes, len(records))) as results:
                for result in results:
                    journal.append(result)
                    made[result.id] = result
        if made != stored:
            order = dict.fromkeys([*stored, *(r.id for r in records), *made])
            write_stored(path, _as_stored([made[i] for i in order], made_by))
        journal.remove()


def _distinct(records: Sequence[ImageRecord], path: Path) -> list[ImageRecord]:
    """Records without repetitions: data sets that share a proposals file may share images."""
    result: dict[str, ImageRecord] = {}
    for record in records:
        other = result.setdefault(record.id, record)
        if other.path.resolve() != record.path.resolve():
            raise FastRCNNError(
                f"{path}: image id {record.id} stands for {other.path} and for {record.path}; "
                "give their data sets different proposals files"
            )
    return list(result.values())


def _digest(path: Path) -> bytes | None:
    """Of a file's bytes; None when it cannot be read, which the search will report."""
    try:
        return file_digest(path)
    except OSError:
        return None


def _read_finished(path: Path) -> tuple[dict[str, SearchedImage], dict[str, Any]]:
    """The images of the file, and how it was made; empty when there is none yet."""
    if not path.exists():
        return {}, {}
    stored = read_stored(path)
    assert stored.sizes is not None and stored.digests is not None
    made = {
        image_id: SearchedImage(image_id, digest.tobytes(), (width, height), compact(stored.rows(i)))
        for i, (image_id, digest, (width, height)) in enumerate(
            zip(stored.ids, stored.digests, stored.sizes.tolist(), strict=True)
        )
    }
    return made, stored.made_by


def _as_stored(made: list[SearchedImage], made_by: dict[str, Any]) -> StoredProposals:
    return StoredProposals(
        ids=[m.id for m in made],
        offsets=np.cumsum([0] + [len(m.boxes) for m in made]),
        boxes=np.concatenate([m.boxes for m in made]),
        sizes=np.array([m.size for m in made]),
        digests=np.array([list(m.digest) for m in made]),
        made_by=made_by,
    )


# ---- the search in processes of its own


def _search_all(
    todo: Sequence[ImageRecord], config: ProposalsConfig, processes: int | None, total: int
) -> Generator[SearchedImage, None, None]:
    """Finished images in the order in which they become so; failed ones are reported when all others are done."""
    failures = []
    processes = min(processes or cores(), len(todo))
    bar = tqdm(total=total, initial=total - len(todo), desc="selective search", unit="image", smoothing=0.05)
    with bar, workers(processes) as pool:
        for future in as_completed([pool.submit(_search_one, r.id, r.path, config) for r in todo]):
            try:
                yield future.result()
            except BrokenProcessPool:
                raise FastRCNNError(
                    "selective search: a process died, perhaps for lack of memory (or the calling script lacks "
                    "`if __name__ == '__main__'`); run again, with fewer processes, to resume"
                ) from None
            except FastRCNNError as e:
                log.error("%s", e)
                failures.append(e)
            bar.update()
    if failures:
        raise FastRCNNError(
            f"{failures[0]} ({len(failures)} of {total} images failed, the others are kept; run again to resume)"
        )


def _search_one(image_id: str, path: Path, config: ProposalsConfig) -> SearchedImage:
    image = read_image(path)
    try:
        boxes = selective_search(image, image_id, config)
    except cv2.error as e:
        raise FastRCNNError(f"{path}: selective search failed: {e.err}; leave the image out") from None
    digest = _digest(path)
    if digest is None:
        raise FastRCNNError(f"{path}: cannot be read any more; restore it or leave it out")
    return SearchedImage(image_id, digest, (image.shape[1], image.shape[0]), compact(boxes))


# ---- the journal of an unfinished run


def _encode(made: SearchedImage) -> dict[str, Any]:
    return {"id": made.id, "digest": made.digest.hex(), "size": made.size, "boxes": pack(made.boxes)}


def _decode(line: dict[str, Any]) -> SearchedImage:
    width, height = line["size"]
    return SearchedImage(
        line["id"], bytes.fromhex(line["digest"]), (width, height), compact(unpack(line["boxes"]).reshape(-1, 4))
    )
