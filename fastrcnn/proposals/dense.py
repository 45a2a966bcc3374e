"""Dense boxes (section 5.5): a grid over scale, aspect ratio and position, in place of selective search or with it.

The paper says "about 45k boxes / image" and no more; the grid is ours: from an image's size down to 1/16 of it,
seven aspect ratios, and steps of a quarter of a box. A VOC image has some 47,000. They are computed when an image is
asked for and stored nowhere.

Shapes: D dense boxes, P proposals.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from fastrcnn.config import ProposalsConfig
from fastrcnn.proposals.selective_search import image_rng, selective_search
from fastrcnn.proposals.stored import clean

SCALES = 2.0 ** -np.arange(0, 4.5, 0.5)  # sides of a square box, in sides of a square as large as the image
RATIOS = 2.0 ** np.arange(-1.5, 2, 0.5)  # height / width
STEP = 0.25  # between neighbours, in widths and heights of a box

Shape = tuple[Int64[np.ndarray, "2"], Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]


@lru_cache(maxsize=8)
def grid(width: int, height: int) -> list[Shape]:
    """The sizes (w, h) of dense boxes of an image of that size, each with the places of its left and upper edges.

    Whole image pixels. A side longer than the image's is cut to it, so that the largest box is the whole image, or
    nearly.
    """
    whole = np.array([width, height])
    sides = np.sqrt(width * height) * SCALES[:, None, None] * np.stack((RATIOS**-0.5, RATIOS**0.5), axis=1)
    sides = np.rint(sides.round(6)).reshape(-1, 2)  # round: 12.5 stays a half whatever the last bit of a power
    sizes = np.unique(np.clip(sides, 1, whole).astype(np.int64), axis=0)
    counts = ((whole - sizes) / (STEP * sizes)).astype(np.int64) + 1
    return [
        (
            size,
            *(np.unique(np.rint(np.linspace(0, room, n)).astype(np.int64)) for room, n in zip(rooms, ns, strict=True)),
        )
        for size, rooms, ns in zip(sizes, whole - sizes, counts, strict=True)
    ]


def dense_boxes(width: int, height: int, min_size: int = 1) -> Float32[np.ndarray, "D 4"]:
    """All of `grid` that are at least min_size wide and high: image pixels, half open, none twice."""
    parts = [np.zeros((0, 4), np.int64)]
    for size, lefts, tops in grid(width, height):
        if size.min() < min_size:
            continue
        corners = np.stack(np.meshgrid(lefts, tops), axis=2).reshape(-1, 2)
        parts.append(np.hstack((corners, corners + size)))
    return np.concatenate(parts).astype(np.float32)


def nearest_dense(boxes: Float32[np.ndarray, "P 4"], width: int, height: int) -> Float32[np.ndarray, "P 4"]:
    """For each box (image pixels) the dense box of highest IoU; the first of equals in the grid's order.

    Of one size, the highest IoU has the box whose centre is nearest, in x and in y: overlap falls with distance.
    """
    import torch  # here, as processes that only search do without it

    from fastrcnn.boxes import iou

    candidates = []
    for size, *places in grid(width, height):
        wanted = (boxes[:, :2] + boxes[:, 2:] - size) / 2
        corners = np.stack([_nearest(at, wanted[:, axis]) for axis, at in enumerate(places)], axis=1)
        candidates.append(np.hstack((corners, corners + size)))
    rows = torch.from_numpy(np.stack(candidates, axis=1)).double()  # [P, sizes, 4]
    overlaps = torch.vmap(iou)(torch.from_numpy(boxes).double()[:, None], rows).squeeze(1)
    return rows[torch.arange(len(rows)), overlaps.argmax(dim=1)].float().numpy()


def _nearest(places: Int64[np.ndarray, "n"], wanted: np.ndarray) -> Int64[np.ndarray, "P"]:
    """Of ascending places the nearest to each wanted one."""
    return places[np.searchsorted((places[1:] + places[:-1]) / 2, wanted)]


def with_dense(
    boxes: Float32[np.ndarray, "_ 4"], width: int, height: int, image_id: str, config: ProposalsConfig
) -> Float32[np.ndarray, "P 4"]:
    """The proposals of an image as config.method and config.dense want them, from its sparse ones; none twice.

    What is drawn at random depends on the image's id and size alone: of a smaller number, it is the first.
    """
    if config.dense == "replace":
        return clean(nearest_dense(boxes, width, height), config.min_size)
    if config.dense is None and config.method != "dense":
        return boxes
    dense = dense_boxes(width, height, config.min_size)
    dense = dense[image_rng(image_id).permutation(len(dense))]
    if config.method == "dense":
        return dense[: config.max_per_image]
    return clean(np.concatenate((boxes, dense[: config.dense])), config.min_size)


def find_proposals(
    image: UInt8[np.ndarray, "H W 3"], image_id: str, config: ProposalsConfig, threads: int = 1
) -> Float32[np.ndarray, "P 4"]:
    """Proposals of a picture (RGB, upright) of which none are stored: image pixels, half open; the same on any number
    of threads."""
    nothing = np.zeros((0, 4), np.float32)
    sparse = nothing if config.method == "dense" else selective_search(image, image_id, config, threads)
    return with_dense(sparse, image.shape[1], image.shape[0], image_id, config)
