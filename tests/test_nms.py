"""The choice of detections against a loop that goes class by class, and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_roi import candidates_oracle, select_detections_oracle, soft_nms_oracle, vote_oracle

from fastrcnn.detect.nms import best_of_each_class, select_detections


def check(scores, boxes, score_threshold=0.05, nms_iou=0.3, max_detections=100) -> int:
    """Compare with the oracle bit for bit; the number of detections."""
    chosen = select_detections(scores, boxes, score_threshold, nms_iou, max_detections)
    pairs = select_detections_oracle(scores.numpy(), boxes.numpy(), score_threshold, nms_iou, max_detections)
    rois, classes = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    for got, expected in zip(chosen, (boxes[rois, classes], classes, scores[rois, classes]), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    return len(pairs)


def one_class(boxes, scores) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [R, 4] and scores [R] of class 1 of 2."""
    boxes, scores = torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores)
    return torch.stack((1 - scores, scores), dim=1), torch.stack((boxes, boxes), dim=1)


def test_hand_worked():
    # IoU with the first box: 0.25 (stays), 0.6 (goes); the last overlaps only the one that went, so it stays.
    boxes = [[0, 0, 10, 10], [0, 6, 10, 16], [0, 0, 10, 6], [0, 0, 1, 1]]
    scores, boxes = one_class(boxes, [0.9, 0.8, 0.7, 0.6])
    chosen, classes, chosen_scores = select_detections(scores, boxes, 0.05, 0.3, 100)
    assert chosen.tolist() == [[0, 0, 10, 10], [0, 6, 10, 16], [0, 0, 1, 1]]
    assert classes.tolist() == [1, 1, 1]
    assert torch.equal(chosen_scores, torch.tensor([0.9, 0.8, 0.6]))


def test_an_iou_equal_to_the_threshold_is_suppressed():
    scores, boxes = one_class([[0, 0, 10, 10], [0, 0, 10, 3]], [0.9, 0.8])  # IoU 30 / 100
    assert len(select_detections(scores, boxes, 0.05, 0.3, 100)[0]) == 1
    scores, boxes = one_class([[0, 0, 100, 10], [0, 0, 299, 1]], [0.9, 0.8])  # IoU 100 / 1199
    assert len(select_detections(scores, boxes, 0.05, 0.3, 100)[0]) == 2


def test_at_a_threshold_of_0_boxes_apart_both_stay():
    scores, boxes = one_class([[0, 0, 10, 10], [10, 0, 20, 10], [9, 0, 12, 10]], [0.9, 0.8, 0.7])
    assert select_detections(scores, boxes, 0.05, 0.0, 100)[2].tolist() == scores[:2, 1].tolist()


def test_a_score_equal_to_the_threshold_is_dropped():
    scores, boxes = one_class([[0, 0, 10, 10], [20, 20, 30, 30]], [0.5, 0.75])
    assert select_detections(scores, boxes, 0.5, 0.3, 100)[0].tolist() == [[20, 20, 30, 30]]


def test_background_empty_boxes_and_nan_are_no_detections():
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(4, 3, 4).clone()
    boxes[0, 1] = torch.tensor([5.0, 0, 5, 10])
    boxes[1, 1] = float("nan")
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.9, 0.05, 0.05], [0.0, float("nan"), 0.1]])
    chosen, classes, chosen_scores = select_detections(scores, boxes, 0.05, 0.3, 100)
    assert chosen.tolist() == [[0, 0, 10, 10]]
    assert classes.tolist() == [2]
    assert torch.equal(chosen_scores, scores[3, 2:])


def test_classes_do_not_suppress_each_other_and_the_best_stay():
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(1, 4, 4).clone()
    scores = torch.tensor([[0.1, 0.2, 0.4, 0.3]])
    assert select_detections(scores, boxes, 0.05, 0.3, 100)[1].tolist() == [2, 3, 1]
    assert select_detections(scores, boxes, 0.05, 0.3, 2)[1].tolist() == [2, 3]


def test_equal_scores_rank_by_roi_then_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])[:, None].repeat(1, 3, 1)
    scores = torch.full((3, 3), 0.25)
    chosen, classes, _ = select_detections(scores, boxes, 0.05, 0.3, 3)
    assert chosen.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
    assert classes.tolist() == [1, 2, 1]


