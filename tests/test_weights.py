import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.model import backbones
from fastrcnn.model.backbones import Normalisation
from fastrcnn.model.checkpoint_file import read_checkpoint
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model, save_weights
from fastrcnn.train.loop import train
from fastrcnn.train.step import scaled_start

STATISTICS = TargetStatistics(torch.randn(6, 4) / 10, torch.rand(6, 4) + 0.1)


@pytest.fixture
def config(tree):
    return configs.from_dict(tree)


def save(config, path):
    """A model with every kind of folding to do, and the file it is saved to."""
    model = build(config)
    scaled_start(model, 5 * torch.rand(16, model.fc6.in_features))
    model.bbox_pred.weight.data.normal_()
    save_weights(path, model, config, STATISTICS)
    return model, path


@pytest.fixture
def saved(config, tmp_path):
    return save(config, tmp_path / "model.safetensors")


def test_a_loaded_network_gives_what_the_trained_one_gave_with_statistics_folded_in(saved):
    model, path = saved
    loaded, config = load_model(path)
    pooled = 5 * torch.rand(9, model.fc6.in_features)
    with torch.no_grad():
        scores, deltas = model.siblings(model.fully_connected(pooled))
        loaded_scores, loaded_deltas = loaded.siblings(loaded.fully_connected(pooled))
    assert torch.allclose(scores, loaded_scores, atol=1e-5)
    folded = deltas.reshape(9, 6, 4) * STATISTICS.std + STATISTICS.mean
    assert torch.allclose(folded.flatten(1), loaded_deltas, atol=1e-4)
    assert config.classes == ["disc", "square", "triangle", "star", "cross"]
    assert loaded.normalisation == model.normalisation


def test_damaged_files_are_refused_by_name(saved, tmp_path):
    _, path = saved
    content = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: len(content) // 2])
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    bad = tmp_path / "nan.safetensors"
    save_file({"x": torch.tensor([torch.nan])}, bad)
    for damaged in (cut, other, bad, tmp_path / "absent.safetensors"):
        with pytest.raises(FastRCNNError, match=damaged.name):
            load_model(damaged)


def test_tensors_that_do_not_fit_their_configuration_are_refused(saved, tmp_path):
    from fastrcnn.files import read_tensors, write_tensors

    _, path = saved
    tensors, metadata = read_tensors(path)
    wrong = tmp_path / "wrong.safetensors"
    write_tensors(wrong, {**tensors, "fc7.weight": tensors["fc7.weight"][:3]}, metadata)
    with pytest.raises(FastRCNNError, match=r"wrong\.safetensors: fc7\.weight"):
        load_model(wrong)
    metadata["config"]["classes"] = []
    write_tensors(wrong, tensors, metadata)
    with pytest.raises(FastRCNNError, match=r"wrong\.safetensors: classes"):
        load_model(wrong)


@pytest.fixture
def run(config, tree, tmp_path):
    """A trained run's folder."""
    train(config)
    return tmp_path / "run"


def test_a_run_s_folder_and_a_checkpoint_are_taken_for_its_weights(run):
    weights, (before, last) = run / "model.safetensors", sorted(run.glob("checkpoint_*.safetensors"))
    expected, config = load_model(weights)
    for path in (run, last):
        found, its = load_model(path)
        assert its == config and found.normalisation == expected.normalisation
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    assert not torch.equal(load_model(before)[0].fc7.weight, expected.fc7.weight)
    weights.unlink()
    assert torch.equal(load_model(run)[0].fc7.weight, expected.fc7.weight)


def test_a_damaged_checkpoint_is_not_taken(run):
    path = sorted(run.glob("checkpoint_*"))[-1]
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(FastRCNNError, match=f"{path.name}: is damaged: its checksum"):
        load_model(path)


def vgg_tensors(with_fc=False):
    generator = torch.Generator().manual_seed(5)
    backbone = backbones.vgg16()
    found = {}
    for i, layer in enumerate(backbone):
        if hasattr(layer, "weight"):
            for part in ("weight", "bias"):
                shape = getattr(layer, part).shape
                found[f"features.{i}.{part}"] = torch.randn(shape, generator=generator).half()
    if with_fc:
        for key, inputs in (("classifier.0", 25088), ("classifier.3", 16)):
            found[f"{key}.weight"] = torch.randn(16, inputs, generator=generator).half()
            found[f"{key}.bias"] = torch.randn(16, generator=generator).half()
    return found


