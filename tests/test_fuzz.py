"""Damaged and hostile files: every reader gives a result that fits, or our own error that names the file.

Two kinds of damage: bytes changed anywhere, and whole files whose values are not what they should be. The readers of
annotations, images and proposals are fuzzed beside their other tests. FASTRCNN_FUZZ is the number of files a reader.
"""

import ast
import copy
import itertools
import json
import logging
import math
import os
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_caffemodel import encoded
from oracles_mutations import altered, fuzzing, mutated
from safetensors.torch import save_file
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from fastrcnn import config as configs
from fastrcnn import config_files
from fastrcnn.boxes import TargetStatistics
from fastrcnn.detections import DetectedImage, Detections, read_detections, write_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate import detect_set
from fastrcnn.files import METADATA_KEY
from fastrcnn.journal import pack
from fastrcnn.model import torchvision_weights
from fastrcnn.model.backbones import output_channels
from fastrcnn.model.caffemodel import read_caffemodel
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model, save_weights
from fastrcnn.train.checkpoint import checkpoints, load_latest, save_checkpoint
from fastrcnn.train.curves import points
from fastrcnn.train.metrics import Metrics, read_metrics
from fastrcnn.train.solver import make_optimizer

TREE = {
    "classes": ["cat", "dog"],
    "data": {"train": [{"root": "a", "split": "train"}], "test": []},
    "model": {"backbone": "tiny", "weights": "", "freeze_up_to": "conv1", "fc_width": 4, "pool_size": 2},
    "solver": {"steps": [6], "max_iterations": 8},
    "output": "run",
}
CONFIG = configs.from_dict(TREE)
START = build(CONFIG)  # takes over the weights of every file that is not refused
STATISTICS = TargetStatistics(torch.zeros(3, 4), torch.ones(3, 4))
DATA = "the digest of the data"


@pytest.fixture(autouse=True, scope="module")
def quiet():
    logging.getLogger("fastrcnn").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("fastrcnn").setLevel(logging.NOTSET)


@dataclass(repr=False)  # hypothesis would print a megabyte
class Sample:
    """A file to be damaged, and what it is when whole."""

    path: Path
    content: bytes
    header: dict
    tensors: bytes
    value: object = None

    def __repr__(self) -> str:
        return str(self.path)

    @property
    def head(self) -> int:
        """Where damage by bytes ends: behind the header and a few tensors."""
        return len(self.content) - len(self.tensors) + 100


def sample(path: Path, value: object = None) -> Sample:
    return Sample(path, path.read_bytes(), *parts(path), value)


