"""The same detections scored by pycocotools: AP at IoU 0.5 to 0.95, as in section 5.6 of the paper.

COCO has no difficult objects; they become `iscrowd`, which is likewise neither right nor wrong. Two things differ from
VOC: a detection may match its second-best object when the best is taken, and it counts as lying on a crowd by the share
of its own area that the crowd covers, not by IoU. Half-open boxes are COCO's (x, y, width, height) without any +1.
"""

import contextlib
import io
import logging

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastrcnn.evaluate.rows import DetectionRows, ObjectRows, chosen_rows

log = logging.getLogger(__name__)

# The first six of COCOeval.stats for boxes, by their names in COCO's papers; sizes as in fastrcnn.proposals.recall.
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def evaluate_coco(
    detections: DetectionRows, ground_truth: ObjectRows, class_count: int, max_detections: int = 100
) -> dict[str, float]:
    """AP, AP50, AP75, AP_small, AP_medium and AP_large, means over the classes that have objects; NaN where none has.

    class_count is K. The best `max_detections` of an image and class are looked at; COCO's number is 100. What
    pycocotools prints is logged at level DEBUG.
    """
    precision, recall = [], []
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for k in range(1, class_count):  # one at a time: all at once take 20 GB for 5 million detections
            scoring = _scored(k, *_of_class(k, detections, ground_truth), max_detections)
            precision.append(scoring.eval["precision"])  # [T, R, K, A, M]
            recall.append(scoring.eval["recall"])  # [T, K, A, M]
        scoring.eval |= {"precision": np.concatenate(precision, axis=2), "recall": np.concatenate(recall, axis=1)}
        scoring.summarize()
    log.debug("%s", printed.getvalue())
    shares = scoring.eval["precision"][..., 0, -1]  # of objects of all sizes; AP of summarize knows 100 only
    values = [shares[shares >= 0].mean() if (shares >= 0).any() else -1, *scoring.stats[1 : len(NAMES)]]
    # pycocotools says -1 for a mean over nothing.
    return {name: float(value) if value >= 0 else float("nan") for name, value in zip(NAMES, values, strict=True)}


def _of_class(k: int, detections: DetectionRows, ground_truth: ObjectRows) -> tuple[DetectionRows, ObjectRows]:
    return chosen_rows(detections, detections.classes == k), chosen_rows(ground_truth, ground_truth.classes == k)


def _scored(k: int, detections: DetectionRows, ground_truth: ObjectRows, max_detections: int) -> COCOeval:
    """What pycocotools has accumulated for class k, of which all rows are."""
    images = np.union1d(detections.images, ground_truth.images).tolist()
    objects = _annotations(ground_truth, iscrowd=ground_truth.difficult.astype(int))
    found = _annotations(detections, iscrowd=np.zeros(len(detections.scores), int), score=detections.scores)
    scoring = COCOeval(_coco(k, images, objects), _coco(k, images, found), "bbox")
    scoring.params.maxDets = [1, min(10, max_detections), max_detections]  # summarize wants three
    scoring.params.catIds = [k]
    scoring.evaluate()
    scoring.accumulate()
    return scoring


def _annotations(rows: DetectionRows | ObjectRows, **columns: np.ndarray) -> list[dict]:
    """The rows as COCO's dictionaries. Their ids start at 1: pycocotools takes a match with id 0 for none."""
    sizes = rows.boxes[:, 2:].astype(np.float64) - rows.boxes[:, :2]
    columns = {
        "id": np.arange(1, len(sizes) + 1),
        "image_id": rows.images,
        "category_id": rows.classes,
        "bbox": np.concatenate((rows.boxes[:, :2], sizes), axis=1),
        "area": sizes.prod(axis=1),
        **columns,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _coco(k: int, images: list[int], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": k}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
