import json
import pathlib

import numpy as np
import pytest

from fastrcnn import config as configs
from fastrcnn.data.propose import propose, propose_part
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.unfinished import Part


def test_each_data_set_has_its_boxes_and_recall(tree):
    tree["data"]["validation"] = tree["data"]["test"]
    sets = list(propose(configs.from_dict(tree)))
    assert [s.name.split(" ")[0] for s in sets] == ["data.train.0", "data.validation.0", "data.test.0"]
    with pathlib.Path(sets[0].path).open(encoding="utf-8") as file:
        stored = json.load(file)["proposals"]
    for proposed in sets:
        assert not proposed.searched and proposed.boxes == sum(len(stored[r.id]) for r in proposed.records)
        assert len(proposed.recall.best_iou) == sum(int((~r.difficult).sum()) for r in proposed.records)


def test_sets_that_share_a_file_are_searched_once(tree, tmp_path, monkeypatch):
    searched = []

    def search(image, image_id, config):
        searched.append(image_id)
        return np.array([[0, 0, 20, 20]], np.float32)

    monkeypatch.setattr("fastrcnn.proposals.make.selective_search", search)
    monkeypatch.setattr("fastrcnn.proposals.make._search_all", in_this_process)
    for part in ("train", "test"):
        tree["data"][part] = [tree["data"]["train"][0] | {"proposals": str(tmp_path / "p.safetensors")}]
    sets = list(propose(configs.from_dict(tree)))
    assert len(sets) == 2 and all(s.searched and s.boxes == len(s.records) == 8 for s in sets)
    assert sorted(searched) == sorted(r.id for r in sets[0].records)


def in_this_process(todo, config, processes, total):
    from fastrcnn.proposals.make import _search_one

    yield from (_search_one(record.id, record.path, config) for record in todo)


def test_a_set_that_names_no_proposals_is_refused_before_any_search(tree):
    tree["data"]["validation"] = [tree["data"]["test"][0] | {"proposals": None}]
    with pytest.raises(FastRCNNError, match=r"data\.validation\.0\.proposals is not set"):
        next(propose(configs.from_dict(tree)))


def test_a_test_set_that_names_no_proposals_is_left_to_evaluation(tree, caplog):
    tree["data"]["test"][0]["proposals"] = None
    with caplog.at_level("INFO"):
        assert [s.name.split(" ")[0] for s in propose(configs.from_dict(tree))] == ["data.train.0"]
    assert "test): names no file of proposals, and is searched when it is evaluated" in caplog.text


def test_a_set_that_is_absent_is_told_before_another_is_fetched(tree, monkeypatch):
    tree["data"]["train"] = [{"root": "VOC2007", "split": "train", "proposals": "p.safetensors", "download": True}]
    tree["data"]["test"] = [{"root": "VOC2010", "split": "test", "proposals": "q.safetensors", "source": "our server"}]
    monkeypatch.setattr("fastrcnn.annotations.layouts.download_voc", lambda *_: pytest.fail("fetched"))
    with pytest.raises(FastRCNNError, match=r"data\.test\.0: VOC2010: not there; it comes from our server; or .*=\[\]"):
        next(propose(configs.from_dict(tree)))


def test_parts_of_proposals_that_are_only_read_are_refused(tree):
    with pytest.raises(FastRCNNError, match="no data set has a .safetensors file of proposals"):
        propose_part(configs.from_dict(tree), Part(1, 2))
