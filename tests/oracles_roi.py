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
