"""The grouping of selective search (Uijlings et al. 2013, section 4): the two most similar neighbours become one
segment, until one is left; all of them are proposals.

Similarities and their rounding are OpenCV's (opencv_contrib, modules/ximgproc/src/selectivesearchsegmentation.cpp), and
so are the boxes. Only where two pairs are equally similar does OpenCV leave the choice to its sorting; here the pair
that was found last is taken, on every system.

Shapes: S segments, T of them and what they become, n pairs.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from fastrcnn.proposals.segments import Segments


def group(start: Segments, cues: Sequence[str], area: int) -> Int64[np.ndarray, "T 4"]:
    """The boxes of segments and of all that become of them, half open. `cues` are what makes two alike, of equal
    weight: Color, Fill, Size, Texture; `area` is the picture's, in pixels."""
    growing, pairs = _Growing(start, cues, area), start.neighbours
    around: list[set[int]] = [set() for _ in start.sizes]  # the neighbours of each
    for a, b in pairs.tolist():
        around[a].add(b)
        around[b].add(a)
    alike = growing.similarity(pairs[:, 0], pairs[:, 1])
    queue = [(-value, -i, a, b) for i, (value, (a, b)) in enumerate(zip(alike.tolist(), pairs.tolist(), strict=True))]
    heapq.heapify(queue)
    found = len(queue)
    while queue:
        _, _, a, b = heapq.heappop(queue)
        if b not in around[a]:  # one of the two has become part of another
            continue
        merged, others = growing.merge(a, b), (around[a] | around[b]) - {a, b}
        around.append(others)
        for other in others:
            around[other] -= {a, b}
            around[other].add(merged)
        around[a], around[b] = set(), set()
        ordered = np.array(sorted(others), dtype=np.int64)
        for other, value in zip(ordered.tolist(), growing.similarity(merged, ordered).tolist(), strict=True):
            heapq.heappush(queue, (-value, -found, merged, other))
            found += 1
    return growing.boxes[: growing.count]


class _Growing:
    """Segments, and behind them what they are merged to."""

    def __init__(self, start: Segments, cues: Sequence[str], area: int):
        self.count, self.cues, self.area = len(start.sizes), cues, np.float32(area)
        self.weight = np.float32(1 / len(cues))
        self.weights = np.add.accumulate(np.full(len(cues), self.weight))[-1]
        self.sizes, self.boxes = _with_room(start.sizes), _with_room(start.boxes)
        self.shares = {cue: _with_room(start.histograms[cue]) for cue in cues if cue in start.histograms}

    def similarity(self, a: Int64[np.ndarray, "n"] | int, b: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        """Of pairs, from 0 to 1. Sums are float32, one number after the other: other roundings make other boxes."""
        both, total = self.sizes[a] + self.sizes[b], np.float32(0)
        for cue in self.cues:
            if cue in self.shares:
                shares = self.shares[cue]
                value = np.add.accumulate(np.minimum(shares[a], shares[b]), axis=1)[:, -1]
            elif cue == "Size":
                value = 1 - both.astype(np.float32) / self.area
            else:
                sides = np.maximum(self.boxes[a, ..., 2:], self.boxes[b, 2:]) - np.minimum(
                    self.boxes[a, ..., :2], self.boxes[b, :2]
                )
                value = 1 - (sides[:, 0] * sides[:, 1] - both).astype(np.float32) / self.area
            total = total + self.weight * value
        return total / self.weights

    def merge(self, a: int, b: int) -> int:
        """The index of what two become."""
        c, sizes = self.count, self.sizes
        self.count += 1
        sizes[c] = sizes[a] + sizes[b]
        np.minimum(self.boxes[a, :2], self.boxes[b, :2], out=self.boxes[c, :2])
        np.maximum(self.boxes[a, 2:], self.boxes[b, 2:], out=self.boxes[c, 2:])
        for shares in self.shares.values():
            parts = shares[a] * np.float32(sizes[a]) + shares[b] * np.float32(sizes[b])
            np.divide(parts, np.float32(sizes[c]), out=shares[c])
        return c


def _with_room(values: np.ndarray) -> np.ndarray:
    """A copy with rows for all that S segments can become."""
    room = np.empty((max(2 * len(values) - 1, 0), *values.shape[1:]), values.dtype)
    room[: len(values)] = values
    return room
