"""What goes wrong, and how much mAP each kind of error costs: the errors of TIDE (Bolya et al. 2020, arXiv 2008.08115).

A detection that average precision counts as false has the first of these kinds that fits, in the order of TIDE's code
(tidecv/quantify.py), with foreground IoU 0.5 and background IoU 0.1:

    localisation    its best object of its own class overlaps by 0.1 or more, but less than 0.5
    classification  its best object of another class overlaps by 0.5 or more
    duplicate       its best object of its own class overlaps by 0.5 or more: a better detection has taken it
    background      no object overlaps by more than 0.1
    both            the rest: its best object, of another class, overlaps by less than 0.5

An object that no detection found is `missed`, unless a localisation or classification error is about it. For PASCAL
VOC's classes, classification is split as Hoiem et al. do (ECCV 2012, section 3): `similar class` and `other class`.
Nobody has said which classes of other lists are similar: there it stays one kind.

What a kind costs is the AP gained when it alone is fixed: of the localisation or classification errors about one
unfound object, the best becomes a right detection of the object's class; all others vanish; missed objects are no
longer asked for. A class of which all objects are missed keeps its AP of 0.

Three things differ from TIDE's code. Matching is that of VOC's AP, so that the costs explain the mAP that is reported.
An error of another kind about the same object is no rival when one kind is fixed, as the paper has it. Difficult
objects are seen as the others are: a false `cow` on a difficult horse is a classification error, which vanishes when it
is fixed, as what lies on a difficult object counts for nothing.

Shapes: D detections, G objects, K classes with background, E kinds of error.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fastrcnn.detections import plain_name
from fastrcnn.evaluate.rows import overlaps
from fastrcnn.evaluate.voc import Matching, average_precisions, cumulated_hits

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU
# What becomes a right detection when it is fixed comes first, up to localisation.
UNGROUPED = ("classification", "localisation", "both", "duplicate", "background", "missed")
GROUPED = ("similar class", "other class", *UNGROUPED[1:])

# The sets of Hoiem et al., section 3: "all vehicles", "all animals including person", and two more.
SIMILAR = (
    "aeroplane bicycle boat bus car motorbike train",
    "bird cat cow dog horse person sheep",
    "chair diningtable sofa",
    "aeroplane bird",
)
ALONE = "bottle pottedplant tvmonitor"


def similar_classes(classes: Sequence[str]) -> Bool[np.ndarray, "K K"] | None:
    """Which of VOC's classes are similar to which; None for a list with a name that is not VOC's."""
    groups = [group.split() for group in SIMILAR]
    names = [plain_name(name) for name in classes]
    if not set(names) <= set(" ".join((*SIMILAR, ALONE)).split()):
        return None
    member = np.array([[False] * len(groups), *([name in group for group in groups] for name in names)])
    return (member[:, None] & member[None]).any(axis=2)


@dataclass(frozen=True)
class Errors:
    """The errors of an evaluation."""

    kinds: tuple[str, ...]  # the E names: GROUPED or UNGROUPED
    kind: Int64[np.ndarray, "D"]  # of each false detection its index in `kinds`; -1 for the others
    about: Int64[np.ndarray, "D"]  # the object by which the kind was found; -1: background, or not false
    missed: Bool[np.ndarray, "G"]
    count: Int64[np.ndarray, "E K"]  # by the class of the detection, or of the missed object
    ap_cost: Float64[np.ndarray, "E K"]  # the AP that each kind costs a class; NaN for a class without objects

    @property
    def map_cost(self) -> Float64[np.ndarray, "E"]:
        """The mAP that each kind costs; NaN without objects."""
        present = self.ap_cost[:, ~np.isnan(self.ap_cost[0])]
        return present.mean(axis=1) if present.size else np.full(len(self.kinds), np.nan)


def find_errors(
    matching: Matching, class_count: int, metric: str = "11point", similar: Bool[np.ndarray, "K K"] | None = None
) -> Errors:
    """The kind of each false detection, and what each kind costs; `matching` and `metric` are those of the AP.

    `similar` says which classes are similar, as similar_classes gives it.
    """
    detections, ground_truth = matching.detections, matching.ground_truth
    kinds = UNGROUPED if similar is None else GROUPED
    kind, about = _kinds(matching, kinds, similar)
    missed = ~ground_truth.difficult
    missed[matching.object[matching.right]] = False
    missed[about[_fixable(kinds, kind)]] = False
    count = np.array([np.bincount(detections.classes[kind == e], minlength=class_count) for e in range(len(kinds))])
    count[-1] = np.bincount(ground_truth.classes[missed], minlength=class_count)
    errors = Errors(kinds, kind, about, missed, count, np.full((len(kinds), class_count), np.nan))
    before = ap_without(errors, (), matching, metric)
    for e, name in enumerate(kinds):
        errors.ap_cost[e] = ap_without(errors, (name,), matching, metric) - before
    return errors


def _kinds(
    matching: Matching, kinds: tuple[str, ...], similar: Bool[np.ndarray, "K K"] | None
) -> tuple[Int64[np.ndarray, "D"], Int64[np.ndarray, "D"]]:
    """The kind of each detection, and the object that it is about."""
    detections, ground_truth = matching.detections, matching.ground_truth
    pairs = overlaps(detections, ground_truth, BACKGROUND)
    own_class = detections.classes[pairs.detections] == ground_truth.classes[pairs.objects]
    own, own_iou = pairs.where(own_class).best(len(detections.scores))
    other, other_iou = pairs.where(~own_class).best(len(detections.scores))
    # From the last rule to the first: each overrules the ones before it.
    kind = np.full(len(own), kinds.index("background"))
    kind[other_iou > BACKGROUND] = kinds.index("both")
    about = np.where(other_iou > BACKGROUND, other, -1)
    on_own = own_iou >= FOREGROUND
    kind[on_own], about[on_own] = kinds.index("duplicate"), own[on_own]
    confused = np.flatnonzero(other_iou >= FOREGROUND)
    kind[confused], about[confused] = 0, other[confused]
    if similar is not None:
        kind[confused] = ~similar[detections.classes[confused], ground_truth.classes[other[confused]]]
    near_own = (own_iou >= BACKGROUND) & ~on_own
    kind[near_own], about[near_own] = kinds.index("localisation"), own[near_own]
    false = np.zeros(len(kind), bool)
    false[matching.order] = ~matching.right[matching.order]
    return np.where(false, kind, -1), np.where(false, about, -1)


def _fixable(kinds: tuple[str, ...], kind: Int64[np.ndarray, "D"]) -> Bool[np.ndarray, "D"]:
    """The errors of classification and localisation: fixed, they would find the object that they are about."""
    return (kind >= 0) & (kind <= kinds.index("localisation"))


def ap_without(errors: Errors, kinds: Collection[str], matching: Matching, metric: str) -> Float64[np.ndarray, "K"]:
    """AP of each class when the errors of these kinds are fixed; NaN for a class without objects."""
    detections, ground_truth = matching.detections, matching.ground_truth
    wrong = np.isin(errors.kind, [errors.kinds.index(name) for name in kinds])
    order = matching.order
    asked_for = ~ground_truth.difficult
    unfound = asked_for.copy()
    unfound[matching.object[matching.right]] = False
    fixed = order[(wrong & _fixable(errors.kinds, errors.kind))[order]]
    fixed = fixed[unfound[errors.about[fixed]]]
    _, first = np.unique(errors.about[fixed], return_index=True)  # the best for each object
    fixed = fixed[first]
    classes, right = detections.classes.copy(), matching.right.copy()
    classes[fixed], right[fixed] = ground_truth.classes[errors.about[fixed]], True

    class_count = errors.count.shape[1]
    present = np.bincount(ground_truth.classes[asked_for], minlength=class_count) > 0
    if "missed" in kinds:
        asked_for &= ~errors.missed
    objects = np.bincount(ground_truth.classes[asked_for], minlength=class_count)
    rows = order[~wrong[order] | right[order]]
    ap = average_precisions(cumulated_hits(classes[rows], right[rows], class_count), objects, metric)
    return np.where(present, np.nan_to_num(ap), np.nan)
