"""Score thresholds in a weights file: the rest of it stays, and nothing takes it for other weights."""

import dataclasses
import json
import os

import numpy as np
import pytest
import safetensors
import torch

from fastrcnn import config as configs
from fastrcnn.compress import compress_weights
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import METADATA_KEY, file_digest, read_tensors, write_tensors
from fastrcnn.model.score_thresholds import KEY, ScoreThresholds, network_digest, read_metadata, store_thresholds
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model, write_model

THRESHOLDS = ScoreThresholds({"star": float(np.float32(0.3)), "cross": 0.5}, "VOC2007 minival", 7)


@pytest.fixture
def path(tree, tmp_path):
    model = build(configs.from_dict(tree))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "feature_scale"}
    write_model(tmp_path / "model.safetensors", tensors, tree, model.normalisation, 2.0)
    return tmp_path / "model.safetensors"


def tensor_bytes(path):
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_thresholds_change_nothing_else(path):
    before, metadata, data, digest = (
        read_tensors(path)[0],
        read_metadata(path),
        tensor_bytes(path),
        network_digest(path),
    )
    path.chmod(0o640)
    assert store_thresholds(path, THRESHOLDS)
    assert load_model(path)[0].score_thresholds == THRESHOLDS
    after, about = read_tensors(path)
    assert about == {**metadata, KEY: dataclasses.asdict(THRESHOLDS)}
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert tensor_bytes(path) == data and int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert network_digest(path) == digest
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_the_same_thresholds_again_leave_the_file_alone(path):
    store_thresholds(path, THRESHOLDS)
    content, when = path.read_bytes(), path.stat().st_mtime_ns
    assert not store_thresholds(path, dataclasses.replace(THRESHOLDS))
    assert path.read_bytes() == content and path.stat().st_mtime_ns == when
    assert store_thresholds(path, dataclasses.replace(THRESHOLDS, images=8))
    assert load_model(path)[0].score_thresholds.images == 8


def test_other_weights_have_another_digest(path, tmp_path):
    tensors, metadata = read_tensors(path)
    name = sorted(tensors)[0]
    changed = {**tensors, name: tensors[name] + 1}
    write_tensors(tmp_path / "tensors.safetensors", changed, metadata)
    write_tensors(tmp_path / "metadata.safetensors", tensors, {**metadata, "feature_scale": 3.0})
    write_tensors(tmp_path / "same.safetensors", tensors, {**metadata, KEY: {}})
    digests = [network_digest(tmp_path / f"{name}.safetensors") for name in ("tensors", "metadata", "same")]
    assert digests[2] == network_digest(path) not in digests[:2] and digests[0] != digests[1]


@pytest.mark.parametrize(
    "content", [b"", b"12345678", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", b"not at all one"]
)
def test_the_digest_of_another_file_is_of_all_that_it_holds(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert network_digest(tmp_path / "x") == file_digest(tmp_path / "x")


def test_a_write_protected_file_stays(path):
    content = path.read_bytes()
    path.chmod(0o444)
    with pytest.raises(FastRCNNError, match="is write-protected"):
        store_thresholds(path, THRESHOLDS)
    assert path.read_bytes() == content


def test_a_link_stays_a_link(path, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    store_thresholds(link, THRESHOLDS)
    assert link.is_symlink() and load_model(path)[0].score_thresholds == THRESHOLDS


@pytest.mark.parametrize(
    "value", [1, {"scores": {"star": 1.5}, "data": "", "images": 1}, {"scores": {"star": None}}, {}]
)
def test_damaged_thresholds_are_an_error(path, value):
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, KEY: value})
    with pytest.raises(FastRCNNError, match="its score thresholds are damaged"):
        load_model(path)


def test_what_is_made_of_the_weights_has_none(path, tree, tmp_path, caplog):
    """They were measured with the whole network, and with these classes' scores."""
    store_thresholds(path, THRESHOLDS)
    with caplog.at_level("INFO"):
        compress_weights(path, tmp_path / "small.safetensors", {"fc6": 4, "fc7": 4})
    assert load_model(tmp_path / "small.safetensors")[0].score_thresholds is None
    assert f"small.safetensors: has no score thresholds: those of {path}" in caplog.text
    config = configs.from_dict(tree | {"model": {**tree["model"], "weights": str(path)}})
    model = build(config)
    initialise(model, config)
    assert model.score_thresholds is None


def test_limits():
    assert THRESHOLDS.limits(["disc", "star"], 0.05).tolist() == np.array([0.05, 0.05, 0.3], np.float32).tolist()


def test_other_programs_read_the_file(path):
    store_thresholds(path, THRESHOLDS)
    with safetensors.safe_open(path, "np") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
        assert about[KEY]["scores"]["cross"] == 0.5
        assert file.get_tensor("fc7.bias").shape == (32,)
