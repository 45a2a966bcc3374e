"""Selective search (Uijlings et al. 2013) as OpenCV has it, faster and in an order of our own, for one image."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from fastrcnn.config import ProposalsConfig
from fastrcnn.proposals.grouping import group
from fastrcnn.proposals.segments import Bins, pixel_bins, segments
from fastrcnn.proposals.stored import clean

segmentation = cv2.ximgproc.segmentation

SPACES = (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2Lab)  # of `fast` and the ways of our own
MIN_SIZE = 100  # of a graph segmentation's segments, in pixels: OpenCV's


@dataclass(frozen=True)
class Ways:
    """How a picture is searched: each colour space with each graph segmentation, each merged by each of the cues."""

    scales: tuple[int, ...]  # of graph segmentations, k of Felzenszwalb and Huttenlocher 2004
    cues: tuple[tuple[str, ...], ...]  # of each similarity of two segments, of equal weight: Color, Fill, Size, Texture
    long_side: int | None = None  # pixels; None: as proposals.long_side says
    sigma: float = 0.8  # pixels, of the blur before a graph segmentation


# `fast` is switchToSelectiveSearchFast. The others are ours, cheaper: of finer segments, by size and fill and by colour
# too. None looks at texture, which takes most of the time of `fast` and finds fewer objects than finer segments do.
# What they cost and find is in the experiment log of configs/README.md.
WITH_COLOUR = ("Color", "Fill", "Texture", "Size")
WAYS = {
    # OpenCV has the sigma of `fast` in float32; in float64, one picture in twenty has other boxes.
    "fast": Ways((150, 300, 450), (WITH_COLOUR, WITH_COLOUR[1:]), sigma=float(np.float32(0.8))),
    "faster": Ways((75, 150), (("Fill", "Size"), ("Color", "Size", "Fill")), 400),
    "fastest": Ways((75, 150), (("Fill", "Size"), ("Color", "Size", "Fill")), 250),
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
    boxes = np.float32(_quality(bgr) if ways is None else _by_ways(bgr, ways, threads))
    boxes = np.rint(boxes * np.tile(size / searched, 2)).astype(np.float32)
    return _rank(clean(boxes, config.min_size), image_id)[: config.search_cap]


def _quality(bgr: UInt8[np.ndarray, "H W 3"]) -> Int64[np.ndarray, "_ 4"]:
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(bgr)
    search.switchToSelectiveSearchQuality()
    boxes = np.asarray(search.process(), dtype=np.int64).reshape(-1, 4)  # x, y, width, height
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _by_ways(bgr: UInt8[np.ndarray, "H W 3"], ways: Ways, threads: int) -> Int64[np.ndarray, "_ 4"]:
    textured = any("Texture" in cues for cues in ways.cues)
    with ThreadPoolExecutor(threads) as pool:
        images = [cv2.cvtColor(bgr, space) for space in SPACES]
        bins = pool.map(lambda image: pixel_bins(image, textured), images)
        jobs = [(*of_space, scale, ways) for of_space in zip(images, bins, strict=True) for scale in ways.scales]
        return np.concatenate([*pool.map(_grouped, *zip(*jobs, strict=True))])


def _grouped(image: UInt8[np.ndarray, "H W 3"], bins: Bins, scale: int, ways: Ways) -> Int64[np.ndarray, "_ 4"]:
    """The boxes of all segments of one graph segmentation, and of all that become of them where neighbours merge."""
    regions = segmentation.createGraphSegmentation(ways.sigma, float(scale), MIN_SIZE).processImage(image)
    start = segments(regions, bins)
    return np.concatenate([group(start, cues, regions.size) for cues in ways.cues])


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
