"""How fast-rcnn chose detections (lib/fast_rcnn/test.py, test_net): by a threshold for each class that holds for a set.

There is no score floor, and low scores count: average precision sees how far recall goes. The original keeps a min-heap
of the best scores of each class while it goes through the images; what stays does not depend on their order.

Shapes: K classes, T scores of a class.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from fastrcnn.detections import DetectedImage

log = logging.getLogger(__name__)


def class_limits(top: Sequence[Float32[np.ndarray, "K _"]], per_image: int) -> Float32[np.ndarray, "K"]:
    """The score that detections of each class must exceed: the lowest of its best `per_image` times as many scores as
    there are images, or -inf for a class with no more than these. `top` are those of each image, before NMS; where
    there is none, it is -inf."""
    scores, most = np.concatenate(top, axis=1), per_image * len(top)
    if scores.shape[1] <= most:
        return np.full(len(scores), -np.inf, np.float32)
    limits = np.partition(scores, -most, axis=1)[:, -most]
    limits[(scores > -np.inf).sum(axis=1) <= most] = -np.inf
    return limits


def chosen(
    images: Sequence[DetectedImage], top: Sequence[Float32[np.ndarray, "K _"]], per_image: int
) -> list[DetectedImage]:
    """The detections of each image that exceed the limits of their classes in this set. NMS may come before: what a
    box loses to scores more than it."""
    limits = class_limits(top, per_image)
    log.info("detections kept score more than %.3g to %.3g, by their class", limits[1:].min(), limits[1:].max())
    return [replace(image, found=image.found[image.found.scores > limits[image.found.classes]]) for image in images]
