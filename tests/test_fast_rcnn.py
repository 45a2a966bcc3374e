import pytest
import torch

from fastrcnn.config import ModelConfig
from fastrcnn.detect.detector import _copied
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.fast_rcnn import FastRCNN, dropout

ROIS = [torch.tensor([[0.0, 0, 30, 40], [10, 5, 60, 50]]), torch.tensor([[5.0, 5, 45, 30]])]


def network(**changes) -> FastRCNN:
    settings = {"backbone": "tiny", "weights": None, "freeze_up_to": "conv1", "fc_width": 24, "dropout": 0.5, **changes}
    torch.manual_seed(0)
    return FastRCNN(ModelConfig(**settings), num_classes=5)


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def outputs(model, pictures, seed=None):
    seeds = None if seed is None else [seed, seed + 1000]
    return model([model.frozen_features(p) for p in pictures], ROIS, [1.0, 1.5], seeds)


def test_two_sibling_layers_for_every_roi():
    scores, deltas = outputs(network(), images((64, 80), (96, 72)))
    assert scores.shape == (3, 5) and deltas.shape == (3, 20)
    assert scores.dtype == deltas.dtype == torch.float32


def test_a_start_as_in_the_original():
    model = network(fc_width=400)
    assert model.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not any(layer.bias.any() for layer in (model.fc6, model.fc7, model.cls_score, model.bbox_pred))


def test_images_of_another_size_in_the_batch_change_nothing():
    """No padding reaches the backbone; equal sizes share a call without mixing."""
    model = network().eval()
    with torch.no_grad():
        for second in ((64, 80), (96, 72)):
            pictures = images((64, 80), second)
            alone = [model.features([p])[0] for p in pictures]
            for a, (b,) in zip(*model.features(pictures), alone, strict=True):
                assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "spp", "warp"])
def test_an_image_may_have_no_rois(kind):
    model = network(roi_features=kind, warp_size=48)
    with torch.no_grad():
        features = model.features(images((64, 80), (96, 72)))
    rois = [torch.empty(0, 4), model.project(ROIS[1], 1.0)]
    assert model.pool(features, rois).flatten(1).shape == (1, model.fc6.in_features)
    assert [len(rows) for rows in model.pool_for_inference(features, rois)] == [0, 1]


def test_frozen_layers_get_no_gradient_and_all_others_do():
    model = network()
    scores, deltas = outputs(model, images((64, 80), (64, 80)), seed=1)
    (scores.square().sum() + deltas.square().sum()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"backbone.conv1.weight", "backbone.conv1.bias"}


def test_an_unknown_layer_to_freeze_is_named_with_the_valid_ones():
    with pytest.raises(FastRCNNError, match=r"no layer 'conv9'.*conv1, relu1"):
        network(freeze_up_to="conv9")


def test_dropout_follows_its_seed_and_is_absent_without_one():
    model, pictures = network(), images((64, 80), (64, 80))
    with torch.no_grad():
        a, b, other, without = (outputs(model, pictures, seed)[0] for seed in (7, 7, 8, None))
        assert torch.equal(a, b) and not torch.equal(a, other)
        assert torch.equal(without, outputs(network(dropout=0.0), pictures, 7)[0])


def test_the_masks_of_an_image_do_not_depend_on_its_company():
    model, pictures = network(), images((64, 80), (64, 80))
    with torch.no_grad():
        both = outputs(model, pictures, 7)[0]
        maps = model.frozen_features(pictures[1])
        alone = model([maps], ROIS[1:], [1.5], [1007])[0]
    assert torch.allclose(both[2:], alone, atol=1e-6) and len(alone) == 1


def test_dropout_keeps_the_mean():
    kept = dropout(torch.ones(4000, 50), 0.3, [(torch.Generator().manual_seed(seed), 2000) for seed in (0, 1)])
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert kept.mean().item() == pytest.approx(1, abs=0.01)


def test_bfloat16_is_near_float32_and_stops_before_the_siblings():
    model, pictures = network(), images((64, 80), (96, 72))
    with torch.no_grad():
        exact = outputs(model, pictures)
        model.precision = "bfloat16"
        assert model.features(pictures)[0][0].dtype == torch.bfloat16
        rough = outputs(model, pictures)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b) and (a - b).abs().max() < 0.05 * a.abs().max()


def test_fc6_and_fc7_may_have_widths_of_their_own():
    model = network(backbone="vgg_cnn_m_1024", pool_size=2, fc_width=[40, 12])
    assert model.fc7.weight.shape == (12, 40) and model.bbox_pred.weight.shape == (20, 12)
    assert outputs(model, images((64, 80), (96, 72)))[0].shape == (3, 5)


def test_conv5_is_the_head_of_resnet50():
    """All of conv4 and conv5 learn but batch norm; a detector's copy, its batch norm folded, gives the same."""
    torch.manual_seed(0)
    model = FastRCNN(ModelConfig(backbone="resnet50", freeze_up_to="conv3_4", pool_size=4), num_classes=5)
    assert model.strides == [16] and model.cls_score.weight.shape == (5, 2048)
    assert [*model.layers][-5:] == ["conv5_1", "conv5_2", "conv5_3", "cls_score", "bbox_pred"]
    pictures = images((64, 80), (64, 80))
    scores, deltas = outputs(model, pictures, seed=1)
    (scores.square().sum() + deltas.square().sum()).backward()
    without = {name.split(".")[1][:5] for name, p in model.named_parameters() if p.grad is None}
    assert without == {"conv1", "conv2", "conv3"}
    detector = _copied(model, torch.device("cpu"))
    assert not any("bn" in name for name in detector.state_dict())
    rois = [model.project(boxes, scale) for boxes, scale in zip(ROIS, [1.0, 1.5], strict=True)]
    with torch.no_grad():
        again, _ = model.head_without_gradient(model.features(pictures), ROIS, [1.0, 1.5], None)
        chunks = detector.pool_for_inference(detector.features(pictures), rois)
        found, _ = detector.siblings(torch.cat([detector.fully_connected(chunk) for chunk in chunks]))
    for other in (again, found):
        assert (other - scores).abs().max() < 1e-4 * scores.abs().max()
