from itertools import combinations, product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import hardest as slow_hardest
from oracles import roi_losses as slow_losses
from test_fast_rcnn import images, network

from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.data.loader import Batch
from fastrcnn.train.hard_examples import hardest, hardest_batch


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 2**32))
def test_the_hardest_are_those_of_the_loop(rois, count, seed):
    """Boxes on a coarse grid, so that many overlap by more than 0.7; losses of few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 4, (rois, 2)) * 2
    boxes = np.hstack((corner, corner + rng.integers(8, 12, (rois, 2))))
    labels, losses = rng.integers(0, 3, rois), rng.integers(0, 5, rois) / 4
    found = hardest(torch.tensor(boxes).float(), torch.tensor(labels), torch.tensor(losses).float(), count)
    assert found.tolist() == slow_hardest(boxes.tolist(), labels.tolist(), losses.tolist(), count)


def test_many_boxes_take_the_same_way():
    """torchvision's batched_nms goes class by class above 1,000 boxes."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 30, (1500, 2)) * 4
    boxes = np.hstack((corner, corner + rng.integers(20, 40, (1500, 2))))
    labels, losses = rng.integers(0, 3, 1500), rng.integers(0, 50, 1500) / 8
    found = hardest(torch.tensor(boxes).float(), torch.tensor(labels), torch.tensor(losses).float(), 500)
    assert found.tolist() == slow_hardest(boxes.tolist(), labels.tolist(), losses.tolist(), 500)


def example(counts, dropout=0.0, **settings):
    """A network, and a batch of two images with so many candidates each."""
    model = network(dropout=dropout, **settings)
    config = configs.from_dict({"classes": ["a", "b", "c", "d"], "sampling": {"rois_per_batch": 16}})
    config.sampling.hard_candidates = 100
    rng = np.random.default_rng(3)
    rois = []
    for count in counts:
        corner = rng.uniform(0, 40, (count, 2)).round()
        rois.append(torch.from_numpy(np.hstack((corner, corner + rng.uniform(8, 40, (count, 2)).round()))).float())
    labels = torch.from_numpy(rng.integers(0, 5, sum(counts)))
    targets = torch.from_numpy(rng.normal(size=(sum(counts), 4))).float() * (labels > 0)[:, None]
    statistics = TargetStatistics(torch.full((5, 4), 0.1), torch.full((5, 4), 0.5))
    batch = Batch(7, ["a", "b"], [0, 1], images((64, 80), (96, 72)), [], [1.0, 1.5], rois, labels, targets)
    return model, config, batch, statistics


@pytest.mark.parametrize("counts", [(60, 40), (40, 5), (0, 30), (0, 0)])
def test_the_batch_is_what_the_loop_chooses(counts):
    """Losses of the plain forward pass of training, ranked by the loop, image by image."""
    model, config, batch, statistics = example(counts)
    features = model.features(batch.images)
    found = hardest_batch(model, features, batch, statistics, config)
    with torch.no_grad():
        scores, deltas = model.head(features, batch.rois, batch.scales, None)
    targets = statistics.normalise(batch.bbox_targets, batch.labels)
    losses = slow_losses(scores.tolist(), deltas.tolist(), batch.labels.tolist(), targets.tolist(), 1.0)
    rows, start = [], 0
    for boxes, hard in zip(batch.rois, found.rois, strict=True):
        own = slice(start, start + len(boxes))
        kept = slow_hardest(boxes.tolist(), batch.labels[own].tolist(), losses[own], 8)
        assert torch.equal(hard, boxes[kept])
        rows += [start + i for i in kept]
        start = own.stop
    assert torch.equal(found.labels, batch.labels[rows]) and torch.equal(found.bbox_targets, batch.bbox_targets[rows])
    assert (found.ids, found.scales, found.iteration) == (batch.ids, batch.scales, 7)
    assert all(map(torch.equal, found.images, batch.images))


@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "spp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_without_a_gradient_are_those_of_training(precision, kind):
    """Also above the 512 RoIs that are pooled at a time; the maps have a gradient, the scores have none."""
    model, _, batch, _ = example((700, 9), roi_features=kind)
    model.precision = precision
    features = model.features(batch.images)
    assert all(m.requires_grad for maps in features for m in maps)
    for fast, plain in zip(
        model.head_without_gradient(features, batch.rois, batch.scales, None),
        model.head(features, batch.rois, batch.scales, None),
        strict=True,
    ):
        assert plain.requires_grad and not fast.requires_grad
        close = 1e-5 if precision == "float32" else 0.02
        assert torch.allclose(fast, plain, atol=close * plain.abs().max().item())


def test_dropout_follows_its_seed_and_no_two_chunks_share_masks():
    spans = combinations(range(0, 80, 8), 2), combinations(range(0, 64, 8), 2)
    boxes = torch.tensor([(x1, y1, x2, y2) for (x1, x2), (y1, y2) in product(*spans)]).float()
    model, config, batch, statistics = example((len(boxes), 0), dropout=0.5)
    batch.rois[0] = boxes  # each of other cells
    features = [[torch.ones_like(m) for m in model.features(batch.images)[0]]]  # and all of the same features
    draw = lambda seed: model.head_without_gradient(features, batch.rois, batch.scales, [seed, 9])[0]  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert len(boxes) == 1260 and len(draw(1).unique(dim=0)) > 1200  # of 24 numbers, half of which fall out
    first, again = (hardest_batch(model, features, batch, statistics, config) for _ in range(2))
    assert all(map(torch.equal, first.rois, again.rois)) and torch.equal(first.labels, again.labels)


def test_boxes_of_other_classes_stay():
    """As in the authors' code: a RoI that is wrong about a class of its own is another mistake."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]])
    kept = hardest(boxes, torch.tensor([1, 2, 1]), torch.tensor([0.3, 0.1, 0.2]), 8)
    assert kept.tolist() == [0, 1] and box_ops.iou(boxes, boxes)[0, 2] == 0.9