def test_nothing_found():
    for rois in (0, 3):
        chosen, classes, scores = select_detections(torch.zeros(rois, 5), torch.ones(rois, 5, 4), 0.05, 0.3, 100)
        assert chosen.shape == (0, 4)
        assert classes.shape == scores.shape == (0,)


def test_more_candidates_than_fit_one_call_with_offsets():
    # Above 1,000 boxes torchvision takes the classes one by one; ties in score are frequent here.
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 60, (300, 6, 2))
    boxes = np.concatenate((corners, corners + generator.integers(1, 40, (300, 6, 2))), axis=2)
    scores = torch.tensor(generator.integers(1, 50, (300, 6)) / 64, dtype=torch.float32)
    boxes = torch.tensor(boxes, dtype=torch.float32)
    assert ((scores > 0.05)[:, 1:]).sum() > 1000
    assert check(scores, boxes, max_detections=1000) > 100
    assert check(scores, boxes, max_detections=40) == 40
    assert check(scores[:150], boxes[:150], max_detections=1000) > 50


# Coordinates as detections have them: any float32 but those so near to 0 (2^-15 pixels) that an offset rounds them.
COORDINATE = st.one_of(st.integers(0, 20).map(float), st.just(0.0), st.floats(2**-15, 1000, width=32))


SCORE = st.integers(0, 16).map(lambda v: v / 16)


