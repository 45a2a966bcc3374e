"""The proposals of a whole data set: selective search in many processes, into one file, at once or in parts."""

import logging
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import DIGEST_SIZE, file_digest, lock, remove_leftovers
from fastrcnn.images import read_image
from fastrcnn.journal import Journal
from fastrcnn.processes import cores, deaths_told, workers
from fastrcnn.proposals.proposals import check_settings
from fastrcnn.proposals.selective_search import selective_search
from fastrcnn.proposals.stored import StoredProposals, compact, read_stored, write_stored
from fastrcnn.proposals.unfinished import Part, SearchedImage, Unfinished

log = logging.getLogger(__name__)


class ImagesFailedError(FastRCNNError):
    """All other images are finished and kept."""


def make_proposals(
    records: Sequence[ImageRecord], path: str | Path, config: ProposalsConfig, processes: int | None = None
) -> None:
    """Selective search on every image, on all cores or `processes` of them, into the safetensors file `path`.

    Images that the file has already, made with the same settings from the same bytes, are skipped, and images
    beyond `records` stay in it. Each finished image goes at once to a journal beside the file, from which a killed run
    resumes, and those of make_part are taken over; the file itself appears, or is replaced, when all are done. What it
    holds depends on the images and the settings, not on the number of processes and parts.

    Raises FastRCNNError when another run works on the file or on a part of it, when the file was made with other
    settings, when it cannot be written, and, after all others are done, ImagesFailedError when an image cannot be read.
    """
    path, records = _checked(records, path, processes)
    unfinished = Unfinished(path, config)
    with lock(path.with_name(f".{path.name}.lock"), f"the proposals file {path.name}"), ExitStack() as held:
        remove_leftovers(path.parent, path.name)
        file = _read_finished(path, config)
        if _takes_no_more(file, records, unfinished):
            return
        stored, parts = _images(file), unfinished.parts()
        del file  # it is open, and Windows does not replace such a one
        for part in parts:
            held.enter_context(unfinished.lock(part))
        journal = unfinished.journal()
        made = dict(stored)
        for each in (*map(unfinished.journal, parts), journal):
            made |= {m.id: m for m in each.items}
        todo = _todo(records, {m.id: m.digest for m in made.values()}, unfinished)
        with closing(_finish(todo, journal, config, processes, len(records))) as results:
            made |= {m.id: m for m in results}
        if made != stored:
            order = dict.fromkeys([*stored, *(r.id for r in records), *made])
            write_stored(path, _as_stored([made[i] for i in order], unfinished.made_by))
        unfinished.remove(parts)


def make_part(
    records: Sequence[ImageRecord], path: str | Path, config: ProposalsConfig, part: Part, processes: int | None = None
) -> tuple[int, int]:
    """One part of the work of make_proposals, beside others at the same time or another: the images are searched into
    a journal of its own. make_proposals joins all parts, and searches what they lack.

    Returns how many images the part has, and how many of them were searched now. Raises FastRCNNError as make_proposals
    does, and when another run works on the same part.
    """
    path, records = _checked(records, path, processes)
    share, unfinished = part.of(records), Unfinished(path, config)
    with unfinished.lock(part):
        file = _read_finished(path, config)
        if _takes_no_more(file, share, unfinished):
            return len(share), 0
        finished = _digests(file)
        del file  # it is open, and Windows does not replace such a one
        for other in (None, *unfinished.parts()):  # which may be of another number of parts, and have some of these
            if other != part:
                finished |= {m.id: m.digest for m in unfinished.journal(other).items}
        journal = unfinished.journal(part)
        finished |= {m.id: m.digest for m in journal.items}
        todo = _todo(share, finished, unfinished)
        with closing(_finish(todo, journal, config, processes, len(share))) as results:
            return len(share), sum(1 for _ in results)


def _checked(
    records: Sequence[ImageRecord], path: str | Path, processes: int | None
) -> tuple[Path, Sequence[ImageRecord]]:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise FastRCNNError(f"{path}: proposals are written to .safetensors files only; name one")
    if processes is not None and processes < 1:
        raise FastRCNNError(f"the number of processes is {processes}; it must be at least 1")
    return path, _distinct(records, path)


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


