import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import iou as slow_iou

from fastrcnn import boxes as box_ops


@st.composite
def box_lists(draw, least=0):
    """[B, 4] boxes of whole pixels with positive sides."""
    corner, side = st.integers(0, 500), st.integers(1, 400)
    rows = draw(st.lists(st.tuples(corner, corner, side, side), min_size=least, max_size=8))
    return torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=torch.float32).reshape(-1, 4)


@given(box_lists(), box_lists())
def test_iou_is_that_of_the_loop(a, b):
    found = box_ops.iou(a.double(), b.double())
    assert found.shape == (len(a), len(b))
    for i in range(len(a)):
        for j in range(len(b)):
            assert found[i, j].item() == pytest.approx(slow_iou(a[i].tolist(), b[j].tolist()), abs=1e-12)


def test_iou_of_a_half_is_exactly_a_half():
    assert box_ops.iou(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 5]])).item() == 0.5


def test_half_open_iou_is_the_original_plus_one_arithmetic():
    """VOC boxes (1-based, inclusive) 11 20 40 60 and 21 30 50 70: 20 x 31 shared pixels of 30 x 41 each."""
    a, b = torch.tensor([[10.0, 19, 40, 60]]), torch.tensor([[20.0, 29, 50, 70]])
    assert box_ops.iou(a, b).item() == pytest.approx(20 * 31 / (2 * 30 * 41 - 20 * 31))


def test_empty_boxes_overlap_nothing():
    empty = torch.tensor([[5.0, 5, 5, 9]])
    assert box_ops.iou(empty, empty).item() == 0
    assert box_ops.iou(empty, torch.tensor([[0.0, 0, 10, 10]])).item() == 0


@given(box_lists(least=1), st.randoms(use_true_random=False), st.booleans())
def test_decode_inverts_encode(proposals, random, last_pixel):
    """To the last pixel, for boxes that are no thinner than two."""
    proposals[:, 2:] += last_pixel
    targets = proposals[torch.tensor([random.randrange(len(proposals)) for _ in proposals])]
    deltas = box_ops.encode(proposals.double(), targets.double(), last_pixel)
    decoded = box_ops.decode(proposals.double(), deltas, last_pixel)
    assert torch.allclose(decoded[:, 0], targets.double(), atol=1e-9)


def test_sizes_to_the_last_pixel_by_hand():
    """fast-rcnn: columns 0 to 9 and rows 0 to 20 are 9 x 20; a target of columns 5 to 23 is 18 wide, its centre 9.5
    right. One pixel alone counts as one."""
    deltas = box_ops.encode(torch.tensor([[0.0, 0, 10, 21]]), torch.tensor([[5.0, 0, 24, 21]]), last_pixel=True)
    assert torch.allclose(deltas, torch.tensor([[9.5 / 9, 0, 0.6931472, 0]]))
    assert box_ops.to_last_pixel(torch.tensor([[3.0, 4, 4, 9]])).tolist() == [[3, 4, 4, 8]]


def test_encode_by_hand():
    """From a 10 x 20 box to one twice as wide, its centre 5 right and 2 up."""
    deltas = box_ops.encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[0.0, -2, 20, 18]]))
    assert torch.allclose(deltas, torch.tensor([[0.5, -0.1, 0.6931472, 0.0]]))


def test_decode_gives_each_class_its_box():
    proposals = torch.tensor([[10.0, 10, 30, 50]])
    deltas = torch.tensor([[0.0, 0, 0, 0, 0.5, 0, 0, 0, 0, -0.25, 0, 0]])
    expected = torch.tensor([[[10.0, 10, 30, 50], [20, 10, 40, 50], [10, 0, 30, 40]]])
    assert torch.equal(box_ops.decode(proposals, deltas), expected)


def test_a_huge_delta_becomes_the_whole_image():
    boxes = box_ops.decode(torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[0.0, 0, 500, 500]]))
    assert box_ops.clip(boxes, 100, 80).tolist() == [[[0, 0, 100, 80]]]


@given(box_lists(), st.integers(900, 1000))
def test_flipping_twice_changes_nothing(boxes, width):
    flipped = box_ops.flip(boxes, width)
    assert torch.equal(box_ops.flip(flipped, width), boxes)
    assert bool(box_ops.nonempty(flipped).all())
    assert torch.equal(box_ops.area(flipped), box_ops.area(boxes))


def test_flip_by_hand():
    """In an image 10 wide, the box of columns 1 and 2 becomes that of columns 7 and 8."""
    assert box_ops.flip(torch.tensor([[1.0, 3, 3, 5]]), 10).tolist() == [[7, 3, 9, 5]]


def test_nonempty_is_false_for_nan():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [2, 0, 1, 1], [0, 0, float("nan"), 1]])
    assert box_ops.nonempty(boxes).tolist() == [True, False, False, False]


def test_statistics_normalise_by_class():
    statistics = box_ops.TargetStatistics(
        torch.tensor([[0.0] * 4, [1, 0, 0, 0]]), torch.tensor([[1.0] * 4, [2, 1, 1, 1]])
    )
    targets, labels = torch.tensor([[5.0, 1, 1, 1], [5, 1, 1, 1]]), torch.tensor([0, 1])
    assert statistics.normalise(targets, labels).tolist() == [[5, 1, 1, 1], [2, 1, 1, 1]]
