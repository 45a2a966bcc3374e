"""Slow twins of selective search, from pixels to boxes: loops only."""

import numpy as np

f32 = np.float32


def neighbours(regions):
    """Pairs of segments that touch, looking left, up, and left of that, from all pixels but those of the first row
    and column."""
    found = set()
    for y in range(1, len(regions)):
        for x in range(1, len(regions[0])):
            for there in (regions[y][x - 1], regions[y - 1][x], regions[y - 1][x - 1]):
                if there != regions[y][x]:
                    found.add((min(there, regions[y][x]), max(there, regions[y][x])))
    return sorted(found)


def box(regions, segment):
    """Half open."""
    places = [(x, y) for y, row in enumerate(regions) for x, r in enumerate(row) if r == segment]
    xs, ys = zip(*places, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def shares(regions, planes, bins, segment):
    """Of a segment's pixels in the bins of all planes, one plane's after the other; their sum is 1."""
    counts = [0] * (bins * len(planes))
    for i, plane in enumerate(planes):
        for row, values in zip(regions, plane, strict=True):
            for r, value in zip(row, values, strict=True):
                if r == segment:
                    counts[i * bins + value] += 1
    return [f32(f32(c) / f32(sum(counts))) for c in counts]


def group(sizes, boxes, pairs, histograms, cues, area):
    """Boxes of segments and of what they become: the most similar two first, of equals those that were found last."""
    sizes, boxes, gone = list(map(int, sizes)), [tuple(map(int, b)) for b in boxes], set()
    histograms = {cue: [list(row) for row in rows] for cue, rows in histograms.items()}

    def together(a, b):
        (ax, ay, ar, ab), (bx, by, br, bb) = boxes[a], boxes[b]
        return min(ax, bx), min(ay, by), max(ar, br), max(ab, bb)

    def alike(a, b):
        total, weights = f32(0), f32(0)
        for cue in cues:
            if cue in histograms:
                value = f32(0)
                for p, q in zip(histograms[cue][a], histograms[cue][b], strict=True):
                    value = f32(value + min(p, q))
            else:
                x, y, u, v = together(a, b)
                pixels = sizes[a] + sizes[b]
                missing = (u - x) * (v - y) - pixels if cue == "Fill" else pixels
                value = min(max(f32(1 - f32(f32(missing) / f32(area))), f32(0)), f32(1))
            total, weights = f32(total + f32(f32(1 / len(cues)) * value)), f32(weights + f32(1 / len(cues)))
        return f32(total / weights)

    found = [(int(a), int(b), alike(a, b)) for a, b in pairs]
    while left := [pair for pair in found if not gone & {*pair[:2]}]:
        highest = max(value for *_, value in left)
        a, b, _ = [pair for pair in left if pair[2] == highest][-1]
        around = {x for pair in left if {a, b} & {*pair[:2]} for x in pair[:2]} - {a, b}
        gone |= {a, b}
        boxes.append(together(a, b))
        sizes.append(sizes[a] + sizes[b])
        for rows in histograms.values():
            rows.append(
                [
                    f32(f32(f32(p * f32(sizes[a])) + f32(q * f32(sizes[b]))) / f32(sizes[-1]))
                    for p, q in zip(rows[a], rows[b], strict=True)
                ]
            )
        found += [(len(boxes) - 1, x, alike(len(boxes) - 1, x)) for x in sorted(around)]
    return boxes