def test_files_of_other_tools_are_recognised(config, tree, tmp_path):
    save_file(vgg_tensors(), tmp_path / "vgg.safetensors")
    save_file({"boxes": torch.zeros(1, 4), "offsets": torch.zeros(2)}, tmp_path / "proposals.safetensors")
    torch.save({}, tmp_path / "weights.pth")
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("vgg.safetensors", r"weights to start training from.*name it as model\.weights"),
        ("proposals.safetensors", "holds proposals"),
        ("weights.pth", r"a file of torch\.save, .* convert it to \.safetensors"),
        ("empty", r"a folder without model\.safetensors or checkpoints"),
    ]:
        with pytest.raises(FastRCNNError, match=f"{name}: .*{words}"):
            load_model(tmp_path / name)
        if name != "vgg.safetensors":
            config.model.weights = str(tmp_path / name)
            with pytest.raises(FastRCNNError, match=f"{name}: .*{words.split('.*')[0]}"):
                initialise(build(config), config)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(saved, config, bad):
    model, path = saved
    before = path.read_bytes()
    model.fc7.weight.data[0, 0] = bad
    with pytest.raises(NotFiniteError, match=r"model\.safetensors: is not written: fc7\.weight holds numbers"):
        save_weights(path, model, config, STATISTICS)
    assert path.read_bytes() == before


def old_file(path, tensors, metadata):
    """The bytes that version 0.1.0 wrote: a length, a JSON header, the tensors; metadata is JSON in the header."""
    header, data = {"__metadata__": {"fastrcnn": json.dumps(metadata)}}, b""
    for name, tensor in tensors.items():
        numbers = tensor.contiguous().numpy().tobytes()
        offsets = [len(data), len(data) + len(numbers)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += numbers
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def old_tensors():
    """A network of the tiny backbone, pool size 2, fc_width 4, classes cat and dog."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"backbone.conv1": (32, 3, 5, 5), "backbone.conv2": (64, 32, 3, 3), "backbone.conv3_1": (128, 64, 3, 3)}
    shapes |= {"backbone.conv3_2": (128, 128, 3, 3), "fc6": (4, 512), "fc7": (4, 4)}
    shapes |= {"cls_score": (3, 4), "bbox_pred": (12, 4)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    return tensors


OLD_CONFIG = {
    "classes": ["cat", "dog"],
    "model": {"backbone": "tiny", "weights": "", "pool_size": 2, "fc_width": 4, "freeze_up_to": "conv1"},
    "solver": {"lr": 0.01, "backbone_lr": 0.0, "clip_gradient": 0.0},
    "train": {"eval_every": 0},
}


def test_a_weights_file_of_version_0_1_0_is_read(tmp_path):
    tensors = old_tensors()
    pixels = {"mean": [122.7717, 115.9465, 102.9801], "deviation": [1.0, 2.0, 3.0]}
    metadata = {"format": "fastrcnn weights 1", "config": OLD_CONFIG, "normalisation": pixels, "feature_scale": 0.25}
    old_file(tmp_path / "old.safetensors", tensors, metadata)
    model, config = load_model(tmp_path / "old.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert model.normalisation == Normalisation((122.7717, 115.9465, 102.9801), (1.0, 2.0, 3.0))
    assert config.classes == ["cat", "dog"] and config.model.fc_width == 4


def test_a_checkpoint_of_version_0_1_0_is_read(tmp_path):
    tensors = {f"model.{name}": tensor for name, tensor in old_tensors().items()}
    tensors["model.feature_scale"] = torch.tensor(0.5)
    tensors["momentum.fc7.bias"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    tensors["statistics.mean"], tensors["statistics.deviation"] = torch.full((3, 4), 0.1), torch.full((3, 4), 0.2)
    pixels = [[122.0, 116.0, 103.0], [1.0, 1.0, 1.0]]
    metadata = {"format": "fastrcnn checkpoint 1", "iteration": 7, "config": OLD_CONFIG, "data": "abc"}
    metadata["normalisation"] = pixels
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} torch.float32\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    path = tmp_path / "checkpoint_00000007.safetensors"
    old_file(path, tensors, {**metadata, "checksum": digest.hexdigest()})
    found = read_checkpoint(path)
    assert (found.iteration, found.data, found.normalisation.std) == (7, "abc", (1.0, 1.0, 1.0))
    assert found.optimizer["momentum_buffer"]["fc7.bias"].tolist() == [1, 2, 3, 4]
    assert found.statistics.std[0, 0] == torch.tensor(0.2)
    model, _ = load_model(path)
    assert torch.equal(model.fc6.weight, tensors["model.fc6.weight"] * 0.5)
    assert torch.allclose(model.bbox_pred.bias, tensors["model.bbox_pred.bias"] * 0.2 + 0.1)
