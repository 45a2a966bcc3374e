import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_proposals import stored

from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.data.image_set import open_data
from fastrcnn.data.loader import BatchDataset, batches, on_device
from fastrcnn.data.sampling import plan_batch
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image
from fastrcnn.model.weights import build
from fastrcnn.proposals.stored import write_stored
from fastrcnn.train.feature_cache import FeatureCache

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


def test_grouped_batches_are_of_one_orientation_and_of_any_number_of_workers(tree):
    tree["sampling"]["aspect_grouping"] = True
    config = configs.from_dict(tree)
    dataset = BatchDataset(open_data(config.data.train, config).for_training(config.data), config, *NORMALISATION)
    wide = {r.id: r.width >= r.height for r in dataset.images.records}
    seen = [{wide[i] for i in dataset[iteration].ids} for iteration in range(16)]
    assert {True} in seen and {False} in seen and seen.count({True, False}) <= 2
    apart = [batch.ids for batch in batches(dataset, 5, 9, workers=1, pin_memory=False)]
    assert apart == [dataset[iteration].ids for iteration in range(5, 9)]


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


@pytest.fixture
def spawn():
    """Loader processes as Windows and macOS start them."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_spawned_workers_read_stored_proposals_and_features(tree, tmp_path, spawn):
    """All that a worker needs is pickled: the images, proposals mapped from their file, settings, the feature cache."""
    config = configs.from_dict(tree | {"cache_features": True, "feature_cache": str(tmp_path / "features")})
    images = open_data(config.data.train, config)
    boxes = [proposals for _, proposals in images]
    sizes = [(record.width, record.height) for record in images.records]
    path = tmp_path / "own.safetensors"
    write_stored(path, stored(images.ids, boxes, sizes))
    tree["data"]["train"][0]["proposals"] = str(path)
    images = open_data(configs.from_dict(tree).data.train, config)
    model = build(config).eval()
    cache = FeatureCache(images.records, config, model)
    cache.make(model, torch.device("cpu"), threading.Event())
    dataset = BatchDataset(images, config, *NORMALISATION, cache.features)
    alone = list(batches(dataset, 0, 3, workers=0, pin_memory=False))
    for a, b in zip(alone, batches(dataset, 0, 3, workers=2, pin_memory=False), strict=True):
        assert a.ids == b.ids and a.maps and all(map(torch.equal, a.maps + a.rois, b.maps + b.rois))


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="the system tells nobody of dead children")
def test_a_dead_worker_does_not_interrupt_what_the_main_process_does(dataset):
    """torch's own handler of SIGCHLD would raise in the middle of a step."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = batches(dataset, 0, 100_000, workers=1, pin_memory=False)
    next(loader)
    assert signal.getsignal(signal.SIGCHLD) == before
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    for _ in range(100):  # a step
        time.sleep(0.001)
    with pytest.raises(FastRCNNError, match=r"^data.workers: DataLoader worker .*resume with --resume"):
        list(loader)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="the system tells nobody of dead children")
def test_torch_still_sets_the_handler_that_is_taken_back():
    """If this fails, torch has changed, and _no_child_signal in loader.py may go."""
    code = """
import signal
from torch.utils.data import DataLoader
before = signal.getsignal(signal.SIGCHLD)
iterator = iter(DataLoader(range(4), num_workers=1))
assert signal.getsignal(signal.SIGCHLD) != before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Streams:
    """Of torch.cuda, writing down what is asked of them."""

    def __init__(self, monkeypatch):
        self.log, self.current = [], "work"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", self.on_copying)

    @contextlib.contextmanager
    def on_copying(self, stream):
        self.current = "copying"
        yield
        self.current = "work"

    def record_event(self):
        return self.log[-1].split()[-1]

    def wait_event(self, event):
        self.log.append(f"{self.current} waits for {event}")

    def batch(self, number):
        def to(device):
            self.log.append(f"{self.current} copies {number}")
            return SimpleNamespace(record_stream=lambda stream: self.log.append(f"{self.current} uses {number}"))

        return SimpleNamespace(to=to)


def test_the_next_batch_is_copied_before_this_one_is_worked_on(monkeypatch, unchecked):
    streams = Streams(monkeypatch)

    def loaded():
        yield from map(streams.batch, range(2))
        raise FastRCNNError("the third cannot be read")

    on_gpu = on_device(loaded(), torch.device("cuda"))
    next(on_gpu)
    assert streams.log == ["copying copies 0", "copying copies 1", "work waits for 0", "work uses 0"]
    next(on_gpu)
    assert streams.log[4:] == ["work waits for 1", "work uses 1"]  # the error waits for its turn
    with pytest.raises(FastRCNNError, match="third"):
        next(on_gpu)


def test_without_a_gpu_a_batch_is_read_when_its_turn_comes():
    read = []
    batches = on_device((read.append(i) or SimpleNamespace(to=lambda _, i=i: i) for i in range(3)), torch.device("cpu"))
    assert next(batches) == 0 and read == [0]
    assert list(batches) == [1, 2]