@st.composite
def rows(draw, coordinate=COORDINATE) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and boxes of up to 8 RoIs and 2 to 4 classes."""
    rois, classes = draw(st.integers(0, 8)), draw(st.integers(2, 4))
    count = rois * classes
    boxes = draw(st.lists(st.tuples(*[coordinate] * 4), min_size=count, max_size=count))
    scores = draw(st.lists(SCORE, min_size=count, max_size=count))
    shape = (rois, classes)
    return torch.tensor(scores).reshape(shape), torch.tensor(boxes, dtype=torch.float32).reshape(*shape, 4)


@given(rows(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]), st.integers(1, 20))
@settings(deadline=None, max_examples=150)
def test_is_the_class_by_class_loop_bit_for_bit(rows, nms_iou, count):
    check(*rows, 0.05, nms_iou, count)


@given(rows(), st.sampled_from([0.1, 0.3]), st.integers(1, 5))
def test_the_best_of_each_class_are_those_of_its_loop(rows, nms_iou, count):
    scores, boxes = rows
    kept, top = best_of_each_class(scores, boxes, nms_iou, count)
    candidates = candidates_oracle(scores, boxes, -1)
    best = {k: sorted((r for r, c in candidates if c == k), key=lambda r: (-scores[r, k], r))[:count] for k in range(4)}
    low = torch.full_like(scores, -2.0)
    for k, mine in best.items():
        for r in mine:
            low[r, k] = scores[r, k]
    pairs = select_detections_oracle(low.numpy(), boxes.numpy(), -1, nms_iou, 100)
    assert kept[0].tolist() == [boxes[pair].tolist() for pair in pairs]
    assert list(zip(kept[1].tolist(), kept[2].tolist(), strict=True)) == [(k, scores[r, k]) for r, k in pairs]
    for k in range(scores.shape[1]):
        assert [s for s in top[k].tolist() if s > -1] == [scores[r, k] for r in best[k]] and k < len(top)


def test_soft_nms_by_hand():
    # IoU with the first box: 0.25 and 0.6; of the second with the third 2 / 14.
    scores, boxes = one_class([[0, 0, 10, 10], [0, 6, 10, 16], [0, 0, 10, 6]], [0.9, 0.8, 0.7])
    chosen, _, found = select_detections(scores, boxes, 0.001, 0.3, 100, "linear")
    assert chosen.tolist() == [[0, 0, 10, 10], [0, 6, 10, 16], [0, 0, 10, 6]]
    assert found.tolist() == pytest.approx([0.9, 0.8, 0.7 * 0.4])  # 0.25 < 0.3 lowers nothing
    assert len(select_detections(scores, boxes, 0.28, 0.3, 100, "linear")[0]) == 2  # fell to the threshold
    assert len(select_detections(scores, boxes, 0.001, 0.3, 1, "linear")[0]) == 1
    scores, boxes = one_class([[0, 0, 10, 10], [0, 6, 10, 16]], [0.9, 0.8])
    found = select_detections(scores, boxes, 0.001, 0.3, 100, "gaussian")[2]
    assert found.tolist() == pytest.approx([0.9, 0.8 * math.exp(-(0.25**2) / 0.5)])


@given(rows(), st.sampled_from([0.1, 0.3, 0.5]), st.integers(1, 20), st.sampled_from([0.001, 0.05, 0.3]))
@settings(deadline=None, max_examples=150)
def test_soft_nms_is_its_loop(rows, nms_iou, count, threshold):
    """Linear in order; Gaussian all of them, as another exp may rank what is nearly equal otherwise."""
    scores, boxes = rows
    expected = soft_nms_oracle(scores.numpy(), boxes.numpy(), threshold, nms_iou, count, "linear")
    got = select_detections(scores, boxes, threshold, nms_iou, count, "linear")
    assert got[0].tolist() == [boxes[r, k].tolist() for r, k, _ in expected]
    assert got[1].tolist() == [k for _, k, _ in expected]
    assert got[2].tolist() == [np.float32(score) for *_, score in expected]
    expected = soft_nms_oracle(scores.numpy(), boxes.numpy(), threshold, nms_iou, 100, "gaussian")
    got = select_detections(scores, boxes, threshold, nms_iou, 100, "gaussian")
    assert sorted(got[2].tolist()) == pytest.approx(sorted(score for *_, score in expected), rel=1e-6)
    assert sorted(got[0].tolist()) == sorted(boxes[r, k].tolist() for r, k, _ in expected)


@given(st.lists(SCORE, min_size=1, max_size=9), st.sampled_from(["linear", "gaussian"]), st.integers(1, 9))
def test_soft_nms_of_boxes_apart_is_hard_nms(scores, kind, count):
    scores, boxes = one_class([[10 * i, 0, 10 * i + 10, 7] for i in range(len(scores))], scores)
    hard = select_detections(scores, boxes, 0.05, 0.3, count)
    soft = select_detections(scores, boxes, 0.05, 0.3, count, kind)
    assert all(torch.equal(a, b) for a, b in zip(hard, soft, strict=True))


def test_voting_by_hand():
    # IoU with the winner: 0.6 (votes), 0.25 (an object of its own); another class and a low score have no vote.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 6], [0, 6, 10, 16], [0, 0, 10, 9], [0, 0, 10, 8]]
    scores, boxes = one_class(boxes, [0.75, 0.25, 0.5, 0.0, 0.03125])
    scores, boxes = torch.cat((scores, scores[:, :1]), dim=1), torch.cat((boxes, boxes[:, :1]), dim=1)
    scores[:, 2] = torch.tensor([0, 0, 0, 0.125, 0])
    chosen, classes, found = select_detections(scores, boxes, 0.05, 0.3, 100, box_voting=0.5)
    assert chosen.tolist() == [[0, 0, 10, 9], [0, 6, 10, 16], [0, 0, 10, 9]]
    assert classes.tolist() == [1, 1, 2] and found.tolist() == [0.75, 0.5, 0.125]


@given(rows(st.integers(0, 20).map(float)), st.sampled_from([0.3, 0.5, 1.0]), st.sampled_from([None, "linear"]))
@settings(deadline=None, max_examples=150)
def test_voting_is_its_loop_and_moves_boxes_only(rows, least, soft):
    scores, boxes = rows
    plain = select_detections(scores, boxes, 0.05, 0.4, 10, soft)
    voted = select_detections(scores, boxes, 0.05, 0.4, 10, soft, least)
    assert torch.equal(voted[1], plain[1]) and torch.equal(voted[2], plain[2])
    for box, k, got in zip(plain[0], plain[1].tolist(), voted[0], strict=True):
        roi = (boxes[:, k] == box).all(dim=1).nonzero()[0].item()
        assert got.tolist() == pytest.approx(vote_oracle(scores, boxes, 0.05, least, roi, k), rel=1e-6)
    if least == 1:
        assert torch.equal(voted[0], plain[0])


@given(st.tuples(*[COORDINATE] * 4), st.floats(0.125, 1, width=32), st.integers(1, 3))
def test_voting_of_one_box_changes_nothing(box, score, copies):
    scores, boxes = one_class([box] * copies, [score] * copies)
    plain, voted = (select_detections(scores, boxes, 0.05, 0.3, 100, box_voting=iou) for iou in (None, 0.5))
    assert torch.equal(plain[0], voted[0])
