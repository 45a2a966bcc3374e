import logging
from threading import Event

import pytest
import torch
from oracles_roi import merged as slow_merged
from test_fast_rcnn import ROIS, images, network
from test_loop import config_of
from torch import nn

from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights
from fastrcnn.config import ModelConfig
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import prepare_image
from fastrcnn.model.fast_rcnn import FastRCNN, rms
from fastrcnn.model.roi_features import RoIFeatures, channels_first, project
from fastrcnn.model.skip_pooling import Merge
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build, load_model, save_weights
from fastrcnn.train.loop import prepare, train

LAYERS = ["pool1", "pool2", "conv3_2"]  # strides 4, 8 and 8; 32, 64 and 128 channels


def features_of(channels, dtype=torch.float32, rois=3):
    generator = torch.Generator().manual_seed(0)
    return [10**i * torch.randn(rois, c, 2, 2, generator=generator, dtype=dtype) for i, c in enumerate(channels)]


def test_merged_features_are_those_of_the_loop():
    merge, parts = Merge([3, 2, 4]), features_of([3, 2, 4])
    nn.init.normal_(merge.weight)
    parts[1][0, :, 1, 0] = 0  # a bin off the map
    for roi in range(3):
        expected = slow_merged([part[roi].tolist() for part in parts], merge.weight.tolist())
        torch.testing.assert_close(merge(parts)[roi], torch.tensor(expected))


def test_gradients_are_right():
    merge = Merge([3, 4]).double()
    parts = [part.requires_grad_() for part in features_of([3, 4], torch.float64)]

    def run(weight, *inputs):
        return torch.func.functional_call(merge, {"weight": weight}, (list(inputs),))

    assert torch.autograd.gradcheck(run, (merge.weight, *parts))


def test_it_starts_near_the_last_layer_alone_at_rms_1():
    merge, parts = Merge([256, 512]), [part.relu() for part in features_of([256, 512], rois=20)]
    merged = merge(parts).detach()
    assert rms(merged.detach()) == pytest.approx(1, rel=0.05)
    alone = parts[1] / parts[1].square().mean(dim=1, keepdim=True).sqrt()
    assert 0 < rms((merged - alone).detach()) < 0.25


def test_a_bin_of_zeros_gives_zeros_and_a_finite_gradient():
    merge, parts = Merge([3, 4]), [torch.zeros(1, c, 1, 1, requires_grad=True) for c in (3, 4)]
    out = merge(parts)
    out.sum().backward()
    assert not out.any() and all(torch.isfinite(t.grad).all() for t in (merge.weight, *parts))


def test_each_layer_is_pooled_at_its_own_stride():
    """The outputs of the layers, taken by hooks, pooled and merged one by one."""
    model = network(pool_layers=LAYERS)
    assert model.strides == [4, 8, 8] and model.stride == 8
    seen = {}
    for name in ("pool1", "pool2", "relu3_2"):
        getattr(model.backbone, name).register_forward_hook(lambda _, x, y, name=name: seen.setdefault(name, y))
    picture = images((64, 80))[0]
    rois = [project(ROIS[0], 1.0)]
    with torch.no_grad():
        model.backbone(picture[None])
        parts = [
            RoIFeatures(ModelConfig(), stride, 0.0).pool(list(maps), rois)
            for maps, stride in zip(seen.values(), model.strides, strict=True)
        ]
        assert torch.equal(model.pool(model.features([picture]), rois), model.merge(parts))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [None, LAYERS])
def test_inference_pools_what_training_pools(layers, precision):
    """Chunk by chunk, in the order of bins first; a plain network gives the same bits."""
    model = network(pool_layers=layers)
    model.precision = precision
    rois = [project(torch.rand(600, 2).mul(40).round().repeat(1, 2) + torch.tensor([0, 0, 20, 15]), 1.0), ROIS[1]]
    with torch.no_grad():
        features = model.features(images((64, 80), (96, 72)))
        plain = model.pool(features, rois).flatten(1)
        fast = torch.cat([channels_first(chunk, 49) for chunk in model.pool_for_inference(features, rois)])
    close = {"atol": 1e-5} if precision == "float32" else {"atol": 0.03, "rtol": 0.02}
    assert torch.allclose(fast.float(), plain, **close) if layers else torch.equal(fast.float(), plain)


def test_rois_that_share_cells_in_one_map_alone_differ():
    """7.9 and 8.1 pixels are cells 2 and 2 of stride 4, 1 and 1 of stride 8, but 0 and 1 of stride 16."""
    model = network(pool_layers=["pool1", "conv3_2"])
    cells = model.cells(torch.tensor([[5.9, 0, 30, 30], [3.9, 0, 30, 30], [6.1, 0, 30, 30]]))
    assert cells[:, [0, 4]].tolist() == [[1, 1], [1, 0], [2, 1]]
    assert network(pool_layers=["pool2", "conv3_2"]).cells(torch.zeros(3, 4)).shape == (3, 4)


def test_only_the_maps_that_are_pooled_are_kept():
    for layers in (None, ["conv3_2"], ["pool2", "conv3_2"], LAYERS):
        model = network(pool_layers=layers)
        features = model.features(images((64, 80), (96, 72)))
        assert [len(maps) for maps in features] == [2] * len(layers or [1])
        assert (model.merge is None) == (len(layers or [1]) == 1)


