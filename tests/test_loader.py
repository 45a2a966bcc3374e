from dataclasses import replace

import numpy as np
import pytest
import torch

from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.data.image_set import open_data
from fastrcnn.data.loader import BatchDataset, batches
from fastrcnn.data.sampling import plan_batch
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image

NORMALISATION = (120.0, 110.0, 100.0), (50.0, 50.0, 50.0)


@pytest.fixture
def dataset(tree):
    config = configs.from_dict(tree)
    return BatchDataset(open_data(config.data.train, config).for_training(config.data), config, *NORMALISATION)


def test_a_batch_is_what_its_plan_says(dataset):
    config = dataset.config
    for iteration in range(4):
        batch = dataset[iteration]
        plans = plan_batch(config.seed, iteration, len(dataset.images.records), config.image, 2)
        assert batch.ids == [dataset.images.records[p.index].id for p in plans]
        assert len(batch.labels) == len(batch.bbox_targets) == sum(map(len, batch.rois))
        for plan, image, scale in zip(plans, batch.images, batch.scales, strict=True):
            record = dataset.images.records[plan.index]
            assert scale == 96 / min(record.width, record.height)
            assert image.shape == (3, round(record.height * scale), round(record.width * scale))


def test_boxes_move_with_a_flipped_image(dataset):
    """Foreground RoIs of a flipped image, turned back, lie on its objects; pixels are the mirror image."""
    config = dataset.config
    seen = set()
    for iteration in range(6):
        batch = dataset[iteration]
        start = 0
        for plan, rois, image, scale in zip(
            plan_batch(config.seed, iteration, len(dataset.images.records), config.image, 2),
            batch.rois,
            batch.images,
            batch.scales,
            strict=True,
        ):
            record = dataset.images.records[plan.index]
            labels = batch.labels[start : start + len(rois)]
            start += len(rois)
            upright = box_ops.flip(rois, record.width) if plan.flip else rois
            overlap = box_ops.iou(upright, torch.from_numpy(record.boxes))
            same_class = torch.from_numpy(record.classes)[None] == labels[:, None]
            assert (torch.where(same_class, overlap, 0).amax(dim=1)[labels > 0] >= 0.5).all()
            pixels = torch.from_numpy(read_image(record.path).astype(np.float32))
            column = pixels[:, -1 if plan.flip else 0]
            mean = (column.mean(dim=0) - torch.tensor(NORMALISATION[0])) / 50
            assert torch.allclose(image[:, :, 0].mean(dim=1), mean, atol=0.25), scale
            seen.add(plan.flip)
    assert seen == {True, False}


def test_workers_change_no_batch(dataset):
    alone = list(batches(dataset, 2, 6, workers=0, pin_memory=False))
    for other in (1, 2):
        for a, b in zip(alone, batches(dataset, 2, 6, workers=other, pin_memory=False), strict=True):
            assert (a.iteration, a.ids, a.scales) == (b.iteration, b.ids, b.scales)
            assert torch.equal(a.labels, b.labels) and torch.equal(a.bbox_targets, b.bbox_targets)
            assert all(map(torch.equal, a.images + a.rois, b.images + b.rois))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_gone_is_named_without_a_worker_s_traceback(dataset, tmp_path, workers):
    gone = replace(dataset.images.records[0], path=tmp_path / "gone.jpg")
    dataset.images = replace(dataset.images, records=[gone])
    with pytest.raises(FastRCNNError, match=r"^[^\n]*gone\.jpg[^\n]*$"):
        list(batches(dataset, 0, 1, workers, pin_memory=False))
