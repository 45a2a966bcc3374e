"""Whether proposals fit the images that they are used for."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.proposals import Proposals, read_proposals

log = logging.getLogger(__name__)

REMEDY = "make them again from these images with tools/proposals.py"
Visit = Callable[[ImageRecord, Float32[np.ndarray, "P 4"]], None]  # an image and its proposals


def open_proposals(
    path: str | Path,
    records: Sequence[ImageRecord],
    config: ProposalsConfig | None = None,
    also: Visit | None = None,
) -> Proposals:
    """The proposals of the images `records`, read and checked; `also` as for find_problems.

    As read_proposals, and raises FastRCNNError, naming the images, when find_problems finds any problem.
    """
    proposals = read_proposals(path, records, config)
    problems = find_problems(proposals, records, also)
    if problems:
        for problem in problems[1:]:
            log.error("%s", problem)
        others = f" ({len(problems) - 1} more images have problems)" if len(problems) > 1 else ""
        raise FastRCNNError(f"{problems[0]}{others}")
    extra = len(proposals) - len(records)
    if extra:
        log.info("%s: holds proposals of %d images beyond the %d of the data set", path, extra, len(records))
    return proposals


def find_problems(proposals: Proposals, records: Sequence[ImageRecord], also: Visit | None = None) -> list[Problem]:
    """What would make training on these proposals wrong, at most one problem per image.

    `also` is called with each image and its proposals if nothing is wrong with them: reading all proposals takes long,
    so who needs them too shares this one pass. Warns through the log when the file states no image sizes, and its boxes
    stay far from the right and lower edges.
    """
    path = proposals.path
    if records and not any(record.id in proposals for record in records):
        some = ", ".join(proposals.stored.ids[:3]) or "none"
        text = (
            f"holds proposals of another set (images {some}), none of image {records[0].id}; name the file of this set"
        )
        return [Problem("proposals of another set", path, None, text)]
    found = []
    reach = []
    for record in tqdm(records, desc="proposals", unit="image", leave=False, delay=1):
        problem, boxes = _check_image(proposals, record)
        if problem is not None:
            found.append(problem)
            continue
        if len(boxes):
            reach.append(boxes[:, 2:].max(axis=0) / (record.width, record.height))
        if also is not None:
            also(record, boxes)
    # Selective search always proposes the whole image, or nearly.
    if proposals.stored.sizes is None and reach and (np.median(reach, axis=0) < 0.9).all():
        log.warning("%s: its boxes end far from the images' edges, as if made from smaller images; %s", path, REMEDY)
    return found


def _check_image(proposals: Proposals, record: ImageRecord) -> tuple[Problem | None, Float32[np.ndarray, "P 4"]]:
    """What is wrong with the proposals of one image, and these."""
    nothing = np.zeros((0, 4), np.float32)
    prefix = f"image {record.id}: "
    if record.id not in proposals:
        text = prefix + "has no proposals; make them: run tools/proposals.py again"
        return Problem("proposals missing", proposals.path, None, text), nothing
    size = proposals.size(record.id)
    if size is not None and size != (record.width, record.height):
        text = f"proposals were made from {size[0]}x{size[1]} pixels, the image has {record.width}x{record.height}"
        return Problem("proposals of another size", proposals.path, None, f"{prefix}{text}; {REMEDY}"), nothing
    boxes = proposals[record.id]
    x1, y1, x2, y2 = boxes.T
    # Comparisons with NaN are false.
    good = (x1 >= 0) & (x1 < x2) & (x2 <= record.width) & (y1 >= 0) & (y1 < y2) & (y2 <= record.height)
    if good.all():
        return None, boxes
    first = int(np.argmin(good))
    box = ", ".join(f"{v:g}" for v in boxes[first])
    what = f"is inverted or outside its image of {record.width}x{record.height} pixels"
    text = f"{prefix}proposal {first + 1} ({box}) {what}; {REMEDY}"
    return Problem("proposal outside", proposals.path, None, text), boxes
