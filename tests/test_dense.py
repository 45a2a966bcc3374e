"""Dense boxes: what the grid holds, the nearest of it against a loop over all, and what is drawn from it."""

import pickle

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_proposals import IDS, MADE_BY, RECORDS, record, stored
from test_selective_search import picture

from fastrcnn import config as configs
from fastrcnn.config import ConfigError, ProposalsConfig
from fastrcnn.data.image_set import open_data
from fastrcnn.data.propose import propose
from fastrcnn.proposals.dense import dense_boxes, find_proposals, grid, nearest_dense, with_dense
from fastrcnn.proposals.proposals import read_proposals
from fastrcnn.proposals.selective_search import selective_search
from fastrcnn.proposals.stored import write_stored

sides = st.integers(1, 60)


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (600, 400), (4000, 3000)])
def test_an_image_has_as_many_as_the_paper_says(size):
    assert 45_000 <= len(dense_boxes(*size)) <= 48_000


@settings(max_examples=30)
@given(sides, sides)
def test_the_grid_is_that_of_the_loops(width, height):
    boxes = dense_boxes(width, height)
    assert boxes.dtype == np.float32 and len(np.unique(boxes, axis=0)) == len(boxes)
    assert ((boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= [width, height])).all()
    assert {tuple(box) for box in boxes.tolist()} == oracles.dense_boxes(width, height)


@settings(max_examples=25)
@given(st.integers(8, 40), st.integers(8, 40), st.data())
def test_no_dense_box_is_nearer(width, height, data):
    x1, y1 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    box = [x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))]
    (found,) = nearest_dense(np.array([box], np.float32), width, height).tolist()
    everything = dense_boxes(width, height).tolist()
    assert found in everything
    assert oracles.iou(found, box) == max(oracles.iou(other, box) for other in everything)


def test_a_dense_box_is_its_own_nearest():
    boxes = dense_boxes(50, 40)
    np.testing.assert_array_equal(nearest_dense(boxes, 50, 40), boxes)
    assert nearest_dense(boxes[:0], 50, 40).shape == (0, 4)


def test_what_is_added_is_drawn_by_the_image_and_a_larger_number_holds_a_smaller():
    sparse = np.array([[0, 0, 7, 39], [1, 2, 31, 37]], np.float32)  # not of the grid

    def added(count, image_id="a"):
        boxes = with_dense(sparse, 50, 40, image_id, ProposalsConfig(dense=count))
        np.testing.assert_array_equal(boxes[:2], sparse)
        return boxes[2:].tolist()

    assert len(added(20)) == 20 and added(100)[:20] == added(20) != added(20, "b")
    assert sorted(added(10**6)) == sorted(dense_boxes(50, 40, 2).tolist())
    assert dense_boxes(50, 40, 41).shape == (0, 4)
    alone = with_dense(sparse, 50, 40, "a", ProposalsConfig(method="dense", max_per_image=20))
    assert alone.tolist() == added(20)


def test_stored_proposals_change_on_the_way(tmp_path):
    """Added, replaced, or left unread; in a loader's process as here."""
    records = [record(i, 100, 80) for i in IDS]
    write_stored(tmp_path / "p.safetensors", stored(made_by=MADE_BY))
    for settings_ in ({"dense": 7}, {"dense": "replace"}, {"method": "dense"}):
        config = ProposalsConfig(**settings_)
        path = tmp_path / ("none" if config.method == "dense" else "p.safetensors")
        proposals = read_proposals(path, records, config)
        plain = read_proposals(tmp_path / "p.safetensors", records, ProposalsConfig())
        for image_id in IDS:
            expected = with_dense(plain[image_id], 100, 80, image_id, config)
            np.testing.assert_array_equal(proposals[image_id], expected)
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(proposals))[image_id], expected)
    np.testing.assert_array_equal(read_proposals(tmp_path / "p.safetensors", RECORDS)["a"], plain["a"])


def test_dense_boxes_need_no_file(tree):
    tree["proposals"] = {"method": "dense"}
    tree["data"]["train"][0]["proposals"] = None
    config = configs.from_dict(tree)
    images = open_data(config.data.train, config)
    found, image = next(propose(config)), images.records[0]
    assert found.path == "dense boxes" and not found.searched
    assert found.boxes == sum(len(boxes) for _, boxes in images)
    assert len(images[0][1]) == len(
        with_dense(np.zeros((0, 4), np.float32), image.width, image.height, "", config.proposals)
    )
    assert found.recall.average() > 0.45


def test_a_picture_without_stored_proposals_has_the_same():
    image, sparse = picture(1), selective_search(picture(1), "x", ProposalsConfig())
    for settings_ in ({}, {"dense": 5}, {"dense": "replace"}, {"method": "dense"}):
        config = ProposalsConfig(**settings_)
        np.testing.assert_array_equal(find_proposals(image, "x", config), with_dense(sparse, 60, 40, "x", config))


def test_dense_alone_and_dense_with_sparse_exclude_each_other():
    with pytest.raises(ConfigError, match="proposals.dense is 5; it must be null with proposals.method dense"):
        ProposalsConfig(method="dense", dense=5)
    with pytest.raises(ConfigError, match="proposals.dense is 'add'; it must be a whole number .* or replace or null"):
        ProposalsConfig(dense="add")


def test_sizes_of_the_grid():
    """500 x 375: from 1/16 of the image to the whole of it."""
    sizes = [tuple(size.tolist()) for size, _, _ in grid(500, 375)]
    assert (27, 27) in sizes and (433, 375) in sizes and (500, 306) in sizes and min(sizes)[0] == 16
