"""What an earlier run's survey gave is taken over where nothing has changed, and only there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrcnn import config as configs
from fastrcnn import files
from fastrcnn.annotations import kept
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.data import survey as module
from fastrcnn.data.image_set import open_data
from fastrcnn.data.survey import Survey
from fastrcnn.errors import FastRCNNError
from fastrcnn.proposals.proposals import read_proposals
from fastrcnn.proposals.stored import StoredProposals, write_stored


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small sets count, and files that were made a moment ago."""
    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(kept, "LARGE", 1)
    monkeypatch.setattr(files, "SETTLED", -(10**18))


@pytest.fixture
def stored(tree, tmp_path):
    """The tree with its training set's proposals in a file of our own; one image has none."""
    config = configs.from_dict(tree)
    records = read_data_sets(config.data.train, config.data, config.classes)
    proposals = read_proposals(config.data.train[0].proposals, records)
    rows = [proposals[record.id] * (record is not records[2]) for record in records]
    rows[2] = rows[2][:0]
    tree["data"]["train"][0]["proposals"] = str(tmp_path / "p.safetensors")
    write(tree, records, rows)
    return tree


def write(tree, records, rows):
    made_by = configs.from_dict(tree).proposals
    sizes = np.array([(record.width, record.height) for record in records])
    offsets, digests = np.cumsum([0, *map(len, rows)]), np.zeros((len(rows), 16), np.uint8)
    made = made_by.model_dump(exclude={"dense"}) | {"max_per_image": made_by.search_cap}
    ids = [record.id for record in records]
    write_stored(
        Path(tree["data"]["train"][0]["proposals"]),
        StoredProposals(ids, offsets, np.concatenate(rows), sizes, digests, made),
    )


def surveyed(tree, **changes):
    """(digest, mean, std, findings) of a run, and how many images it went through."""
    config, passed = configs.from_dict({**tree, **changes}), []
    survey = Survey(config)

    def add(record, proposals):
        passed.append(record.id)
        survey.add(record, proposals)

    images = open_data(config.data.train, config, None, add, survey.known)
    survey.keep()
    statistics = survey.statistics()
    assert len(images) == 8
    return (survey.digest, statistics.mean.tolist(), statistics.std.tolist(), survey.findings), len(passed)


def test_a_second_run_goes_through_nothing_and_has_the_same(stored, tmp_path):
    first, passed = surveyed(stored)
    assert passed == 8 and len(first[3]) == 1
    path = tmp_path / ".p.safetensors.survey"
    written = files.settled_stamp(path)
    assert surveyed(stored) == (first, 0) and files.settled_stamp(path) == written
    assert surveyed(stored, seed=5, solver={"lr": 1e-5}) == (first, 0)


def test_the_digest_is_that_of_the_run_without(stored, monkeypatch):
    """Its value is in checkpoints: another one would end every resume."""
    surveyed(stored)
    kept_one, passed = surveyed(stored)
    monkeypatch.setattr(module, "LARGE", 9)
    assert (*surveyed(stored), passed) == (kept_one, 8, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"foreground_iou": 0.6}},
        {"model": {"backbone": "tiny", "weights": "", "size_to_last_pixel": True}},
        {"proposals": {"max_per_image": 20}},
        {"proposals": {"dense": 30}},
    ],
    ids=str,
)
def test_other_settings_make_another_pass(stored, changes):
    first, _ = surveyed(stored)
    second, passed = surveyed(stored, **changes)
    assert passed == 8 and second[:3] != first[:3]


def test_other_proposals_make_another_pass(stored, tmp_path):
    first, _ = surveyed(stored)
    config = configs.from_dict(stored)
    records = read_data_sets(config.data.train, config.data, config.classes)
    proposals = read_proposals(tmp_path / "p.safetensors", records)
    rows = [proposals[record.id].copy() for record in records]
    rows[0][0, 0] += 1
    write(stored, records, rows)
    second, passed = surveyed(stored)
    assert passed == 8 and second[0] != first[0]


def test_other_records_code_and_rules_of_what_is_trained_on_make_another_pass(stored, tmp_path, monkeypatch):
    surveyed(stored)
    config = configs.from_dict(stored)
    records = read_data_sets(config.data.train, config.data, config.classes)
    stores = [read_proposals(tmp_path / "p.safetensors", records, config.proposals)]
    assert Survey(config).known(stores, records)
    first = records[0]
    others = [
        *({name: getattr(first, name) + 1} for name in ("width", "height", "boxes", "classes")),
        {"difficult": ~first.difficult, "path": first.path},
        *({"id": "other"}, {"path": tmp_path}, {"annotation": tmp_path}),
    ]
    for other in others:
        assert not Survey(config).known(stores, [replace(first, **other), *records[1:]]), other
    assert not Survey(config).known(stores, records[:-1])
    for key in ("drop_difficult", "drop_empty"):
        changed = configs.from_dict({**stored, "data": {**stored["data"], key: True}})
        assert not Survey(changed).known(stores, records)
    monkeypatch.setattr(module, "_code", lambda: "another")
    assert not Survey(config).known(stores, records)


def test_a_folder_that_cannot_be_written_keeps_nothing(stored, monkeypatch):
    def refuse(*_):
        raise FastRCNNError("no room")

    monkeypatch.setattr(module, "write_json", refuse)
    assert surveyed(stored) == surveyed(stored) and surveyed(stored)[1] == 8


def test_proposals_that_are_wrong_are_refused_each_time(stored, tmp_path):
    config = configs.from_dict(stored)
    records = read_data_sets(config.data.train, config.data, config.classes)
    rows = [np.array([(0, 0, 5, 5)])] * 7 + [np.array([(0, 0, 5000, 5)])]
    write(stored, records, rows)
    for _ in range(2):
        with pytest.raises(FastRCNNError, match="outside its image"):
            surveyed(stored)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"key": 1}', "sums", "findings", "digest", "nothing"])
def test_a_damaged_file_is_made_again(stored, tmp_path, damage):
    first, _ = surveyed(stored)
    path = tmp_path / ".p.safetensors.survey"
    whole = path.read_bytes()
    if isinstance(damage, str):
        text = json.loads(whole)
        damaged = {damage: [[1.0]] if damage != "digest" else None}
        damage = json.dumps({"key": text["key"]} if damage == "nothing" else text | damaged).encode()
    path.write_bytes(damage)
    assert surveyed(stored) == (first, 8)
    assert path.read_bytes() == whole


def test_small_sets_other_formats_and_new_files_are_not_kept(stored, tree, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", 3 * 10**9)
    assert [surveyed(stored)[1] for _ in range(2)] == [8, 8]
    monkeypatch.setattr(files, "SETTLED", -(10**18))
    monkeypatch.setattr(module, "LARGE", 9)
    assert [surveyed(stored)[1] for _ in range(2)] == [8, 8]
    monkeypatch.setattr(module, "LARGE", 1)
    stored["data"]["train"][0]["proposals"] = str(shapes / "proposals.json")
    assert [surveyed(stored)[1] for _ in range(2)] == [8, 8]
    assert not (tmp_path / ".p.safetensors.survey").exists()


def test_sums_come_back_to_the_bit():
    sums = module.TargetSums(3, 0.5)
    sums.count, sums.total = torch.rand(3, 1).double() / 3, torch.randn(3, 4).double() * 1e-9
    other = module.TargetSums(3, 0.5)
    other.put_numbers(json.loads(json.dumps(sums.numbers())))
    assert all(torch.equal(getattr(sums, name), getattr(other, name)) for name in ("count", "total", "squares"))
