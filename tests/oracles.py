"""Slow twins of the fast routines: loops only, written from the definition."""

import math


def iou(a, b):
    """Intersection over union of two boxes (x1, y1, x2, y2), half open."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def dense_boxes(width, height):
    """The set of dense boxes: nine scales, seven aspect ratios, steps of a quarter box."""
    found = set()
    for i in range(9):
        for j in range(-3, 4):
            side, root = math.sqrt(width * height) * 2 ** (-i / 2), 2 ** (j / 4)
            w = min(max(round(round(side / root, 6)), 1), width)
            h = min(max(round(round(side * root, 6)), 1), height)
            for x in steps(width - w, int((width - w) / (w / 4)) + 1):
                for y in steps(height - h, int((height - h) / (h / 4)) + 1):
                    found.add((x, y, x + w, y + h))
    return found


def steps(room, n):
    """n whole numbers from 0 to room, evenly apart; one is 0."""
    return [round(k * (room / (n - 1))) for k in range(n)] if n > 1 else [0]


def multi_task_loss(scores, deltas, labels, targets, weight):
    """(softmax cross-entropy / R, weight * smooth L1 of the true class / R) of nested lists."""
    loss_cls = loss_bbox = 0.0
    for row, delta, label, target in zip(scores, deltas, labels, targets, strict=True):
        top = max(row)
        loss_cls += math.log(sum(math.exp(s - top) for s in row)) + top - row[label]
        if label > 0:
            for k in range(4):
                d = abs(delta[4 * label + k] - target[k])
                loss_bbox += 0.5 * d * d if d < 1 else d - 0.5
    return loss_cls / len(labels), weight * loss_bbox / len(labels)


def target_statistics(images, num_classes, foreground_iou, flip):
    """Mean and std per class: images are (width, rois, objects, classes); flipped images are visited too."""
    found = [[[] for _ in range(4)] for _ in range(num_classes)]
    for width, rois, objects, classes in images:
        for mirrored in (False, True) if flip else (False,):

            def turn(b, mirrored=mirrored, width=width):
                return (width - b[2], b[1], width - b[0], b[3]) if mirrored else b

            for roi in map(turn, [*objects, *rois]):
                overlaps = [iou(roi, turn(o)) for o in objects]
                if not overlaps or max(overlaps) < foreground_iou:
                    continue
                nearest = overlaps.index(max(overlaps))
                goal = turn(objects[nearest])
                w, h, gw, gh = roi[2] - roi[0], roi[3] - roi[1], goal[2] - goal[0], goal[3] - goal[1]
                dx = (goal[0] + gw / 2 - roi[0] - w / 2) / w
                dy = (goal[1] + gh / 2 - roi[1] - h / 2) / h
                for k, value in enumerate((dx, dy, math.log(gw / w), math.log(gh / h))):
                    found[classes[nearest]][k].append(value)
    mean = [[sum(v) / len(v) if v else 0.0 for v in row] for row in found]
    std = [
        [math.sqrt(sum((x - m) ** 2 for x in v) / len(v)) if v else 1.0 for v, m in zip(row, means, strict=True)]
        for row, means in zip(found, mean, strict=True)
    ]
    return mean, std


def roi_losses(scores, deltas, labels, targets, weight):
    """Each RoI's classification loss plus its box loss."""
    one_by_one = zip(scores, deltas, labels, targets, strict=True)
    return [sum(multi_task_loss(*([part] for part in roi), weight)) for roi in one_by_one]


def hardest(boxes, labels, losses, count):
    """The `count` RoIs of highest loss, none beside a harder one of its label that overlaps it by more than 0.7."""
    left, kept = sorted(range(len(boxes)), key=lambda i: -losses[i]), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if labels[i] != labels[best] or iou(boxes[i], boxes[best]) <= 0.7]
    return kept[:count]


def svm_mining(images, classes, retrain, fit, sizes):
    """SVMs by hard negative mining, class by class and RoI by RoI, as tools/train_svms.py of fast-rcnn.

    `fit` trains one; `sizes` takes the numbers of negatives before and after each training. Returns (w, b) and the
    negatives that are left, by class.
    """
    import numpy as np

    norms = [math.sqrt(sum(float(v) ** 2 for v in row)) for _, x, _, _ in images for row in x]
    scale = 20 / (sum(norms) / len(norms))
    width = images[0][1].shape[1]
    svms = {k: ([0.0] * width, 0.0) for k in range(1, classes + 1)}
    positives, negatives, new = ({k: [] for k in svms} for _ in range(3))
    for _, x, _, gt_classes in images:
        for row, k in zip(x, gt_classes, strict=False):
            positives[k].append(row)

    def train(k):
        w, b, scores = fit(np.array(positives[k]), np.array(negatives[k]), scale, 3)
        svms[k], new[k] = (w, b), []
        left = [row for row, score in zip(negatives[k], scores, strict=True) if score >= -1.1]
        sizes.extend([len(negatives[k]), len(left)])
        negatives[k] = left or negatives[k]

    for rois, x, objects, gt_classes in images:
        for k in svms:
            w, b = svms[k]
            for roi, row in zip(rois, x, strict=True):
                overlap = max([iou(roi, o) for o, c in zip(objects, gt_classes, strict=True) if c == k], default=0)
                if overlap < 0.3 and sum(a * c for a, c in zip(w, row.tolist(), strict=True)) + b > -1.0001:
                    negatives[k].append(row)
                    new[k].append(row)
            if len(new[k]) > retrain:
                train(k)
    for k in svms:
        train(k)
    return svms, negatives
