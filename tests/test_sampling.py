from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import iou as slow_iou
from oracles import target_statistics as slow_statistics

from fastrcnn import boxes as box_ops
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ImageConfig
from fastrcnn.config_train import SamplingConfig
from fastrcnn.data.sampling import MINING_DROPOUT, TargetSums, dropout_seed, fixed_statistics, plan_batch, sample_rois


def random_boxes(rng, count, side=200):
    corner = rng.uniform(0, side - 40, (count, 2)).round()
    return torch.from_numpy(np.hstack((corner, corner + rng.uniform(8, 40, (count, 2)).round()))).float()


def scene(seed, objects=3, proposals=300):
    rng = np.random.default_rng(seed)
    gt = random_boxes(rng, objects)
    near = gt.repeat(20, 1) + torch.from_numpy(rng.uniform(-6, 6, (20 * objects, 4)).round()).float()
    boxes = torch.cat((random_boxes(rng, proposals), near[box_ops.nonempty(near)]))
    return boxes, gt, torch.from_numpy(rng.integers(1, 5, objects))


@pytest.mark.parametrize("seed", range(5))
def test_sampled_rois_are_what_the_paper_says(seed):
    """Every drawn RoI is looked at: its kind by the loop's IoU, its label, its target, and that none stands twice."""
    proposals, gt, classes = scene(seed)
    config = SamplingConfig(rois_per_batch=64)
    drawn = sample_rois(proposals, gt, classes, config, np.random.default_rng(seed))
    pool = torch.cat((gt, proposals)).tolist()
    assert len(drawn.boxes) <= 32
    for box, label, target in zip(drawn.boxes.tolist(), drawn.labels.tolist(), drawn.bbox_targets, strict=True):
        overlaps = [slow_iou(box, g) for g in gt.tolist()]
        nearest = overlaps.index(max(overlaps))
        assert box in pool
        if label:
            assert max(overlaps) >= 0.5
            assert label == classes[nearest]
            moved = box_ops.decode(torch.tensor([box]), target[None])[0, 0]
            assert torch.allclose(moved, gt[nearest], atol=1e-3)
        else:
            assert 0.1 <= max(overlaps) < 0.5
            assert target.tolist() == [0, 0, 0, 0]
    assert (drawn.labels > 0).sum() == 8
    times = {tuple(b): pool.count(b) for b in drawn.boxes.tolist()}
    assert all(drawn.boxes.tolist().count(list(b)) <= n for b, n in times.items())


def test_a_quarter_is_foreground_and_background_fills_up():
    proposals, gt, classes = scene(0)
    few = sample_rois(proposals[:0], gt, classes, SamplingConfig(), np.random.default_rng(0))
    assert torch.equal(few.boxes, gt) and torch.equal(
        few.labels, classes
    )  # the objects are RoIs; no background is left
    many = sample_rois(proposals, gt, classes, SamplingConfig(foreground_fraction=0.0), np.random.default_rng(0))
    assert (many.labels == 0).all() and len(many.labels) > 16


def test_thresholds_are_met_exactly():
    """IoU 0.5 is foreground, 0.1 is background, and just below 0.1 is neither."""
    gt = torch.tensor([[0.0, 0, 100, 100]])
    proposals = torch.tensor([[0.0, 0, 100, 50], [0, 0, 10, 100], [0, 0, 9, 100]])
    drawn = sample_rois(proposals, gt, torch.tensor([3]), SamplingConfig(), np.random.default_rng(0))
    assert sorted(map(tuple, drawn.boxes[drawn.labels == 3].tolist())) == [(0, 0, 100, 50), (0, 0, 100, 100)]
    assert drawn.boxes[drawn.labels == 0].tolist() == [[0, 0, 10, 100]]


def test_an_image_without_objects_gives_background_only():
    proposals, _, _ = scene(1)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    drawn = sample_rois(proposals, *nothing, SamplingConfig(), np.random.default_rng(0))
    assert len(drawn.boxes) == 64 and not drawn.labels.any() and not drawn.bbox_targets.any()
    none = sample_rois(proposals[:0], *nothing, SamplingConfig(), np.random.default_rng(0))
    assert none.boxes.shape == (0, 4)