def _read_finished(path: Path, config: ProposalsConfig) -> StoredProposals:
    """The file, without images when there is none yet. Raises FastRCNNError when it was made with other settings."""
    if not path.exists():
        return _as_stored([], {})
    stored = read_stored(path)
    if stored.ids:
        check_settings(path, stored.made_by, config)
    return stored


def _takes_no_more(file: StoredProposals, records: Sequence[ImageRecord], unfinished: Unfinished) -> bool:
    """Whether the file is complete, and of another OpenCV or with more boxes an image than are asked for, so that
    nothing may be added. Raises FastRCNNError when it is such a file, and lacks images."""
    if not file.ids or file.made_by == unfinished.made_by:
        return False
    if lacking := _lacking(records, _digests(file)):
        raise FastRCNNError(
            f"{unfinished.path}: lacks {len(lacking)} images and was made with {unfinished.difference(file.made_by)}; "
            "name another file to search all of them again"
        )
    return True


def _lacking(records: Sequence[ImageRecord], finished: Mapping[str, bytes]) -> list[ImageRecord]:
    return [r for r in records if r.id not in finished or finished[r.id] != _digest(r.path)]


def _digests(stored: StoredProposals) -> dict[str, bytes]:
    assert stored.digests is not None
    return {image_id: digest.tobytes() for image_id, digest in zip(stored.ids, stored.digests, strict=True)}


def _images(stored: StoredProposals) -> dict[str, SearchedImage]:
    assert stored.sizes is not None
    return {
        image_id: SearchedImage(image_id, digest, (width, height), compact(stored.rows(i)))
        for i, ((image_id, digest), (width, height)) in enumerate(
            zip(_digests(stored).items(), stored.sizes.tolist(), strict=True)
        )
    }


def _as_stored(made: list[SearchedImage], made_by: dict[str, Any]) -> StoredProposals:
    return StoredProposals(
        ids=[m.id for m in made],
        offsets=np.cumsum([0] + [len(m.boxes) for m in made]),
        boxes=np.concatenate([np.zeros((0, 4), np.int16), *(m.boxes for m in made)]),
        sizes=np.array([m.size for m in made], np.int32).reshape(-1, 2),
        digests=np.array([list(m.digest) for m in made], np.uint8).reshape(-1, DIGEST_SIZE),
        made_by=made_by,
    )


# ---- the search in processes of its own


def _todo(records: Sequence[ImageRecord], finished: Mapping[str, bytes], unfinished: Unfinished) -> list[ImageRecord]:
    """The images of `records` that are not finished, by the digests of those that are, or have changed since."""
    path, todo = unfinished.path, _lacking(records, finished)
    if changed := [r.id for r in todo if r.id in finished]:
        log.warning("%s: %d images have changed (first: %s) and are searched again", path, len(changed), changed[0])
    if len(todo) < len(records):
        log.info("%s: %d of %d images are finished already", path, len(records) - len(todo), len(records))
    if todo:
        unfinished.tell_of_other_settings()
    return todo


def _finish(
    todo: Sequence[ImageRecord],
    journal: Journal[SearchedImage],
    config: ProposalsConfig,
    processes: int | None,
    total: int,
) -> Generator[SearchedImage, None, None]:
    """Search, and give each image when it is in the journal."""
    if todo:
        with journal, closing(_search_all(todo, config, processes, total)) as results:
            for result in results:
                journal.append(result)
                yield result


def _search_all(
    todo: Sequence[ImageRecord], config: ProposalsConfig, processes: int | None, total: int
) -> Generator[SearchedImage, None, None]:
    """Finished images in the order in which they become so; failed ones are reported when all others are done."""
    failures = []
    processes = min(processes or cores(), len(todo))
    bar = tqdm(total=total, initial=total - len(todo), desc="selective search", unit="image", smoothing=0.05)
    told = deaths_told("selective search", "run again, with fewer processes, to resume")
    with told, bar, workers(processes) as pool:
        for future in as_completed([pool.submit(_search_one, r.id, r.path, config) for r in todo]):
            try:
                yield future.result()
            except FastRCNNError as e:
                log.error("%s", e)
                failures.append(e)
            bar.update()
    if failures:
        raise ImagesFailedError(
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
