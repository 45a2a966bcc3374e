"""The choice of detections against a loop that goes class by class, and by hand."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_roi import select_detections_oracle

from fastrcnn.detect.nms import select_detections


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


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_is_the_class_by_class_loop_bit_for_bit(data):
    rois, classes = data.draw(st.integers(0, 8)), data.draw(st.integers(2, 4))
    count = rois * classes
    box = st.tuples(*[COORDINATE] * 4)
    boxes = np.array(data.draw(st.lists(box, min_size=count, max_size=count)), np.float32).reshape(rois, classes, 4)
    score = st.integers(0, 16).map(lambda v: v / 16)
    scores = np.array(data.draw(st.lists(score, min_size=count, max_size=count)), np.float32).reshape(rois, classes)
    nms_iou = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
    check(torch.from_numpy(scores), torch.from_numpy(boxes), 0.05, nms_iou, data.draw(st.integers(1, 20)))
