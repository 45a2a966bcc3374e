"""Loop-only twins of RoI pooling and of the choice of detections: slow, written from the definitions."""

import math

import numpy as np


def round_half_away(x: float) -> int:
    """C's round(): the float32 value becomes a Python float, in which adding one half is exact."""
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), float(x)))


def roi_cells_oracle(roi, spatial_scale) -> list[int]:
    return [round_half_away(np.float32(v) * np.float32(spatial_scale)) for v in roi]


def bin_edges_oracle(first: int, last: int, pool_size: int, length: int) -> list[tuple[int, int]]:
    bin_size = np.float32(max(last - first + 1, 1)) / np.float32(pool_size)
    edges = []
    for p in range(pool_size):
        start = math.floor(np.float32(p) * bin_size) + first
        end = math.ceil(np.float32(p + 1) * bin_size) + first
        edges.append((min(max(start, 0), length), min(max(end, 0), length)))
    return edges


def roi_pool_oracle(feature: np.ndarray, rois, pool_size: int, spatial_scale: float) -> np.ndarray:
    """feature [C, h, w], rois [R, 4] in scaled pixels -> [R, C, P, P]."""
    channels, height, width = feature.shape
    pooled = np.zeros((len(rois), channels, pool_size, pool_size), feature.dtype)
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = roi_cells_oracle(roi, spatial_scale)
        for i, (top, bottom) in enumerate(bin_edges_oracle(y1, y2, pool_size, height)):
            for j, (left, right) in enumerate(bin_edges_oracle(x1, x2, pool_size, width)):
                for c in range(channels):
                    cells = [feature[c, y, x] for y in range(top, bottom) for x in range(left, right)]
                    pooled[r, c, i, j] = max(cells, default=0)
    return pooled


