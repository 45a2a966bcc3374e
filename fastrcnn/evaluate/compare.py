"""Is one run better than another? A paired bootstrap over the images of the test set.

The images of a test set are a sample: others would give another mAP. A resample draws as many images as there are, with
replacement, the same ones for every run, and each run gets its AP on them. The middle 95 % of the resamples' values is
the interval of an AP, the middle 95 % of their differences that of a difference (the percentile method; Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). It says nothing about another seed of training. AP is
higher on resamples, as a picture drawn twice agrees with itself: by 0.013 at mAP 0.25 on 600 pictures, so that its own
interval lies high. Differences of two moved by at most 0.004 there.

Which detection is right depends on its image alone, so that matching is done once; an image drawn twice counts twice.

Shapes: B the test set and its resamples, N images, K classes with background, M detections that count, T right ones.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import csr_array

from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.evaluate.voc import match

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number measured on the test set, and where 95 % of the resamples put it; NaN for a class without objects."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def draw(image_count: int, resamples: int = RESAMPLES, seed: int = 0) -> Int64[np.ndarray, "B N"]:
    """How often each resample holds each image. Row 0 is the test set itself: each image once."""
    drawn = np.random.default_rng(seed).multinomial(image_count, np.full(image_count, 1 / image_count), resamples)
    return np.concatenate((np.ones((1, image_count), np.int64), drawn))


def resampled_ap(
    detections: DetectionRows,
    ground_truth: ObjectRows,
    class_count: int,
    weights: Int64[np.ndarray, "B N"],
    metric: str = "11point",
) -> Float64[np.ndarray, "B K"]:
    """AP of each class on each resample; column 0 is their mean.

    weights are draw's, metric is evaluate's. A class of which a resample has no object has no AP there (NaN) and is
    left out of that resample's mean, as from that of a test set. It is so for all runs alike, so that differences
    compare the same classes; to keep it in, each class would have to be drawn apart, and an image holds several.
    Memory: some 40 bytes times B times T of the largest class. Raises FastRCNNError as evaluate does.
    """
    matching = match(detections, ground_truth, class_count)
    order, right = matching.order, matching.right[matching.order]
    ap = np.full((len(weights), class_count), np.nan)
    by_image = np.ascontiguousarray(weights.T)
    for k in range(1, class_count):
        mine = detections.classes[order] == k
        wanted = ground_truth.images[(ground_truth.classes == k) & ~ground_truth.difficult]
        objects = by_image[wanted].sum(axis=0)
        average = _weighted_ap(detections.images[order[mine]], right[mine], objects, by_image, metric)
        ap[objects > 0, k] = average[objects > 0]
    present = ~np.isnan(ap)
    total = np.where(present, ap, 0).sum(axis=1)
    ap[:, 0] = np.divide(total, present.sum(axis=1), out=np.full(len(ap), np.nan), where=present.any(axis=1))
    return ap


def _weighted_ap(
    images: Int64[np.ndarray, "M"],
    right: Bool[np.ndarray, "M"],
    objects: Int64[np.ndarray, "B"],
    by_image: Int64[np.ndarray, "N B"],
    metric: str,
) -> Float64[np.ndarray, "B"]:
    """voc.evaluate's AP of one class on each resample, where a detection counts as often as its image was drawn.

    Precision only has to be known after right detections: it is highest there. A false one adds to the first right
    one behind it, which is a product with a sparse matrix [T, N].
    """
    hits = int(right.sum())
    segment = np.cumsum(right) - right  # right ones before each
    seen = segment < hits
    counts = csr_array((np.ones(seen.sum(), np.int64), (segment[seen], images[seen])), (hits, len(by_image)))
    found = np.cumsum(counts @ by_image, axis=0)
    gained = by_image[images[right]]
    true_positives = np.cumsum(gained, axis=0)
    precision = np.divide(true_positives, found, out=np.zeros(found.shape), where=found > 0)
    best_after = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    if metric == "area":
        return (gained * best_after).sum(axis=0) / np.maximum(objects, 1)
    best_after = np.concatenate((best_after, np.zeros((1, len(objects)))))  # precision 0 where recall ends
    reached = np.stack([(true_positives * 10 < k * objects).sum(axis=0) for k in range(11)])
    return np.take_along_axis(best_after, reached, axis=0).sum(axis=0) / 11


def interval(samples: Float64[np.ndarray, "B"]) -> Interval:
    """Of one column of resampled_ap, or of the difference of two. The first sample is the test set itself."""
    drawn = samples[1:][~np.isnan(samples[1:])]
    if np.isnan(samples[0]) or not len(drawn):
        return Interval(float(samples[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(samples[0]), float(low), float(high))


def verdict(difference: Interval, first: str, other: str, image_count: int) -> str:
    """The difference of two mAPs (other - first) in words."""
    if np.isnan(difference.value):
        return f"nothing to compare {other} and {first} by: there are no objects in these {image_count} pictures"
    if difference.excludes_zero:
        word = "better" if difference.value > 0 else "worse"
        low, high = sorted((abs(difference.low), abs(difference.high)))
        return f"{other} is {word} than {first} by {abs(difference.value):.3f} (95 %: {low:.3f} to {high:.3f})"
    if difference.value == difference.low == difference.high == 0:
        return f"{other} and {first} are equal: the same AP on whichever of these {image_count} pictures"
    ends = " to ".join(f"{round(end, 3) + 0.0:.3f}" for end in (difference.low, difference.high))  # no -0.000
    return f"no difference of {other} to {first} that {image_count} pictures can show (95 %: {ends})"
