import hashlib
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from test_weights import STATISTICS, save, vgg_tensors
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights
from fastrcnn.errors import FastRCNNError
from fastrcnn.model import torchvision_weights
from fastrcnn.model.backbones import NORMALISATIONS
from fastrcnn.model.start import initialise, unfold_statistics
from fastrcnn.model.weights import build, load_model, save_weights, write_start
from fastrcnn.train.loop import train


@pytest.fixture
def config(tree):
    return configs.from_dict(tree)


@pytest.fixture
def saved(config, tmp_path):
    return save(config, tmp_path / "model.safetensors")


@pytest.fixture
def run(config, tree, tmp_path):
    """A trained run's folder."""
    train(config)
    return tmp_path / "run"


def test_an_earlier_run_is_unfolded_to_start_from(saved, config):
    model, path = saved
    config.model.weights = str(path)
    again = build(config)
    assert {"fc6", "fc7", "bbox_pred", "conv3_2"} <= initialise(again, config)
    unfold_statistics(again, STATISTICS)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("stated", ["auto", "torchvision"])
def test_an_earlier_run_brings_its_normalisation_unless_another_is_stated(config, tmp_path, stated):
    model = build(config)
    model.normalisation = NORMALISATIONS["caffe"]
    save_weights(tmp_path / "caffe.safetensors", model, config, STATISTICS)
    config.model.weights, config.model.normalisation = str(tmp_path / "caffe.safetensors"), stated
    again = build(config)
    initialise(again, config)
    assert again.normalisation == NORMALISATIONS["caffe" if stated == "auto" else stated]


def test_another_class_list_starts_its_siblings_at_random(saved, config, tree):
    _, path = saved
    other = configs.from_dict({**tree, "classes": ["cat", "dog"], "model": {**tree["model"], "weights": str(path)}})
    model = build(other)
    start = model.cls_score.weight.clone()
    assert initialise(model, other) == {"conv1", "conv2", "conv3_1", "conv3_2", "fc6", "fc7"}
    assert torch.equal(model.cls_score.weight, start)
    assert torch.equal(model.backbone.conv2.weight, load_model(path)[0].backbone.conv2.weight)


def vgg_config(tree, **model):
    settings = {"backbone": "vgg16", "freeze_up_to": "conv5_3", "fc_width": 16, **model}
    return configs.from_dict({**tree, "model": settings})


def test_a_file_with_torchvision_keys_needs_its_normalisation_stated(tree, tmp_path):
    path = tmp_path / "vgg.safetensors"
    tensors = vgg_tensors()
    save_file(tensors, path)
    config = vgg_config(tree, weights=str(path), normalisation="caffe")
    model = build(config)
    with pytest.raises(FastRCNNError, match=r"vgg\.safetensors.*model\.normalisation"):
        initialise(model, vgg_config(tree, weights=str(path)))
    assert len(initialise(model, config)) == 13  # no fc layers in it
    assert model.normalisation == NORMALISATIONS["caffe"]
    assert torch.equal(model.backbone.conv1_1.weight, tensors["features.0.weight"].float())
    assert torch.equal(model.backbone.conv5_3.bias, tensors["features.28.bias"].float())


def test_fully_connected_layers_come_along_when_they_fit(tree, tmp_path):
    path = tmp_path / "vgg.safetensors"
    tensors = vgg_tensors(with_fc=True)
    save_file(tensors, path)
    config = vgg_config(tree, weights=str(path), normalisation="caffe")
    model = build(config)
    assert {"fc6", "fc7"} <= initialise(model, config)
    assert torch.equal(model.fc6.weight, tensors["classifier.0.weight"].float())
    assert torch.equal(model.fc7.bias, tensors["classifier.3.bias"].float())
    wider = vgg_config(tree, weights=str(path), normalisation="caffe", fc_width=24)
    assert not {"fc6", "fc7"} & initialise(build(wider), wider)


def test_a_file_to_start_from_brings_its_normalisation_and_the_layers_that_fit(saved, config, tmp_path):
    model, path = saved
    start = tmp_path / "start.safetensors"
    tensors = {name: t for name, t in load_model(path)[0].state_dict().items() if name[:2] in ("ba", "fc")}
    write_start(start, tensors, NORMALISATIONS["caffe"])
    config.model.weights = str(start)
    again = build(config)
    assert initialise(again, config) == {"conv1", "conv2", "conv3_1", "conv3_2", "fc6", "fc7"}
    assert again.normalisation == NORMALISATIONS["caffe"] != model.normalisation
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in tensors.items())
    config.model.fc_width = 24
    assert not {"fc6", "fc7"} & initialise(build(config), config)
    with pytest.raises(FastRCNNError, match=r"start\.safetensors: .*to start training from"):
        load_model(start)


