"""What decoding every image tells: which cannot be read, which are turned, which are the same picture."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import file_digest
from fastrcnn.images import image_orientation, read_image, used_range
from fastrcnn.processes import cores, map_images

TURNED = "EXIF rotation"


Digests = Mapping[Path, bytes | None]  # of the files' bytes, as in a proposals file; None when unreadable


def decode_all(paths: Sequence[Path], processes: int | None) -> tuple[Digests, list[Problem]]:
    """Decode every image, in `processes`, all cores by default. Raises FastRCNNError when a process dies."""
    # a process takes as long to start as to decode some hundred
    processes = max(min(processes or cores(), len(paths) // 64), 1)
    seen = list(map_images(_decode, paths, processes, "decoding images"))
    digests = {path: digest for path, (digest, _) in zip(paths, seen, strict=True)}
    return digests, [problem for _, found in seen for problem in found]


def as_problem(kind: str, file: Path, error: FastRCNNError) -> Problem:
    """An error as a finding; its message may name another file than `file` as the culprit, which then comes first."""
    culprit, colon, text = str(error).partition(": ")
    return Problem(kind, Path(culprit), None, text) if colon else Problem(kind, file, None, str(error))


def _decode(path: Path) -> tuple[bytes | None, list[Problem]]:
    try:
        read_image(path)
    except FastRCNNError as e:
        return None, [as_problem("unreadable image", path, e)]
    turn = image_orientation(path)
    findings = []
    if turn != 1:
        text = f"EXIF orientation {turn}: it is turned upright; whether its boxes are, data.boxes_drawn_on says"
        findings.append(Problem(TURNED, path, None, text, "noted"))
    used = used_range(path)
    if used is not None:
        text = f"has 16 bits a pixel but uses {used[0]} to {used[1]} only, so that it is read as dark or black"
        text += f"; multiply its values by {65535 // max(used[1], 1)}, or save it with 8 bits"
        findings.append(Problem("dark 16 bits", path, None, text, "noted"))
    return file_digest(path), findings


def in_two_parts(paths: dict[str, list[Path]], digests: Digests) -> Iterator[Problem]:
    """Images with equal digests in two parts of the data; `paths` are those of each part, in the order of PARTS.

    An error where it is trained on, since its score would be a lie. A remark where the best weights are chosen on a
    test image: its score is a little too good, and the user may want it so.
    """
    for one, other in itertools.combinations(paths, 2):
        first = {digests[path]: path for path in reversed(paths[one])}
        trained = one == "train"
        use = "is trained on" if trained else "helps to choose the best weights, so that its score is too good,"
        for path in paths[other]:
            if digests[path] is not None and digests[path] in first:
                text = f"{use} as {first[digests[path]]}; take it out of data.{one} or data.{other}"
                yield Problem(f"image in {one} and {other}", path, None, text, "error" if trained else "noted")


def same_pictures(paths: dict[str, list[Path]], digests: Digests) -> Iterator[Problem]:
    """Images with equal digests in one part of the data; `paths` are those of each part."""
    for part, members in paths.items():
        first: dict[bytes, Path] = {}
        for path, digest in ((path, digests[path]) for path in members):
            if digest is not None and digest in first:
                text = f"is the same file as {first[digest]}; it counts twice in data.{part}"
                yield Problem("duplicate image", path, None, text, "noted")
            elif digest is not None:
                first[digest] = path


def other_labels(records: Sequence[ImageRecord], digests: Digests) -> Iterator[Problem]:
    """Equal pictures, by the bytes of their files, whose objects differ."""
    first: dict[bytes, ImageRecord] = {}
    for record in records:
        digest = digests.get(record.path)
        other = record if digest is None else first.setdefault(digest, record)
        if _objects(other) != _objects(record):
            numbers = f"{len(record.boxes)} and {len(other.boxes)} objects"
            text = f"is the same picture as {other.path} with other labels ({numbers}); keep the right ones for both"
            yield Problem("equal pictures, other labels", record.path, None, text, "noted")


def _objects(record: ImageRecord) -> set[tuple[float, ...]]:
    rows = zip(record.classes.tolist(), record.boxes.tolist(), strict=True)
    return {(number, *box) for number, box in rows}
