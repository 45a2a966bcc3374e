"""Slow twins of fastrcnn.evaluate, written as the development kit tells it: one detection at a time."""

import heapq

import numpy as np


def voc_ap_oracle(detections, ground_truth, class_count, iou_threshold=0.5, metric="11point"):
    """AP [K] by a loop over the detections of each class, in numpy where one detection allows it."""
    ap = np.full(class_count, np.nan)
    for k in range(1, class_count):
        objects = {}
        for g in np.flatnonzero(ground_truth.classes == k):
            objects.setdefault(int(ground_truth.images[g]), []).append(g)
        boxes = {i: ground_truth.boxes[rows].astype(np.float64) for i, rows in objects.items()}
        difficult = {i: ground_truth.difficult[rows] for i, rows in objects.items()}
        taken = {i: [False] * len(rows) for i, rows in objects.items()}
        npos = int(sum((~flags).sum() for flags in difficult.values()))
        if npos == 0:
            continue
        mine = np.flatnonzero(detections.classes == k)
        order = sorted(mine, key=lambda d: (-detections.scores[d], detections.images[d], d))
        tp, fp = [0], [0]
        for d in order:
            i = int(detections.images[d])
            best, ovmax = -1, -np.inf
            if i in boxes:
                x1, y1, x2, y2 = detections.boxes[d].astype(np.float64)
                gt = boxes[i]
                iw = np.minimum(gt[:, 2], x2) - np.maximum(gt[:, 0], x1)
                ih = np.minimum(gt[:, 3], y2) - np.maximum(gt[:, 1], y1)
                inter = np.maximum(iw, 0.0) * np.maximum(ih, 0.0)
                union = (x2 - x1) * (y2 - y1) + (gt[:, 2] - gt[:, 0]) * (gt[:, 3] - gt[:, 1]) - inter
                with np.errstate(divide="ignore", invalid="ignore"):
                    overlaps = np.where(inter > 0, inter / union, 0.0)
                best = int(overlaps.argmax())
                ovmax = overlaps[best]
            if ovmax >= iou_threshold and difficult[i][best]:
                continue
            right = ovmax >= iou_threshold and not taken[i][best]
            if right:
                taken[i][best] = True
            tp.append(tp[-1] + right)
            fp.append(fp[-1] + (not right))
        ap[k] = _area(tp[1:], fp[1:], npos) if metric == "area" else _eleven_points(tp[1:], fp[1:], npos)
    return ap


def _eleven_points(tp, fp, npos):
    total = 0.0
    for k in range(11):
        total += max((t / (t + f) for t, f in zip(tp, fp, strict=True) if 10 * t >= k * npos), default=0.0)
    return total / 11


def _area(tp, fp, npos):
    recall = [0.0] + [t / npos for t in tp] + [1.0]
    precision = [0.0] + [t / (t + f) for t, f in zip(tp, fp, strict=True)] + [0.0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def recall_oracle(proposals, objects, threshold):
    """How many of `objects` [G, 4] have IoU >= threshold with one of `proposals` [P, 4], by two loops."""
    found = 0
    for gx1, gy1, gx2, gy2 in objects.tolist():
        for x1, y1, x2, y2 in proposals.tolist():
            w, h = min(x2, gx2) - max(x1, gx1), min(y2, gy2) - max(y1, gy1)
            if w <= 0 or h <= 0:
                continue
            if w * h / ((x2 - x1) * (y2 - y1) + (gx2 - gx1) * (gy2 - gy1) - w * h) >= threshold:
                found += 1
                break
    return found


def resampled_oracle(detections, ground_truth, class_count, weights, metric):
    """AP [B, K] of resamples made for real: an image drawn twice becomes two images. Column 0 is the mean.

    Scores become ranks first, so that ties keep the order they have in the whole set.
    """
    order = sorted(range(len(detections.scores)), key=lambda d: (-detections.scores[d], int(detections.images[d]), d))
    ranks = np.empty(len(order), np.float32)
    ranks[order] = -np.arange(len(order), dtype=np.float32)
    result = []
    for row in weights:
        copies = [image for image, times in enumerate(row.tolist()) for _ in range(times)]
        found = [(new, d) for new, image in enumerate(copies) for d in np.flatnonzero(detections.images == image)]
        objects = [(new, g) for new, image in enumerate(copies) for g in np.flatnonzero(ground_truth.images == image)]
        new, d = np.array(found, np.int64).reshape(-1, 2).T
        drawn = type(detections)(new, detections.classes[d], ranks[d], detections.boxes[d])
        new, g = np.array(objects, np.int64).reshape(-1, 2).T
        truth = type(ground_truth)(new, ground_truth.classes[g], ground_truth.boxes[g], ground_truth.difficult[g])
        ap = voc_ap_oracle(drawn, truth, class_count, metric=metric)
        present = ap[~np.isnan(ap)]
        ap[0] = present.mean() if len(present) else np.nan
        result.append(ap)
    return np.array(result)


def set_choice_oracle(images, class_count, per_image, best, suppressed):
    """The (image, class, RoI) that are detections, image by image as test_net of the 2015 code goes: `images` are
    arrays of scores [R, K]; the best so many scores of a class are in a heap, and their lowest is the floor of the
    images to come. `suppressed(image, class, rois)` leaves those that NMS does, at the end."""
    heaps, floor = [[] for _ in range(class_count)], [-np.inf] * class_count
    candidates = {}
    for i, scores in enumerate(images):
        for k in range(1, class_count):
            mine = [r for r in range(len(scores)) if scores[r, k] > floor[k]]
            mine = sorted(mine, key=lambda r, s=scores, k=k: -s[r, k])[:best]
            for r in mine:
                heapq.heappush(heaps[k], scores[r, k])
            if len(heaps[k]) > per_image * len(images):
                while len(heaps[k]) > per_image * len(images):
                    heapq.heappop(heaps[k])
                floor[k] = heaps[k][0]
            candidates[i, k] = mine
    return {
        (i, k, r)
        for (i, k), mine in candidates.items()
        for r in suppressed(i, k, [r for r in mine if images[i][r, k] > floor[k]])
    }