@pytest.mark.parametrize(
    ("freeze", "layers", "words"),
    [
        ("conv1", ["conv9", "conv3_2"], r"model\.pool_layers: tiny has no layer 'conv9'; it has conv1, relu1"),
        ("conv1", ["pool2"], r"the last of them conv3_2, whose features fc6 takes"),
        ("conv1", ["conv3_2", "pool2"], "the network's order"),
        ("conv1", ["pool2", "pool2", "conv3_2"], "each once"),
        ("conv2", ["conv2", "conv3_2"], "conv2 is one of the frozen layers.*the last, pool2, is kept; name that"),
        ("conv3_2", ["pool2", "conv3_2"], "pool2 is one of the frozen layers.*freeze less by model.freeze_up_to"),
    ],
)
def test_layers_that_cannot_be_pooled_are_refused(freeze, layers, words):
    with pytest.raises(FastRCNNError, match=words):
        network(freeze_up_to=freeze, pool_layers=layers)


@pytest.mark.parametrize(
    ("freeze", "layers", "strides", "channels"),
    [
        ("conv4_3", ["pool4", "conv5_3"], [16, 16], 1024),
        ("conv2_2", ["conv3_3", "conv4_3", "conv5_3"], [4, 8, 16], 1280),
    ],
)
def test_vgg16_keeps_the_shape_of_fc6(freeze, layers, strides, channels):
    """With conv1_1 to conv4_3 frozen, what is stored is the output of pool4, of as many cells as conv5_3 has."""
    with torch.device("meta"):
        model = FastRCNN(ModelConfig(freeze_up_to=freeze, pool_layers=layers), num_classes=21)
        maps = [model.backbone[:end](torch.empty(1, 3, 400, 500)) for end in model.pooled_ends]
    assert model.strides == strides and model.merge.weight.shape == (512, channels)
    assert model.fc6.weight.shape == (4096, 512 * 49)
    assert [m.shape[2:] for m in maps] == [(-(-400 // s), -(-500 // s)) for s in strides]
    assert (model.pooled_ends[0] == model.frozen_depth) == (freeze == "conv4_3")


def test_other_layers_start_as_without():
    model, plain = network(pool_layers=LAYERS).state_dict(), network().state_dict()
    assert model.keys() - plain.keys() == {"merge.weight"}
    assert all(torch.equal(model[name], plain[name]) for name in plain)


@pytest.fixture
def merged(tree):
    tree["model"] |= {"pool_layers": LAYERS, "freeze_up_to": "conv1"}
    return tree


def test_weights_detector_and_svd_take_the_merge_along(merged, tmp_path):
    config = config_of(merged, tmp_path / "run", max_iterations=2)
    weights = train(config)
    model, saved = load_model(weights)
    assert saved.model.pool_layers == LAYERS
    picture = images((96, 120))[0]
    rois = torch.rand(700, 2).mul(60).round().repeat(1, 2) + torch.tensor([0, 0, 30, 25])
    pixels = picture.permute(1, 2, 0).mul(40).add(120).clamp(0, 255).byte().numpy()
    detector = Detector(model, config, torch.device("cpu"))
    scores, _ = detector.classify(pixels, rois)
    prepared = prepare_image(pixels, 1.0, model.normalisation.mean, model.normalisation.std)
    with torch.no_grad():
        expected = model([model.frozen_features(prepared)], [rois], [1.0], None)[0].softmax(dim=1)
    assert torch.allclose(scores, expected, atol=1e-5)
    compress_weights(weights, tmp_path / "small.safetensors", {"fc6": 32, "fc7": 32})
    small, _ = load_model(tmp_path / "small.safetensors")
    with torch.no_grad():
        again = small([small.frozen_features(prepared)], [rois], [1.0], None)[0].softmax(dim=1)
    assert torch.allclose(again, expected, atol=1e-4)


def test_a_run_starts_from_one_of_the_same_layers(merged, tmp_path, caplog):
    first = train(config_of(merged, tmp_path / "first", max_iterations=2))
    merged["model"]["weights"] = str(first)
    config = config_of(merged, tmp_path / "second")
    model = build(config)
    assert {"merge", "fc6", "fc7", "cls_score", "bbox_pred"} <= initialise(model, config)
    assert torch.equal(model.merge.weight, load_model(first)[0].merge.weight)
    for other in (None, ["pool2", "conv3_2"]):
        merged["model"]["pool_layers"] = other
        config = config_of(merged, tmp_path / "third")
        with caplog.at_level(logging.WARNING):
            loaded = initialise(build(config), config)
        assert not {"merge", "fc6", "fc7", "cls_score"} & loaded and "conv3_2" in loaded
        assert "its fc6 takes merged features of pool1, pool2, conv3_2" in caplog.text
        caplog.clear()


def test_a_merge_before_a_trained_fc6_has_the_size_that_it_knows(tree, tmp_path):
    """A plain run's weights: the first loss of the run with skip pooling is near the last of the plain one."""
    plain = build(config := config_of(tree, tmp_path / "plain"))
    statistics = TargetStatistics(torch.zeros(6, 4), torch.ones(6, 4))
    save_weights(tmp_path / "plain.safetensors", plain, config, statistics)
    tree["model"] |= {"weights": str(tmp_path / "plain.safetensors"), "pool_layers": ["pool2", "conv3_2"]}
    run = prepare(config_of(tree, tmp_path / "merged"), False, [], Event())
    batch = run.dataset.batch(0)
    maps = [run.model.frozen_features(image) for image in batch.images]
    with torch.no_grad():
        rois = [project(b, s) for b, s in zip(batch.rois, batch.scales, strict=True)]
        features = run.model.trained_features(maps)
        merged = run.model.pool(features, rois) * run.model.feature_scale
        assert rms(merged) == pytest.approx(rms(plain.pool(plain.trained_features(maps), rois)), rel=0.2)
