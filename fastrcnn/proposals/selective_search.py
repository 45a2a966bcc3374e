"""Selective search (Uijlings et al. 2013) as OpenCV has it, in an order of our own, for one image."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from fastrcnn.config import ProposalsConfig
from fastrcnn.proposals.stored import clean

segmentation = cv2.ximgproc.segmentation

SPACES = (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2Lab)  # of `fast` and the ways of our own
MIN_SIZE = 100  # of a graph segmentation's segments, in pixels: OpenCV's


@dataclass(frozen=True)
class Ways:
    """How a picture is searched: each colour space with each graph segmentation, each merged by each of the cues."""

    scales: tuple[int, ...]  # of graph segmentations, k of Felzenszwalb and Huttenlocher 2004
    cues: tuple[str, ...]  # the similarities of two segments, of equal weight: Color, Fill, Size, Texture
    long_side: int | None = None  # pixels; None: as proposals.long_side says
    sigma: float = 0.8  # pixels, of the blur before a graph segmentation


# `fast` is switchToSelectiveSearchFast. The others are ours, cheaper: of finer segments, by size and fill and by colour
# too. None looks at texture, which takes most of the time of `fast` and finds fewer objects than finer segments do.
# What they cost and find is in the experiment log of configs/README.md.
WAYS = {
    # OpenCV has the sigma of `fast` in float32; in float64, one picture in twenty has other boxes.
    "fast": Ways((150, 300, 450), ("Color Fill Texture Size", "Fill Texture Size"), sigma=float(np.float32(0.8))),
    "faster": Ways((75, 150), ("Fill Size", "Color Size Fill"), 400),
    "fastest": Ways((75, 150), ("Fill Size", "Color Size Fill"), 250),
}


def selective_search(
    image: UInt8[np.ndarray, "H W 3"], image_id: str, config: ProposalsConfig, threads: int = 1
) -> Float32[np.ndarray, "P 4"]:
    """Proposals of an image (RGB, upright): image pixels, half open, best first.

    At most config.search_cap boxes of whole pixels, none narrower or lower than config.min_size, none twice; an
    image longer than config.long_side, or than the method's own, is searched at that size. The same image and id give
    the same boxes in the same order, everywhere, on any number of threads (`quality` takes one).
    """
    size = np.array(image.shape[1::-1])
    ways = WAYS.get(config.method)
    long_side = min(config.long_side, (ways and ways.long_side) or config.long_side)
    searched = np.maximum(size * min(1.0, long_side / size.max()), 1).round().astype(int)
    if (searched < size).any():
        image = cv2.resize(image, searched.tolist(), interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(image[:, :, ::-1])  # OpenCV's colour conversions take BGR
    if ways is None:
        search = segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(bgr)
        search.switchToSelectiveSearchQuality()
        found = [np.asarray(search.process())]
    else:
        jobs = [(cv2.cvtColor(bgr, space), scale, ways) for space in SPACES for scale in ways.scales]
        with ThreadPoolExecutor(threads) as pool:
            found = [*pool.map(lambda job: _segments(*job), jobs)]
    boxes = np.concatenate([part.reshape(-1, 4) for part in found]).astype(np.float32)  # x, y, width, height
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.rint(boxes * np.tile(size / searched, 2)).astype(np.float32)
    return _rank(clean(boxes, config.min_size), image_id)[: config.search_cap]


def _segments(image: UInt8[np.ndarray, "H W 3"], scale: int, ways: Ways) -> Shaped[np.ndarray, "_ 4"]:
    """The boxes of all segments of one graph segmentation, and of all that become of them where neighbours merge."""
    search = segmentation.createSelectiveSearchSegmentation()
    search.addImage(image)
    search.addGraphSegmentation(segmentation.createGraphSegmentation(ways.sigma, float(scale), MIN_SIZE))
    for names in map(str.split, ways.cues):
        similarity = segmentation.createSelectiveSearchSegmentationStrategyMultiple()
        for name in names:
            cue = getattr(segmentation, f"createSelectiveSearchSegmentationStrategy{name}")
            similarity.addStrategy(cue(), 1 / len(names))
        search.addStrategy(similarity)
    return np.asarray(search.process())


def _rank(boxes: Float32[np.ndarray, "P 4"], image_id: str) -> Float32[np.ndarray, "P 4"]:
    """Order boxes at random, seeded by the image's id, with a lean towards large ones.

    OpenCV's own order cannot be repeated: it multiplies C's rand() with the level in the hierarchy. It also puts low
    levels first, the inverse of the paper (section 4.4: the whole image has position 1), so that the first 2,000 are
    mostly fragments. OpenCV gives no levels; size takes their place. Recall at IoU 0.5 and 0.7 on 50 VOC 2007 images:
    first 2,000 of `quality` (5,500 give 0.99 and 0.90): OpenCV's order 0.97 and 0.66, plain chance 0.98 and 0.81, this
    0.97 and 0.83; first 300 of `fast`: 0.66 and 0.34, 0.90 and 0.54, 0.90 and 0.60. Exponent 1 loses small objects.
    """
    boxes = boxes[np.lexsort(boxes.T)]  # from OpenCV's chance order to one that the boxes alone decide
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return boxes[np.argsort(image_rng(image_id).random(len(boxes)) / area**0.25, kind="stable")]


def image_rng(image_id: str) -> np.random.Generator:
    """The random numbers of an image, which depend on its id alone."""
    seed = int.from_bytes(hashlib.sha256(image_id.encode(errors="surrogateescape")).digest()[:8], "big")
    return np.random.default_rng(seed)
