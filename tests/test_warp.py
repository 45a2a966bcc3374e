"""R-CNN's way: windows and crops against a loop, and the network on each crop alone."""

import numpy as np
import pytest
import torch
from oracles_roi import warp_oracle
from test_fast_rcnn import ROIS, images, network
from torch.nn import functional as F

from fastrcnn.model import fast_rcnn
from fastrcnn.model.backbones import vgg16
from fastrcnn.model.roi_features import channels_first
from fastrcnn.model.warp import context_windows, warp


@pytest.mark.parametrize("size", [35, 48])
@pytest.mark.parametrize(
    "box", [[3.0, 4, 19, 22], [0, 0, 32, 24], [-5, 10, 12, 40], [30, 20, 31, 21], [6.5, 7.25, 8, 23.5]]
)
def test_warping_is_that_of_the_loop(size, box):
    image = torch.randn(3, 36, 48, generator=torch.Generator().manual_seed(0))
    rois = context_windows(torch.tensor([[1.0, 2, 9, 7], box]), 1.5, size)
    expected = warp_oracle(image.double().numpy(), box, 1.5, size)
    crops = warp(image, rois, size)
    assert crops.shape == (2, 3, size, size)
    assert np.allclose(crops[1], expected, atol=1e-3)
    assert np.allclose(warp(image.double(), rois.double(), size)[1], expected, atol=1e-4)


def test_what_is_warped_has_16_pixels_of_context():
    assert context_windows(torch.tensor([[10.0, 20, 106, 212]]), 2.0, 224).tolist() == [[4.0, 8.0, 228.0, 456.0]]
    image = torch.zeros(3, 300, 300)
    image[:, 50:150, 60:260] = 1
    crop = warp(image, context_windows(torch.tensor([[60.0, 50, 260, 150]]), 1.0, 224), 224)[0, 0]
    assert crop[16:-16, 16:-16].min() > 0.5 > crop[:15].max() and crop[:, -15:].max() < 0.5


def test_nothing_is_warped_from_no_rois():
    assert warp(torch.zeros(3, 5, 6), torch.empty(0, 4), 224).shape == (0, 3, 224, 224)


# ---- the network ----


def warping(monkeypatch, chunk=2, **changes):
    monkeypatch.setattr(fast_rcnn, "CROPS_PER_CHUNK", chunk)
    return network(roi_features="warp", warp_size=64, pool_size=3, **changes)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_roi_goes_through_all_layers_alone(precision, monkeypatch):
    model, pictures = warping(monkeypatch), images((64, 80), (96, 72))
    model.precision = precision
    rois = [model.project(boxes, 1.5) for boxes in (ROIS[0].repeat(2, 1), ROIS[1])]
    features = model.features(pictures)
    with torch.no_grad():
        pooled = model.pool(features, rois)
        rows = torch.cat(list(model.pool_for_inference(features, rois)))
        for i, (image, box) in enumerate(((0, 0), (0, 1), (0, 2), (0, 3), (1, 0))):
            crop = warp_oracle(pictures[image].numpy(), [ROIS[0].repeat(2, 1), ROIS[1]][image][box].tolist(), 1.5, 64)
            maps = network(roi_features="warp", warp_size=64).backbone(torch.from_numpy(crop).float()[None])
            expected = F.adaptive_max_pool2d(maps, 3)[0]
            close = 1e-3 if precision == "float32" else 0.05
            assert torch.allclose(pooled[i], expected, atol=close * expected.abs().max().item())
    assert torch.equal(channels_first(rows, 9), pooled.flatten(1))


def test_gradients_reach_the_trained_layers_and_add_up(monkeypatch):
    """In chunks whose layers are computed again, as all at once; frozen layers have none."""

    def gradients(chunk, rois):
        model = warping(monkeypatch, chunk)
        picture = images((64, 80))[0]
        pooled = model.pool(model.trained_features([model.frozen_features(picture)]), [model.project(rois, 1.0)])
        pooled.square().sum().backward()
        return {name: p.grad for name, p in model.backbone.named_parameters()}

    rois = torch.tensor([[0.0, 0, 30, 40], [10, 5, 60, 50], [20, 5, 60, 60]])
    together, once = gradients(2, rois), gradients(8, rois)
    alone = [gradients(2, roi[None]) for roi in rois]
    assert {name.split(".")[0] for name, grad in together.items() if grad is None} == {"conv1"}
    for name, gradient in together.items():
        if gradient is not None:
            assert gradient.any()
            for other in (once[name], sum(g[name] for g in alone)):
                assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_pooling_of_vgg16_at_224_is_its_own_pool5():
    """14 x 14 cells to 7 x 7, so that ImageNet's fc6 fits."""
    with torch.device("meta"):
        assert vgg16()(torch.empty(1, 3, 224, 224)).shape == (1, 512, 14, 14)
    maps = torch.randn(2, 8, 14, 14)
    assert torch.equal(F.adaptive_max_pool2d(maps, 7), F.max_pool2d(maps, 2))