def parts(path: Path) -> tuple[dict, bytes]:
    """The header of a safetensors file, with our own metadata as a tree, and the bytes of its tensors."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"][METADATA_KEY] = json.loads(header["__metadata__"][METADATA_KEY])
    return header, content[8 + size :]


def write_parts(path: Path, header: dict, data: bytes) -> None:
    header = copy.deepcopy(header)
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and METADATA_KEY in metadata:
        metadata[METADATA_KEY] = json.dumps(metadata[METADATA_KEY])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# ---- weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, build(CONFIG), CONFIG, STATISTICS)
    return sample(path)


def check_weights(path: Path) -> None:
    """Both readers of a weights file: what is accepted computes finite numbers."""
    try:
        model, config = load_model(path)
    except FastRCNNError as e:
        assert str(path) in str(e)
    else:
        pooled = torch.ones(1, output_channels(model.backbone) * config.model.pool_size**2)
        with torch.no_grad():
            scores, deltas = model.siblings(model.fully_connected(pooled))
        assert scores.shape == (1, len(config.classes) + 1) and deltas.shape == (1, 4 * scores.shape[1])
        assert scores.dtype == torch.float32
    config = copy.deepcopy(CONFIG)
    config.model.weights = str(path)
    try:
        initialise(START, config)
    except FastRCNNError as e:
        assert str(path) in str(e)
    else:
        assert all(torch.isfinite(p).all() for p in START.parameters())


@fuzzing
@given(data=st.data())
def test_mutated_weights_are_loaded_or_refused(weights, data):
    head = data.draw(mutated([weights.content[: weights.head]]))
    weights.path.write_bytes(head + weights.content[weights.head :])
    check_weights(weights.path)


@fuzzing
@given(data=st.data())
def test_weights_with_a_mutated_header_are_loaded_or_refused(weights, data):
    write_parts(weights.path, data.draw(altered(weights.header)), weights.tensors)
    check_weights(weights.path)


def damaged_weights(weights, change):
    header = copy.deepcopy(weights.header)
    change(header, header["__metadata__"][METADATA_KEY])
    write_parts(weights.path, header, weights.tensors)
    return weights.path


def put(*keys_and_value):
    """A change of one value in the header ("t", ...) or in our metadata ("m", ...)."""
    which, *keys, value = keys_and_value

    def change(header, metadata):
        node = header if which == "t" else metadata
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("m", "normalisation", "mean", [float("nan")] * 3),
        put("m", "normalisation", "deviation", [1, 1, float("nan")]),
        put("m", "normalisation", "deviation", [1, 1, 0]),
        put("m", "normalisation", "mean", [10**400] * 3),
        put("m", "feature_scale", float("inf")),
        put("m", "config", "model", "fc_width", 2**62),
        put("m", "config", "model", "pool_size", 2**40),
        put("m", "config", "model", "fc_width", 10**30),
        put("m", "config", "model", "freeze_up_to", "conv99"),
        put("m", "config", "precision", "float8"),
        put("m", "config", "solver", "lrr", 1),
        put("m", "format", "fastrcnn checkpoint 1"),
        put("t", "fc7.bias", "dtype", "I32"),
        put("t", "fc7.bias", "shape", [2, 2]),
        put("t", "fc7.bias", "shape", [2**62, 2**62]),
        put("t", "fc7.bias", "data_offsets", [0, 2**62]),
        put("t", "fc7.bias", "data_offsets", [-1, 16]),
    ],
)
def test_weights_whose_numbers_do_not_fit_are_refused(weights, change):
    path = damaged_weights(weights, change)
    with pytest.raises(FastRCNNError, match=r"model\.safetensors: "):
        load_model(path)


@pytest.mark.parametrize("size", [0, 1, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_size_of_the_header_is_refused(weights, size):
    weights.path.write_bytes(struct.pack("<Q", size) + weights.content[8:])
    with pytest.raises(FastRCNNError, match=r"model\.safetensors: is not a whole safetensors file"):
        load_model(weights.path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad, kind):
    path = tmp_path / "model.safetensors"
    save_file({"features.0.weight": torch.tensor([0, bad]).to(kind)}, path)
    config = configs.from_dict({**TREE, "model": {**TREE["model"], "weights": str(path), "normalisation": "caffe"}})
    with pytest.raises(
        FastRCNNError, match=r"model\.safetensors: features\.0\.weight holds numbers that are not finite"
    ):
        initialise(build(config), config)


# ---- weights of Caffe


LAYERS = {"conv1": [np.ones((2, 3, 2, 2)), np.zeros(2)], "fc6": [np.ones((4, 2)), np.zeros(4)]}


@fuzzing
@given(content=mutated([encoded(LAYERS), encoded(LAYERS, old=True), encoded(LAYERS, double=True)]))
def test_mutated_weights_of_caffe_are_read_or_refused(tmp_path, content):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    try:
        layers = read_caffemodel(path)
    except FastRCNNError as e:
        assert str(path) in str(e)
    else:
        for shape, numbers in itertools.chain(*layers.values()):
            assert math.prod(shape) == numbers.size and np.isfinite(numbers).all()


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = build(CONFIG)
    optimizer = make_optimizer(model, CONFIG.solver)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    path = save_checkpoint(folder, 3, model, optimizer, STATISTICS, CONFIG, DATA)
    return sample(path, load_latest(folder, CONFIG, DATA))


def check_checkpoint(path: Path, whole) -> None:
    """What is accepted is what was saved, to the last bit."""
    try:
        found = load_latest(path.parent, CONFIG, DATA)
    except FastRCNNError as e:
        assert str(path.parent) in str(e)
        return
    assert (found.iteration, found.normalisation) == (whole.iteration, whole.normalisation)
    assert found.optimizer.keys() == whole.optimizer.keys()
    states = [(found.optimizer[state], whole.optimizer[state]) for state in whole.optimizer]
    for ours, theirs in [(found.model, whole.model), *states]:
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert torch.equal(found.statistics.mean, whole.statistics.mean)
    assert torch.equal(found.statistics.std, whole.statistics.std)


@fuzzing
@given(data=st.data())
def test_mutated_checkpoints_are_what_was_saved_or_refused(checkpoint, data):
    head = data.draw(mutated([checkpoint.content[: checkpoint.head]]))
    checkpoint.path.write_bytes(head + checkpoint.content[checkpoint.head :])
    check_checkpoint(checkpoint.path, checkpoint.value)


@fuzzing
@given(data=st.data())
def test_checkpoints_with_a_mutated_header_are_what_was_saved_or_refused(checkpoint, data):
    write_parts(checkpoint.path, data.draw(altered(checkpoint.header)), checkpoint.tensors)
    check_checkpoint(checkpoint.path, checkpoint.value)


@pytest.mark.parametrize(("key", "value"), [("iteration", 4), ("normalisation", [[0, 0, 0], [1, 1, 1]])])
def test_the_checksum_covers_all_of_a_checkpoint(checkpoint, key, value):
    header = copy.deepcopy(checkpoint.header)
    header["__metadata__"][METADATA_KEY][key] = value
    write_parts(checkpoint.path, header, checkpoint.tensors)
    with pytest.raises(FastRCNNError, match="every checkpoint is damaged"):
        load_latest(checkpoint.path.parent, CONFIG, DATA)
    assert checkpoints(checkpoint.path.parent) == [checkpoint.path]


# ---- configurations


def check_config(path: Path) -> None:
    try:
        assert isinstance(config_files.load(path), configs.Config)
    except FastRCNNError as e:
        assert str(path) in str(e)


SAVED = yaml.safe_dump(configs.to_dict(CONFIG), sort_keys=False).encode()


@fuzzing
@given(content=mutated([SAVED, yaml.safe_dump(TREE).encode()]))
def test_mutated_configurations_are_read_or_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    check_config(path)


@fuzzing
@given(tree=altered(configs.to_dict(CONFIG)))
def test_configurations_with_mutated_values_are_taken_or_refused(tree):
    try:
        assert isinstance(configs.from_dict(tree, source="run.yaml"), configs.Config)
    except FastRCNNError as e:
        assert "run.yaml" in str(e)


# ---- detections


FOUND = [
    DetectedImage(
        image_id,
        Detections(
            np.array([[1, 2, 30, 40.5]], np.float32)[:count],
            np.array([2])[:count],
            np.array([0.75], np.float32)[:count],
            tuple(CONFIG.classes),
        ),
        file,
    )
    for image_id, count, file in (("a", 1, None), ("b", 0, "b.jpg"))
]


@pytest.fixture(scope="module")
def detections(tmp_path_factory):
    path = tmp_path_factory.mktemp("detections") / "detections.json"
    write_detections(path, CONFIG.classes, FOUND)
    return path, path.read_bytes()


def check_detections(path: Path) -> None:
    try:
        classes, found = read_detections(path)
    except FastRCNNError as e:
        assert str(path) in str(e)
    else:
        write_detections(path, classes, found)


@fuzzing
@given(data=st.data())
def test_mutated_detections_are_read_or_refused(detections, data):
    path, content = detections
    path.write_bytes(data.draw(mutated([content])))
    check_detections(path)


@fuzzing
@given(data=st.data())
def test_detections_with_mutated_values_are_read_or_refused(detections, data):
    path, content = detections
    path.write_text(json.dumps(data.draw(altered(json.loads(content)))))
    check_detections(path)


KEY = {"weights": "x", "classes": CONFIG.classes}
TOP = pack(np.zeros((2, 3), np.float32))  # what test.detections_per_class keeps of an image
LINES = [[image.to_json(), top, best] for image, top, best in zip(FOUND, (None, TOP), (None, [0.5]), strict=True)]


def as_journal(lines: list) -> bytes:
    texts = [json.dumps(line).encode() for line in [KEY, *lines]]
    return b"".join(b"[%d, %s]\n" % (zlib.crc32(text), text) for text in texts)


def check_partial(path: Path) -> None:
    """Whatever stands in it: what is taken over is good enough to be saved, the rest is done again."""
    found = [image for image, *_ in detect_set.open_journal(path, KEY).items]
    assert all(isinstance(image.id, str) for image in found)
    write_detections(path, CONFIG.classes, found)


@fuzzing
@given(content=mutated([as_journal(LINES)]))
def test_a_mutated_evaluation_under_way_is_taken_over_as_far_as_it_is_whole(tmp_path, content):
    (tmp_path / "partial").write_bytes(content)
    check_partial(tmp_path / "partial")


@fuzzing
@given(lines=altered(LINES))
def test_an_evaluation_under_way_with_mutated_values_is_taken_over_as_far_as_it_fits(tmp_path, lines):
    (tmp_path / "partial").write_bytes(as_journal(lines))
    check_partial(tmp_path / "partial")


@pytest.mark.parametrize(
    "line",
    [
        {**LINES[0][0], "classes": ["horse"]},
        {**LINES[0][0], "classes": [1]},
        {**LINES[0][0], "classes": LINES[0][0]["classes"] * 2},
        {**LINES[0][0], "scores": [float("nan")]},
        {**LINES[0][0], "boxes": [[1, 2, 1e300, 4]]},
        {**LINES[0][0], "boxes": [[9, 2, 1, 4]]},
        {**LINES[0][0], "id": 7},
        [],
    ],
)
def test_a_line_that_does_not_fit_is_done_again(tmp_path, line):
    path = tmp_path / "partial"
    path.write_bytes(as_journal([LINES[1], [line, None, None], LINES[0]]))
    assert [image.id for image, *_ in detect_set.open_journal(path, KEY).items] == ["b"]


# ---- nothing is unpickled


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_torchvision_s_weights_are_not_unpickled(tmp_path, monkeypatch):
    """Downloaded files are read as tensors only: what they would run is not run."""
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Bomb()}, tmp_path / "weights.pth")
    preset = partial(ImageClassification, crop_size=224)

    class Local(WeightsEnum):
        LOCAL = Weights(url=(tmp_path / "weights.pth").as_uri(), transforms=preset, meta={})

    monkeypatch.setitem(torchvision_weights.KNOWN, "tiny", Local)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    config = configs.from_dict({**TREE, "model": {**TREE["model"], "weights": "LOCAL"}})
    with pytest.raises(FastRCNNError, match="LOCAL"):
        initialise(build(config), config)
    assert not Path("unpickled").exists()


UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize(
    "path", sorted(Path(configs.__file__).parent.parent.glob("[ft]*s*/**/*.py")), ids=lambda path: path.name
)
def test_no_code_of_ours_unpickles(path):
    """Neither by import nor through a library that would: torch.load, np.load with allow_pickle, yaml.load, eval."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            assert path.parent.name == "tests" or not names & UNPICKLERS, f"line {node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert call not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"), f"line {node.lineno}"
        assert call != "torch.load", f"line {node.lineno}"
        assert call != "np.load" or said["allow_pickle"] == "False", f"line {node.lineno}"
        assert said.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        assert not call.endswith("get_state_dict") or said["weights_only"] == "True", f"line {node.lineno}"


# ---- metrics


METRICS = [{"iteration": 2, "loss": 1.5, "loss_cls": 1.0, "lr": 0.1}, {"iteration": 4, "map": None}]


def check_metrics(path: Path) -> None:
    """What the training loop does with them when it resumes, and with what it draws."""
    try:
        records = read_metrics(path)
        kept = Metrics(path, 3, 2).path.read_text().splitlines()
    except FastRCNNError as e:
        assert str(path) in str(e)
    else:
        assert [json.loads(line)["iteration"] for line in kept] == [
            r["iteration"] for r in records if r["iteration"] <= 3
        ]
        for key in ("loss", "loss_cls", "map"):
            assert points(records, key).shape[1] == 2


def as_lines(records: list) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@fuzzing
@given(content=mutated([as_lines(METRICS)]))
def test_mutated_metrics_are_read_or_refused(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    check_metrics(tmp_path / "metrics.jsonl")


@fuzzing
@given(records=altered(METRICS))
def test_metrics_with_mutated_values_are_read_or_refused(tmp_path, records):
    (tmp_path / "metrics.jsonl").write_bytes(as_lines(records))
    check_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("bad", ["x", [1], {}, 10**400, "[" * 100_000])
def test_metrics_that_are_no_numbers_are_refused(tmp_path, bad):
    (tmp_path / "metrics.jsonl").write_bytes(as_lines([{"iteration": 1, "loss": bad}, METRICS[0]]))
    with pytest.raises(FastRCNNError, match=r"metrics\.jsonl: line 1 "):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", [["cat"]]),
        ("solver.steps", [[30000]]),
        ("image.train_short_side", [[600]]),
        ("sampling.background_iou", [[0.1, 0.5]]),
        ("seed", 10**400),
        ("solver.lr", 10**400),
        ("model.dropout", 10**400),
    ],
)
def test_values_that_are_no_numbers_or_too_large_are_refused(tmp_path, key, value):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(TREE))
    with pytest.raises(FastRCNNError, match=rf"override .*: {key}"):
        config_files.load(tmp_path / "run.yaml", [f"{key}={json.dumps(value)}"])
