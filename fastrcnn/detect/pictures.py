"""The detector on files and folders: pictures with boxes drawn in, and one JSON file of all that was found."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fastrcnn.detect.detector import Detector
from fastrcnn.detections import DetectedImage, write_detections
from fastrcnn.drawing import draw_detections, write_image
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import SUFFIXES, read_image
from fastrcnn.proposals.proposals import read_proposals

log = logging.getLogger(__name__)

JSON_NAME = "detections.json"


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """The pictures named, and those in the folders named, by name. Raises FastRCNNError for a path without any."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise FastRCNNError(f"{path}: holds no pictures ({', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FastRCNNError(f"{path}: no such picture or folder")
    return list(dict.fromkeys(found))


def detect_pictures(
    detector: Detector,
    paths: Sequence[str | Path],
    output: str | Path,
    draw_score: float = 0.5,
    proposals: str | Path | None = None,
) -> list[str]:
    """Detect in every picture; draw what scores at least draw_score to output/<name>.jpg, and write
    output/detections.json with everything above the score threshold of the weights.

    `proposals` is a file of them by image id (the picture's name without suffix). A picture that cannot be read is
    reported and passed over. Returns a line for each picture. Stopped on the way, the JSON holds what was finished.
    Raises FastRCNNError when none could be read.
    """
    pictures, output = find_pictures(paths), Path(output)
    store = read_proposals(proposals, []) if proposals else None
    names = _output_names(pictures)
    results, lines, failed = [], [], 0
    try:
        for picture in tqdm(pictures, "detecting", unit="image"):
            try:
                pixels = read_image(picture)
                if store is not None and picture.stem not in store:
                    raise FastRCNNError(
                        f"{picture}: {proposals} has no proposals of {picture.stem}; make them, or leave it out"
                    )
                found = detector.detect(pixels, store[picture.stem] if store is not None else None, picture.stem)
            except FastRCNNError as e:
                log.error("%s", e)
                failed += 1
                continue
            shown = found.above(draw_score)
            drawn = output / names[picture]
            height, width = pixels.shape[:2]
            results.append(DetectedImage(picture.stem, found, str(picture), width, height))
            write_image(drawn, draw_detections(pixels, shown.boxes, shown.names, shown.scores))
            lines.append(f"{drawn}: {_summary(shown.names)}")
    finally:  # Ctrl-C and a full disk too: what is finished is written
        if results:
            write_detections(output / JSON_NAME, detector.config.classes, results)
    if failed == len(pictures):
        raise FastRCNNError(f"{pictures[0]}: none of the {failed} pictures could be used; see the messages above")
    return [*lines, f"{output / JSON_NAME}: all detections of {len(results)} pictures"]


def _output_names(pictures: list[Path]) -> dict[Path, str]:
    """A name for each drawn picture; those of one stem keep their suffix or a number, so that none is overwritten."""
    names: dict[Path, str] = {}
    for picture in pictures:
        name, number = f"{picture.stem}.jpg", 1
        while name in names.values():
            number += 1
            name = f"{picture.stem}_{number}.jpg"
        names[picture] = name
    return names


def _summary(labels: list[str]) -> str:
    counts = {name: labels.count(name) for name in dict.fromkeys(labels)}
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing above the score"
