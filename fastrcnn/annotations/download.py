"""VOC from the web."""

import logging
import re
import shutil
from pathlib import Path

from fastrcnn.errors import FastRCNNError

log = logging.getLogger(__name__)


def download_voc(root: Path, split: str) -> None:
    """Fetch a year of VOC through torchvision and leave it at `root`, whose name says which: VOC2007, VOC2012, ...

    Raises FastRCNNError when the name is no year, the archive cannot be had, or it cannot be written.
    """
    match = re.fullmatch(r"VOC(20\d\d)", root.name)
    if not match:
        raise FastRCNNError(f"{root}: download needs a root named after its year, such as data/VOCdevkit/VOC2007")
    from torchvision.datasets import VOCDetection  # late: it takes a second to import

    # Both archives of 2007 hold the folder VOCdevkit/VOC2007: unpack aside, then move. The lists go last, so that a
    # list which is there means that its images are.
    aside = root.parent / f"{root.name}.download"
    image_set = "test" if split.endswith("test") else "trainval"
    log.info("%s: downloading VOC %s %s", root, match[1], image_set)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        VOCDetection(str(aside), year=match[1], image_set=image_set, download=True)
        unpacked = next(aside.rglob(root.name))
        files = [path for path in unpacked.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: "ImageSets" in path.parts):
            target = root / path.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        shutil.rmtree(aside)
    except (OSError, RuntimeError, ValueError, StopIteration) as e:
        raise FastRCNNError(
            f"{root}: VOC {match[1]} {image_set} cannot be downloaded: {e}; unpack the archive here yourself"
        ) from e