@pytest.mark.parametrize("wanted", [40, 10_000])
@pytest.mark.parametrize("objects", [0, 3, 50])
def test_candidates_for_mining_are_what_the_loop_says(objects, wanted):
    """All objects, others of any IoU without replacement, and each one's label and target; a large number is all."""
    proposals, gt, classes = scene(2, objects)
    config = SamplingConfig(rois_per_batch=64, hard_candidates=wanted)
    drawn = sample_rois(proposals, gt, classes, config, np.random.default_rng(0))
    pool = torch.cat((gt, proposals)).tolist()
    assert torch.equal(drawn.boxes[:objects], gt) and torch.equal(drawn.labels[:objects], classes)
    assert len(drawn.boxes) == min(max(wanted, objects), len(pool))
    assert all(drawn.boxes.tolist().count(box) <= pool.count(box) for box in drawn.boxes.tolist())
    far = 0
    for box, label, target in zip(drawn.boxes.tolist(), drawn.labels.tolist(), drawn.bbox_targets, strict=True):
        overlaps = [slow_iou(box, g) for g in gt.tolist()]
        best = max(overlaps, default=0.0)
        assert (label > 0) == (best >= 0.5)
        if label:
            nearest = overlaps.index(best)
            assert label == classes[nearest]
            assert torch.allclose(target, box_ops.encode(torch.tensor(box), gt[nearest]))
        else:
            assert not target.any()
        far += best < 0.1
    assert far > 0 or objects >= wanted
    other = sample_rois(proposals, gt, classes, config, np.random.default_rng(1))
    assert torch.equal(drawn.boxes, other.boxes) == (wanted > len(pool) or objects >= wanted)


def test_candidates_are_neither_where_background_ends_early():
    gt = torch.tensor([[0.0, 0, 100, 100]])
    proposals = torch.tensor([[0.0, 0, 100, 45], [0, 0, 100, 40], [200, 0, 300, 9]])
    config = SamplingConfig(hard_candidates=100, background_iou=[0.0, 0.45])
    drawn = sample_rois(proposals, gt, torch.tensor([3]), config, np.random.default_rng(0))
    assert torch.equal(drawn.boxes, torch.cat((gt, proposals[1:]))) and drawn.labels.tolist() == [3, 0, 0]


