import hashlib
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.errors import FastRCNNError
from fastrcnn.model import weights as module
from fastrcnn.model.backbones import NORMALISATIONS
from fastrcnn.model.fast_rcnn import scaled_start
from fastrcnn.model.weights import build, initialise, load_model, save_weights, unfold_statistics

STATISTICS = TargetStatistics(torch.randn(6, 4) / 10, torch.rand(6, 4) + 0.1)


@pytest.fixture
def config(tree):
    return configs.from_dict(tree)


@pytest.fixture
def saved(config, tmp_path):
    """A model with every kind of folding to do, and the file it was saved to."""
    model = build(config)
    scaled_start(model, 5 * torch.rand(16, model.fc6.in_features))
    model.bbox_pred.weight.data.normal_()
    path = tmp_path / "model.safetensors"
    save_weights(path, model, config, STATISTICS)
    return model, path


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


def test_an_earlier_run_is_unfolded_to_start_from(saved, config):
    model, path = saved
    config.model.weights = str(path)
    again = build(config)
    assert {"fc6", "fc7", "bbox_pred", "conv3_2"} <= initialise(again, config)
    unfold_statistics(again, STATISTICS)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("stated", ["", "torchvision"])
def test_an_earlier_run_brings_its_normalisation_unless_another_is_stated(config, tmp_path, stated):
    model = build(config)
    model.normalisation = NORMALISATIONS["caffe"]
    save_weights(tmp_path / "caffe.safetensors", model, config, STATISTICS)
    config.model.weights, config.model.normalisation = str(tmp_path / "caffe.safetensors"), stated
    again = build(config)
    initialise(again, config)
    assert again.normalisation == NORMALISATIONS[stated or "caffe"]


def test_another_class_list_starts_its_siblings_at_random(saved, config, tree):
    _, path = saved
    other = configs.from_dict({**tree, "classes": ["cat", "dog"], "model": {**tree["model"], "weights": str(path)}})
    model = build(other)
    start = model.cls_score.weight.clone()
    assert initialise(model, other) == {"conv1", "conv2", "conv3_1", "conv3_2", "fc6", "fc7"}
    assert torch.equal(model.cls_score.weight, start)
    assert torch.equal(model.backbone.conv2.weight, load_model(path)[0].backbone.conv2.weight)


def vgg_tensors(with_fc=False):
    generator = torch.Generator().manual_seed(5)
    backbone = module.backbones.vgg16()
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


def vgg_config(tree, **model):
    settings = {"backbone": "vgg16", "freeze_up_to": "conv5_3", "fc_width": 16, **model}
    return configs.from_dict({**tree, "model": settings})


def test_a_file_with_torchvision_keys_needs_its_normalisation_stated(tree, tmp_path):
    path = tmp_path / "vgg.safetensors"
    tensors = vgg_tensors()
    save_file(tensors, path)
    with pytest.raises(FastRCNNError, match=r"vgg\.safetensors.*model\.normalisation"):
        initialise(None, vgg_config(tree, weights=str(path)))
    config = vgg_config(tree, weights=str(path), normalisation="caffe")
    model = build(config)
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

    monkeypatch.setattr(module, "VGG16_Weights", Local)
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
        initialise(None, config)


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
