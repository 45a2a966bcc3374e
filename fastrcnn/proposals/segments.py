"""Segments of a picture for selective search (Uijlings et al. 2013): which are neighbours, their sizes, boxes, and
histograms of colour and texture.

The numbers are OpenCV's (opencv_contrib, modules/ximgproc/src/selectivesearchsegmentation.cpp), which takes most of its
time for them: it goes through the whole picture for the colours of every segment, and measures gradients anew for each
graph segmentation and similarity. Here pixels get their bins once for a colour space, and are counted in one go.

Shapes: H W pixels, S segments, N pairs of neighbours, A histograms side by side.
"""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

COLOURS = 25  # bins of a channel
TEXTURES = 10  # bins of a direction of gradients, of which there are eight


@dataclass(frozen=True)
class Bins:
    """The bins of the pixels of one colour space."""

    colours: UInt8[np.ndarray, "3 H W"]  # of each channel
    textures: UInt8[np.ndarray, "12 H W"] | None  # TEXTURES times that of one direction, plus that of the opposite one


@dataclass(frozen=True)
class Segments:
    """What a grouping starts from."""

    sizes: Int64[np.ndarray, "S"]  # pixels
    boxes: Int64[np.ndarray, "S 4"]  # half open
    neighbours: Int64[np.ndarray, "N 2"]  # the lower index first
    histograms: dict[str, Float32[np.ndarray, "S _"]]  # Color and Texture: shares, whose sum is 1 for each segment


def pixel_bins(image: UInt8[np.ndarray, "H W 3"], textured: bool) -> Bins:
    """The bins of each pixel; of textures only where they are wanted."""
    colours = cv2.LUT(image, (np.arange(256) * COLOURS // 256).astype(np.uint8))
    gradients = [each for channel in cv2.split(image) for each in _gradients(channel)] if textured else []
    textures = np.stack([_directions(each) for each in gradients]) if textured else None
    return Bins(np.ascontiguousarray(np.moveaxis(colours, 2, 0)), textures)


def _directions(gradient: Float32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Of each pixel the bins of what points along an axis, and of what points against it, each scaled to 0 to 255."""
    bins = (np.arange(256, dtype=np.float32) / np.float32(256 / TEXTURES)).astype(np.uint8)
    into = partial(np.empty, gradient.shape, np.uint8)
    along, against = (
        cv2.normalize(cv2.threshold(gradient, 0, 0, how)[1], into(), 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
        for how in (cv2.THRESH_TOZERO, cv2.THRESH_TOZERO_INV)
    )
    return cv2.add(cv2.LUT(along, bins * TEXTURES), cv2.LUT(against, bins))


def _gradients(channel: UInt8[np.ndarray, "H W"]) -> list[Float32[np.ndarray, "H W"]]:
    """Along x and y, and along x and y of the picture turned by 45 degrees, turned back."""
    height, width = channel.shape
    turn, size = _turn(width, height, 45.0, (width / 2, height / 2))
    turn[:, 2] += (size[0] / 2 - width / 2, size[1] / 2 - height / 2)
    turned = cv2.warpAffine(channel, turn, size)
    back, back_size = _turn(*size, -45.0, (size[0] // 2, size[1] // 2))
    x, y = max(0, (size[0] - width) // 2), max(0, (size[1] - height) // 2)
    axes = (1, 0), (0, 1)
    slanted = [cv2.warpAffine(cv2.Scharr(turned, cv2.CV_32F, *axis), back, back_size) for axis in axes]
    return [
        *(cv2.Scharr(channel, cv2.CV_32F, *axis) for axis in axes),
        *(gradient[y : y + height, x : x + width] for gradient in slanted),
    ]


def _turn(width: int, height: int, degrees: float, centre: tuple[float, float]) -> tuple[np.ndarray, tuple[int, int]]:
    """The rotation of a picture about a point, and the width and height of what holds it then."""
    corners = cv2.boxPoints((centre, (width, height), degrees))
    size = np.ceil(corners.max(axis=0)) - np.floor(corners.min(axis=0)) + 1
    return cv2.getRotationMatrix2D(centre, degrees, 1.0), (int(size[0]), int(size[1]))


def segments(regions: Int32[np.ndarray, "H W"], bins: Bins) -> Segments:
    """Of a graph segmentation, which gives each pixel the index of its segment, all of them."""
    count = int(regions.max()) + 1
    histograms = {"Color": _shares(_counts(regions, bins.colours, COLOURS, count))}
    if bins.textures is not None:
        pairs = _counts(regions, bins.textures, TEXTURES**2, count).reshape(count, -1, TEXTURES, TEXTURES)
        histograms["Texture"] = _shares(np.stack((pairs.sum(axis=3), pairs.sum(axis=2)), axis=2))
    sizes = np.bincount(regions.ravel())
    return Segments(sizes, _boxes(regions, count), _neighbours(regions, count), histograms)


def _counts(
    regions: Int32[np.ndarray, "H W"], bins: UInt8[np.ndarray, "A H W"], width: int, count: int
) -> Int64[np.ndarray, "S A _"]:
    """How many pixels of each of `count` segments are in each of `width` bins."""
    first = regions.astype(np.int64) * width
    counted = [np.bincount((first + each).ravel(), minlength=count * width) for each in bins]
    return np.stack([each.reshape(count, width) for each in counted], axis=1)


def _shares(counts: Int64[np.ndarray, "S *bins"]) -> Float32[np.ndarray, "S _"]:
    flat = counts.reshape(len(counts), -1)
    return flat.astype(np.float32) / flat.sum(axis=1, keepdims=True).astype(np.float32)


def _boxes(regions: Int32[np.ndarray, "H W"], count: int) -> Int64[np.ndarray, "S 4"]:
    first, last = [], []
    for axis in (1, 0):
        length = regions.shape[axis]
        there = np.zeros((count, length), dtype=bool)
        there[regions, np.expand_dims(np.arange(length), 1 - axis)] = True
        first.append(there.argmax(axis=1))
        last.append(length - there[:, ::-1].argmax(axis=1))
    return np.stack((*first, *last), axis=1)


def _neighbours(regions: Int32[np.ndarray, "H W"], count: int) -> Int64[np.ndarray, "N 2"]:
    """Pairs that touch. As in OpenCV, not those that do so along the first row or column alone, or only across the
    diagonal that falls to the left."""
    here, keys = regions[1:, 1:], []
    for there in (regions[1:, :-1], regions[:-1, 1:], regions[:-1, :-1]):
        border = here != there
        a, b = here[border], there[border]
        keys.append(np.minimum(a, b).astype(np.int64) * count + np.maximum(a, b))
    distinct = np.unique(np.concatenate(keys))
    return np.stack((distinct // count, distinct % count), axis=1)