@given(st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 2**32))
def test_an_epoch_shows_each_image_once(images, per_batch, flip, seed):
    entries = images * (1 + flip)
    config = ImageConfig(flip=flip)
    if entries < per_batch:
        return
    shown = [
        (plan.index, plan.flip)
        for i in range(entries // per_batch)
        for plan in plan_batch(seed, i, images, config, per_batch)
    ]
    assert len(shown) == len(set(shown)) == entries // per_batch * per_batch
    assert all(index < images for index, _ in shown)


def test_a_batch_is_a_function_of_seed_and_iteration():
    config = ImageConfig(train_short_side=[480, 600])
    batches = [plan_batch(3, i, 50, config, 2) for i in range(200)]
    assert batches == [plan_batch(3, i, 50, config, 2) for i in range(200)]
    assert batches != [plan_batch(4, i, 50, config, 2) for i in range(200)]
    assert batches[:50] != batches[50:100]  # the next epoch has another order
    assert {plan.short_side for batch in batches for plan in batch} == {480, 600}
    seeds = [plan.roi_seed for batch in batches for plan in batch] + [
        dropout_seed(3, i, place) for i in range(200) for place in (0, 1)
    ]
    seeds += [dropout_seed(3, i, place, MINING_DROPOUT) for i in range(200) for place in (0, 1)]
    assert len(set(seeds)) == 1200


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_grouped_batches_hold_images_of_one_orientation(wide, per_batch, flip, epoch):
    """All but one of an epoch, and that one only where numbers do not come out even; each image once, in another order
    every epoch. The plan that is not grouped stays as it is."""
    config, entries = ImageConfig(flip=flip), len(wide) * (1 + flip)
    length = max(entries // per_batch, 1)
    iterations = range(epoch * length, (epoch + 1) * length)
    batches = [plan_batch(3, i, len(wide), config, per_batch, np.array(wide)) for i in iterations]
    kinds = [{wide[plan.index] for plan in batch} for batch in batches]
    shown = [(plan.index, plan.flip) for batch in batches for plan in batch]
    assert sum(len(kind) == 2 for kind in kinds) <= 1
    if entries >= per_batch:
        assert len(set(shown)) == len(shown) == length * per_batch
    plain = [plan_batch(3, i, len(wide), config, per_batch) for i in iterations]
    assert sorted(shown) == sorted((plan.index, plan.flip) for batch in plain for plan in batch)
    even = sum(wide[index] for index, _ in shown) % per_batch == 0
    assert not even or all(len(kind) == 1 for kind in kinds)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_is_a_permutation_drawn_from_its_seed(grouped):
    """The order that runs have had from the start: one drawn otherwise would end every resume."""
    wide = np.arange(7) % 3 > 0 if grouped else None
    for seed, iteration in ((3, 0), (3, 12), (4, 12), (3, 40)):
        epoch, step = divmod(iteration, 7)
        rng = np.random.default_rng((seed, 0, epoch))
        order = rng.permutation(14)
        if grouped:
            order = np.array([e for e in order if wide[e % 7]] + [e for e in order if not wide[e % 7]])
            step = rng.permutation(7)[step]
        planned = plan_batch(seed, iteration, 7, ImageConfig(), 2, wide)
        assert [plan.index + 7 * plan.flip for plan in planned] == order[2 * step : 2 * step + 2].tolist()


def test_groups_come_in_any_order():
    plans = [plan_batch(3, i, 40, ImageConfig(), 2, np.arange(40) < 20) for i in range(80)]
    first = ["".join("wh"[plan[0].index >= 20] for plan in plans[start : start + 40]) for start in (0, 40)]
    assert first[0] != first[1] and all(kinds.count("w") == 20 and "whw" in kinds for kinds in first)


def test_targets_to_the_last_pixel_are_drawn_and_measured():
    proposals, gt, classes = scene(4)
    drawn = sample_rois(proposals, gt, classes, SamplingConfig(), np.random.default_rng(0), last_pixel=True)
    foreground = drawn.labels > 0
    nearest = box_ops.iou(drawn.boxes[foreground], gt).argmax(dim=1)
    expected = box_ops.encode(drawn.boxes[foreground], gt[nearest], last_pixel=True)
    assert torch.equal(drawn.bbox_targets[foreground], expected) and expected.any()
    record = ImageRecord("a", Path("any.jpg"), 200, 200, gt.numpy(), classes.numpy(), np.zeros(3, bool), None)
    spread = []
    for last_pixel in (False, True):
        sums = TargetSums(5, 0.5, last_pixel)
        sums.add(record, proposals.numpy())
        spread.append(sums.statistics(flip=False).std[classes[0]])
    assert (spread[1] > spread[0]).all()


def test_fixed_statistics_are_of_all_classes():
    found = fixed_statistics(3, [0.1, 0.1, 0.2, 0.2])
    assert not found.mean.any()
    assert torch.equal(found.std, torch.tensor([[1.0] * 4, [0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]]))


@pytest.mark.parametrize("flip", [False, True])
def test_target_statistics_are_those_of_the_loop(flip):
    records, proposals, images = [], {}, []
    for seed in range(4):
        boxes, gt, classes = scene(seed, objects=2, proposals=40)
        proposals[str(seed)] = boxes.numpy()
        difficult = np.zeros(2, bool)
        records.append(ImageRecord(str(seed), Path("any.jpg"), 200, 200, gt.numpy(), classes.numpy(), difficult, None))
        images.append((200, boxes.tolist(), gt.tolist(), classes.tolist()))
    proposals["empty"] = np.zeros((0, 4), np.float32)
    nothing = proposals["empty"], np.zeros(0, np.int64), np.zeros(0, bool)
    records.append(ImageRecord("empty", Path("any.jpg"), 9, 9, *nothing, None))
    sums = TargetSums(6, 0.5)
    for record in records:
        sums.add(record, proposals[record.id])
    found = sums.statistics(flip)
    mean, std = slow_statistics(images, 6, 0.5, flip)
    assert torch.allclose(found.mean, torch.tensor(mean), atol=1e-5)
    assert torch.allclose(found.std, torch.tensor(std).clamp(min=0.01), atol=1e-5)


def test_a_class_with_one_roi_has_a_std_to_divide_by():
    gt = np.array([[10, 10, 50, 50]], np.float32)
    record = ImageRecord("a", Path("any.jpg"), 100, 100, gt, np.array([1]), np.zeros(1, bool), None)
    sums = TargetSums(3, 0.5)
    sums.add(record, np.zeros((0, 4), np.float32))
    found = sums.statistics(flip=False)
    assert found.std[1].tolist() == pytest.approx([0.01] * 4)
    assert found.std[2].tolist() == [1] * 4
