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
    """AP of each class when errors of the kinds `wrong` are put right; None for a class without objects."""
    found, objects = matched(detections, ground_truth)
    kinds, about, missed = errors_oracle(detections, ground_truth, similar)
    points, mended = [], set()
    for d in found:
        kind, g = kinds[d["row"]], about[d["row"]]
        if kind not in wrong:
            points += [(d["class"], d["right"])] if d["right"] is not None else []
        elif (kind == "localisation" or "class" in kind) and g not in mended:
            mended.add(g)
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