def iou_oracle(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


def candidates_oracle(scores, boxes, score_threshold) -> list[tuple[int, int]]:
    """The (RoI, class) of each box that may be a detection."""
    return [
        (r, k)
        for r in range(len(scores))
        for k in range(1, scores.shape[1])
        if scores[r, k] > score_threshold and boxes[r, k, 2] > boxes[r, k, 0] and boxes[r, k, 3] > boxes[r, k, 1]
    ]


def select_detections_oracle(scores, boxes, score_threshold, nms_iou, max_detections) -> list[tuple[int, int]]:
    """The (RoI, class) of each detection, best first: greedy suppression of one class after the other."""
    kept = []
    for k in range(1, scores.shape[1]):
        candidates = [r for r, c in candidates_oracle(scores, boxes, score_threshold) if c == k]
        winners = []
        for r in sorted(candidates, key=lambda r: (-scores[r, k], r)):
            overlaps = [iou_oracle(boxes[r, k].tolist(), boxes[w, k].tolist()) for w in winners]
            if all(overlap < nms_iou or overlap == 0 for overlap in overlaps):
                winners.append(r)
        kept += [(r, k) for r in winners]
    return sorted(kept, key=lambda pair: (-scores[pair], pair))[:max_detections]


def soft_nms_oracle(scores, boxes, score_threshold, nms_iou, max_detections, kind) -> list[tuple[int, int, float]]:
    """(RoI, class, score) of each detection, best first: figure 2 of Bodla et al., one class after the other."""
    found = []
    for k in range(1, scores.shape[1]):
        left = {r: float(scores[r, k]) for r, c in candidates_oracle(scores, boxes, score_threshold) if c == k}
        while left:
            best = min(left, key=lambda r: (-left[r], r))
            found.append((best, k, left.pop(best)))
            for r in left:
                overlap = iou_oracle(boxes[r, k].tolist(), boxes[best, k].tolist())
                if kind == "gaussian":
                    left[r] *= math.exp(-overlap * overlap / 0.5)
                elif overlap >= nms_iou:
                    left[r] *= 1 - overlap
    found = [one for one in found if one[2] > score_threshold]
    return sorted(found, key=lambda one: (-one[2], one[:2]))[:max_detections]


def vote_oracle(scores, boxes, score_threshold, box_voting, roi, k) -> list[float]:
    """The box of detection (roi, k) after voting."""
    total, weights = [0.0] * 4, 0.0
    for r, c in candidates_oracle(scores, boxes, score_threshold):
        if c == k and iou_oracle(boxes[r, c].tolist(), boxes[roi, k].tolist()) >= box_voting:
            weights += float(scores[r, c])
            total = [t + float(scores[r, c]) * x for t, x in zip(total, boxes[r, c].tolist(), strict=True)]
    return [t / weights for t in total]


def merged(parts, weight):
    """RoI features [c][y][x] of several layers -> [C][y][x]: each bin's part at RMS 1, concatenated, times weight."""
    result = []
    for row in weight:
        result.append([[0.0] * len(parts[0][0][0]) for _ in parts[0][0]])
        for y in range(len(parts[0][0])):
            for x in range(len(parts[0][0][0])):
                column = []
                for part in parts:
                    values = [channel[y][x] for channel in part]
                    rms = (sum(v * v for v in values) / len(values)) ** 0.5
                    column += [v / rms if rms else 0.0 for v in values]
                result[-1][y][x] = sum(w * v for w, v in zip(row, column, strict=True))
    return result


def spp_cells_oracle(roi, stride: int, offset: float) -> list[int]:
    """The first and last cells whose centres are strictly inside, by trying; the middle of the two if there is none."""
    edges = []
    for low, high in ((roi[0], roi[2]), (roi[1], roi[3])):
        first, last = -1000, 1000
        while offset + stride * first <= low:
            first += 1
        while offset + stride * last >= high:
            last -= 1
        edges.append(((first + last) // 2,) * 2 if first > last else (first, last))
    (x1, x2), (y1, y2) = edges
    return [x1, y1, x2, y2]


def spp_oracle(feature: np.ndarray, rois, pyramid, stride: int, offset: float) -> np.ndarray:
    """feature [C, h, w], rois [R, 4] in scaled pixels -> [R, C, B]: whole-number bins of RoIs clamped to the map."""
    channels, height, width = feature.shape
    result = []
    for roi in rois:
        x1, y1, x2, y2 = spp_cells_oracle([float(v) for v in roi], stride, offset)
        x1, x2 = (min(max(x, 0), width - 1) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), height - 1) for y in (y1, y2))
        w, h = x2 - x1 + 1, y2 - y1 + 1
        bins = []
        for n in pyramid:
            for i in range(n):
                for j in range(n):
                    ys = range(y1 + i * h // n, y1 - (-(i + 1) * h // n))
                    xs = range(x1 + j * w // n, x1 - (-(j + 1) * w // n))
                    bins.append([max(feature[c, y, x] for y in ys for x in xs) for c in range(channels)])
        result.append(np.array(bins).T)
    return np.stack(result)


def interpolated(plane: np.ndarray, y: float, x: float) -> float:
    """The value of a plane [h, w] between the whole numbers, which are the centres of its cells; its edge goes on."""
    y, x = (min(max(v, 0.0), size - 1.0) for v, size in zip((y, x), plane.shape, strict=True))
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            if weight > 0:
                total += weight * float(plane[row, column])
    return total


def roi_align_oracle(feature, rois, pool_size: int, spatial_scale: float, samples: int, aligned: bool) -> np.ndarray:
    """feature [C, h, w], half-open rois [R, 4] in scaled pixels -> [R, C, P, P]: figure 3 of Mask R-CNN. A sample more
    than a cell beyond the centres of the outer cells is 0."""
    channels, height, width = feature.shape
    pooled = np.zeros((len(rois), channels, pool_size, pool_size))
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = (float(v) * spatial_scale - (0.5 if aligned else 0.0) for v in roi)
        h, w = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        down, across = (samples or math.ceil(side / pool_size) for side in (h, w))
        for i in range(pool_size):
            for j in range(pool_size):
                for c in range(channels):
                    values = []
                    for k in range(down):
                        for m in range(across):
                            y = y1 + (i + (k + 0.5) / down) * h / pool_size
                            x = x1 + (j + (m + 0.5) / across) * w / pool_size
                            off = y < -1 or y > height or x < -1 or x > width
                            values.append(0.0 if off else interpolated(feature[c], y, x))
                    pooled[r, c, i, j] = sum(values) / max(len(values), 1)
    return pooled


def warp_oracle(image: np.ndarray, box, scale: float, size: int) -> np.ndarray:
    """image [3, H, W] in scaled pixels, a half-open box in image pixels -> [3, size, size], 16 pixels of it context."""
    height, width = image.shape[1:]
    inner, result = size - 32, np.zeros((3, size, size))
    for i in range(size):
        for j in range(size):
            # The box fills what is within the context; a pixel's centre is half a pixel from its edge.
            x = scale * (box[0] + (box[2] - box[0]) * (j + 0.5 - 16) / inner)
            y = scale * (box[1] + (box[3] - box[1]) * (i + 0.5 - 16) / inner)
            if 0 <= x < width and 0 <= y < height:
                for c in range(3):
                    result[c, i, j] = interpolated(image[c], y - 0.5, x - 0.5)
    return result