def test_fc6_of_other_bins_is_not_taken_over_though_they_are_as_many(tree, tmp_path):
    """A pyramid of 6x6, 3x3 and 2x2 has as many bins as 7x7, in another order."""
    config = configs.from_dict(tree)
    statistics = TargetStatistics(torch.zeros(6, 4), torch.ones(6, 4))
    save_weights(tmp_path / "model.safetensors", build(config), config, statistics)
    tree["model"]["weights"] = str(tmp_path / "model.safetensors")
    for change, same in (({"roi_features": "roi_align"}, True), ({"roi_features": "spp", "pyramid": [6, 3, 2]}, False)):
        other = configs.from_dict({**tree, "model": tree["model"] | change})
        assert ("fc6" in initialise(build(other), other)) == same


def test_torchvision_weights_are_fetched_by_name(tree, tmp_path, monkeypatch):
    """The real download code, from a local address: NaN in place of fc layers, as IMAGENET1K_FEATURES has."""
    tensors = vgg_tensors(with_fc=True)
    for key in ("classifier.0.weight", "classifier.3.weight"):
        tensors[key] = torch.full_like(tensors[key], torch.nan)
    source = tmp_path / "weights.pth"
    torch.save(tensors, source)
    named = source.rename(tmp_path / f"weights-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}.pth")
    preset = partial(ImageClassification, crop_size=224, mean=(0.5, 0.4, 0.3), std=(1 / 255, 1 / 255, 1 / 255))

    class Local(WeightsEnum):
        LOCAL = Weights(url=named.as_uri(), transforms=preset, meta={})

    monkeypatch.setitem(torchvision_weights.KNOWN, "vgg16", Local)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    config = vgg_config(tree, weights="LOCAL")
    model = build(config)
    assert initialise(model, config) == {n for n in model.backbone._modules if n.startswith("conv")}
    assert torch.equal(model.backbone.conv3_2.weight, tensors["features.12.weight"].float())
    assert model.normalisation.mean == pytest.approx((127.5, 102, 76.5))
    assert model.normalisation.std == pytest.approx((1, 1, 1))

    named.unlink()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "empty"))
    with pytest.raises(FastRCNNError, match="LOCAL cannot be downloaded"):
        initialise(build(config), config)


def test_a_name_that_is_nothing_lists_what_there_is(tree):
    config = vgg_config(tree, weights="IMAGENET")
    with pytest.raises(FastRCNNError, match="IMAGENET1K_V1"):
        initialise(build(config), config)


def test_training_starts_from_a_run_s_folder_and_from_a_checkpoint_alike(run, config):
    states = []
    for path in (run / "model.safetensors", run, sorted(run.glob("checkpoint_*"))[-1]):
        config.model.weights = str(path)
        model = build(config)
        assert "bbox_pred" in initialise(model, config)
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())


def test_resnet50_of_torchvision_is_started_from_saved_and_loaded(tree, tmp_path):
    reference = torchvision_resnet50()
    tensors = {
        name: t.clone().uniform_(0.5, 1) if "bn" in name else t
        for name, t in reference.state_dict().items()
        if "num_batches" not in name
    }
    save_file(tensors, tmp_path / "start.safetensors")
    settings = {"backbone": "resnet50", "weights": str(tmp_path / "start.safetensors"), "normalisation": "torchvision"}
    config = configs.from_dict({**tree, "model": {**settings, "freeze_up_to": "conv2_3", "pool_size": 2}})
    model = build(config)
    assert {"conv1", "bn1", "conv2_1", "conv4_6", "conv5_3"} <= initialise(model, config)
    assert torch.equal(model.backbone.bn1.running_var, tensors["bn1.running_var"])
    assert torch.equal(model.backbone.conv4_6.conv2.weight, tensors["layer3.5.conv2.weight"])
    assert torch.equal(model.conv5.conv5_1.downsample[0].weight, tensors["layer4.0.downsample.0.weight"])
    assert not any("bn" in name for name, _ in model.named_parameters())

    path = tmp_path / "model.safetensors"
    save_weights(path, model, config, STATISTICS)
    loaded, _ = load_model(path)
    expected = {name: tensor for name, tensor in model.state_dict().items() if "bbox_pred" not in name}
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in expected.items())
    config.model.weights = str(path)
    assert {"conv1", "conv5_3", "cls_score"} <= initialise(build(config), config)
    with pytest.raises(FastRCNNError, match=r"model\.safetensors: has no fc6 and fc7 to compress: .* resnet50"):
        compress_weights(path, tmp_path / "small.safetensors", {"fc6": 2, "fc7": 2})
