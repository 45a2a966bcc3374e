"""Slow twins of what explains an evaluation: one detection, one object at a time."""

from oracles_evaluate import _area, _eleven_points


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def listed(detections, ground_truth):
    """Detections by falling score as dictionaries, and objects."""
    found = [
        {"row": d, "image": int(i), "class": int(k), "score": float(s), "box": box}
        for d, (i, k, s, box) in enumerate(zip(*columns(detections), strict=True))
    ]
    objects = [
        {"row": g, "image": int(i), "class": int(k), "box": box, "difficult": bool(hard)}
        for g, (i, k, box, hard) in enumerate(zip(*columns(ground_truth), strict=True))
    ]
    return sorted(found, key=lambda d: (-d["score"], d["image"], d["row"])), objects


def columns(rows):
    return [column.tolist() for column in vars(rows).values()]


def best_of(detection, objects, wanted):
    """The object of the image that a detection overlaps most, among the wanted, and their IoU."""
    best, most = None, 0.0
    for g in objects:
        if g["image"] == detection["image"] and wanted(g) and iou(detection["box"], g["box"]) > most:
            best, most = g, iou(detection["box"], g["box"])
    return best, most


def confusion_oracle(detections, ground_truth, thresholds):
    found, objects = listed(detections, ground_truth)
    matrix = [[0] * len(thresholds) for _ in thresholds]
    taken = set()
    for d in found:
        if d["score"] < thresholds[d["class"]]:
            continue
        best, most = best_of(d, objects, lambda g: g["row"] not in taken)
        if most < 0.5:
            matrix[0][d["class"]] += 1
        elif not best["difficult"]:
            taken.add(best["row"])
            matrix[best["class"]][d["class"]] += 1
    for g in objects:
        if g["row"] not in taken and not g["difficult"]:
            matrix[g["class"]][0] += 1
    return matrix


def matched(detections, ground_truth):
    """Detections by falling score with `right`: True, False, or None on a difficult object; objects with `found`."""
    found, objects = listed(detections, ground_truth)
    for g in objects:
        g["found"] = False
    for d in found:
        best, most = best_of(d, objects, lambda g, d=d: g["class"] == d["class"])
        d["right"] = False
        if most >= 0.5 and best["difficult"]:
            d["right"] = None
        elif most >= 0.5 and not best["found"]:
            d["right"] = best["found"] = True
    return found, objects


def f1_oracle(detections, ground_truth, classes, threshold):
    """Precision, recall and F1 of what scores at least `threshold`, over some classes; None without objects."""
    found, objects = matched(detections, ground_truth)
    asked = sum(g["class"] in classes and not g["difficult"] for g in objects)
    shown = [d for d in found if d["class"] in classes and d["right"] is not None and d["score"] >= threshold]
    right = sum(d["right"] for d in shown)
    if not asked:
        return None
    return right / max(len(shown), 1), right / asked, 2 * right / (len(shown) + asked)


def errors_oracle(detections, ground_truth, similar=None):
    """The kind of each detection (None: no error), by its row, the object it is about, and the missed objects."""
    found, objects = matched(detections, ground_truth)
    kinds, about = [None] * len(found), [None] * len(found)
    missed = {g["row"] for g in objects if not g["found"] and not g["difficult"]}
    for d in found:
        if d["right"] is not False:
            continue
        own, own_iou = best_of(d, objects, lambda g, d=d: g["class"] == d["class"])
        other, other_iou = best_of(d, objects, lambda g, d=d: g["class"] != d["class"])
        if 0.1 <= own_iou < 0.5:
            kind, object_ = "localisation", own
        elif other_iou >= 0.5:
            kind, object_ = "classification", other
            if similar is not None:
                kind = "similar class" if similar[d["class"]][other["class"]] else "other class"
        elif own_iou >= 0.5:
            kind, object_ = "duplicate", own
        elif other_iou <= 0.1:
            kind, object_ = "background", None
        else:
            kind, object_ = "both", other
        kinds[d["row"]], about[d["row"]] = kind, object_ and object_["row"]
        if kind == "localisation" or "class" in kind:
            missed.discard(object_["row"])
    return kinds, about, missed


def repaired_ap_oracle(detections, ground_truth, wrong, class_count, metric="11point", similar=None):
    """AP of each class when errors of the kinds `wrong` are fixed; None for a class without objects."""
    found, objects = matched(detections, ground_truth)
    kinds, about, missed = errors_oracle(detections, ground_truth, similar)
    points, fixed = [], set()
    for d in found:
        kind, g = kinds[d["row"]], about[d["row"]]
        if kind not in wrong:
            points += [(d["class"], d["right"])] if d["right"] is not None else []
        elif (kind == "localisation" or "class" in kind) and g not in fixed:
            fixed.add(g)
            points += [] if objects[g]["found"] or objects[g]["difficult"] else [(objects[g]["class"], True)]
    result = []
    for k in range(class_count):
        asked = [g["row"] for g in objects if g["class"] == k and not g["difficult"]]
        left = [g for g in asked if "missed" not in wrong or g not in missed]
        tp, fp = [0], [0]
        for _, right in [point for point in points if point[0] == k]:
            tp.append(tp[-1] + right)
            fp.append(fp[-1] + (not right))
        rule = _area if metric == "area" else _eleven_points
        result.append((rule(tp[1:], fp[1:], len(left)) if left else 0.0) if asked else None)
    return result


def reliability_oracle(detections, ground_truth, bins=10):
    """(detections, mean score, share right) of each bin; None in an empty one. And the calibration error."""
    found, _ = matched(detections, ground_truth)
    found = [d for d in found if d["right"] is not None]
    rows, error = [], 0.0
    for b in range(bins):
        mine = [d for d in found if b == min(int(d["score"] * bins), bins - 1)]
        if not mine:
            rows.append((0, None, None))
            continue
        score, right = sum(d["score"] for d in mine) / len(mine), sum(d["right"] for d in mine) / len(mine)
        error += abs(score - right) * len(mine) / len(found)
        rows.append((len(mine), score, right))
    return rows, error if found else None


def image_oracle(detections, ground_truth, thresholds, image):
    """Right and false detections and missed objects of one image, at thresholds by class."""
    found, objects = matched(detections, ground_truth)
    shown = [d for d in found if d["image"] == image and d["score"] >= thresholds[d["class"]]]
    right = sum(d["right"] is True for d in shown)
    asked = sum(g["image"] == image and not g["difficult"] for g in objects)
    return right, sum(d["right"] is False for d in shown), asked - right


def size_oracle(detections, ground_truth, thresholds, low, high):
    """Objects, found, found at the thresholds, detections at the thresholds, right ones; of areas in [low, high)."""

    def area(thing):
        x1, y1, x2, y2 = thing["box"]
        return (x2 - x1) * (y2 - y1)

    found, objects = matched(detections, ground_truth)
    result = [0] * 5
    for g in objects:
        if low <= area(g) < high and not g["difficult"]:
            mine = [
                d for d in found if d["right"] and best_of(d, objects, lambda o, d=d: o["class"] == d["class"])[0] is g
            ]
            result[0] += 1
            result[1] += len(mine)
            result[2] += sum(d["score"] >= thresholds[d["class"]] for d in mine)
    for d in found:
        if low <= area(d) < high and d["right"] is not None and d["score"] >= thresholds[d["class"]]:
            result[3] += 1
            result[4] += d["right"]
    return result
