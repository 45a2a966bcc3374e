"""The door from image pixels to cells, and the ways to make features of RoIs: each against a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_roi import (
    bin_edges_oracle,
    roi_align_oracle,
    roi_cells_oracle,
    roi_pool_oracle,
    spp_cells_oracle,
    spp_oracle,
)
from torchvision.ops import roi_pool as torchvision_roi_pool

from fastrcnn.config import ModelConfig
from fastrcnn.model import roi_features
from fastrcnn.model.roi_features import (
    RoIFeatures,
    bin_edges,
    bins_first,
    channels_first,
    project,
    roi_cells,
    spp_cells,
    unique_rois,
)
from fastrcnn.model.warp import warp


def random_boxes(count: int, width: int, height: int, seed: int = 0) -> torch.Tensor:
    """Boxes with whole coordinates inside an image, half open, at least one pixel wide and high."""
    generator = np.random.default_rng(seed)
    x = np.sort(generator.integers(0, width, (count, 2)), axis=1)
    y = np.sort(generator.integers(0, height, (count, 2)), axis=1)
    return torch.tensor(np.stack((x[:, 0], y[:, 0], x[:, 1] + 1, y[:, 1] + 1), axis=1), dtype=torch.float32)


def distinct_map(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A map without ties, negative values too, all exact in float32."""
    order = np.random.default_rng(seed).permutation(channels * height * width) - channels * height * width // 2
    return torch.tensor(order.reshape(channels, height, width), dtype=torch.float32)


def way(kind="roi_pool", stride=16, offset=0.0, **settings) -> RoIFeatures:
    return RoIFeatures(ModelConfig(roi_features=kind, **settings), stride, offset)


def roi_pool(features, rois, pool_size, stride) -> torch.Tensor:
    return way(stride=stride, pool_size=pool_size).pool(features, rois)


def inference_chunks(features, rois, pool_size, stride):
    return way(stride=stride, pool_size=pool_size).pool_for_inference(features, rois)


def inference_rows(features, rois, pool_size, stride) -> torch.Tensor:
    """All chunks of pool_for_inference, put back to [R, C, P, P]."""
    rows = torch.cat([chunk.clone() for chunk in inference_chunks(features, rois, pool_size, stride)])
    return rows.unflatten(1, (pool_size, pool_size, -1)).permute(0, 3, 1, 2)


# ---- the door ----


@pytest.mark.parametrize(
    ("width", "height", "moved_at_least", "moved_at_most"), [(500, 333, 0.03, 0.08), (500, 375, 0, 0)]
)
def test_cells_of_image_pixel_boxes(width, height, moved_at_least, moved_at_most):
    scale = 600 / height
    boxes = random_boxes(500, width, height)
    expected = [
        roi_cells_oracle([np.float32(v * scale) for v in (x1, y1, x2 - 1, y2 - 1)], 1 / 16)
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    cells = roi_cells(project(boxes, scale), 1 / 16)
    assert cells.tolist() == expected
    # Taking the 1 off after scaling is another thing, at a size where it shows.
    after = boxes.double() * scale - torch.tensor([0, 0, 1, 1])
    moved = (roi_cells(after.float(), 1 / 16) != cells).float().mean().item()
    assert moved_at_least <= moved <= moved_at_most


def test_project_scales_in_float64():
    boxes = random_boxes(2000, 500, 333)
    scale = 600 / 333
    inclusive = boxes.numpy().astype(np.float64) - [0, 0, 1, 1]
    assert np.array_equal(project(boxes, scale).numpy(), (inclusive * scale).astype(np.float32))
    assert project(boxes, scale).dtype == torch.float32
    in_float32 = torch.from_numpy(inclusive.astype(np.float32)) * torch.tensor(scale, dtype=torch.float32)
    assert not torch.equal(project(boxes, scale), in_float32)  # so the test can tell the two apart


def test_half_cells_round_away_from_zero():
    just_below = float(np.nextafter(np.float32(8), np.float32(0)))
    rois = torch.tensor([[8.0, 24, 40, 56], [-8, -24, -40, 7], [just_below, -just_below, 0, 0]])
    assert roi_cells(rois, 1 / 16).tolist() == [[1, 2, 3, 4], [-1, -2, -3, 0], [0, 0, 0, 0]]


@given(st.lists(st.floats(-3000, 3000, width=32), min_size=4, max_size=4), st.sampled_from([1 / 16, 1 / 8, 0.1, 1.0]))
@settings(deadline=None, max_examples=100)
def test_cells_are_those_of_the_loop(roi, spatial_scale):
    assert roi_cells(torch.tensor([roi]), spatial_scale).tolist() == [roi_cells_oracle(roi, spatial_scale)]


# ---- bins ----


@pytest.mark.parametrize("pool_size", [1, 6, 7])
def test_bin_edges_of_every_size(pool_size):
    first = torch.full((130,), 3)
    last = first + torch.arange(130) - 1  # sizes 1 (inside out), 1, 2, ..., 129
    start, end = bin_edges(first, last, pool_size, 140)
    for r in range(130):
        expected = bin_edges_oracle(3, int(last[r]), pool_size, 140)
        assert list(zip(start[r].tolist(), end[r].tolist(), strict=True)) == expected


def test_the_last_bin_reads_past_the_roi_at_57_114_and_121():
    sizes = torch.arange(1, 129)
    _, end = bin_edges(torch.zeros_like(sizes), sizes - 1, 7, 1000)
    assert sizes[end[:, -1] > sizes].tolist() == [57, 114, 121]


@given(st.integers(-40, 80), st.integers(-40, 80), st.integers(1, 9), st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_bin_edges_are_those_of_the_loop(first, last, pool_size, length):
    start, end = bin_edges(torch.tensor([first]), torch.tensor([last]), pool_size, length)
    assert list(zip(start[0].tolist(), end[0].tolist(), strict=True)) == bin_edges_oracle(
        first, last, pool_size, length
    )


# ---- pooling ----

CASES = {
    "half cells": [[8.0, 24, 104, 120], [24, 8, 136, 152], [40, 40, 56, 56]],
    "one cell": [[0.0, 0, 0, 0], [17, 33, 18, 34], [144, 144, 144, 144]],
    "outside the map": [[-100.0, -100, -50, -50], [300, 0, 400, 50], [0, 300, 50, 400], [-90, -90, 400, 400]],
    "on an edge": [[100.0, 100, 170, 175], [-20, 60, 20, 100], [150, 150, 190, 190]],
    "inside out": [[100.0, 100, 20, 20], [10, 90, 60, 30]],
    "whole map": [[0.0, 0, 159, 175]],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pool_size", [2, 7])
def test_loop_torchvision_and_both_ways_agree(name, pool_size):
    feature, rois = distinct_map(3, 12, 10), torch.tensor(CASES[name])
    expected = torch.from_numpy(roi_pool_oracle(feature.numpy(), rois.numpy(), pool_size, 1 / 16))
    assert torch.equal(torchvision_roi_pool(feature[None], [rois], pool_size, 1 / 16), expected)
    assert torch.equal(roi_pool([feature], [rois], pool_size, 16), expected)
    assert torch.equal(inference_rows([feature], [rois], pool_size, 16), expected)


@pytest.mark.parametrize("size", [57, 114, 121])
def test_sizes_whose_float32_bins_overrun(size):
    rois = torch.tensor([[0.0, 0, size - 1, size - 1], [3, 2, size + 2, 4], [1, 1, 9, size]])
    feature = torch.zeros(1, size + 4, size + 4)
    feature[0, size, size] = 5  # one cell past the first RoI: its last bin reads it all the same
    expected = torchvision_roi_pool(feature[None], [rois], 7, 1.0)
    assert expected[0, 0, 6, 6] == 5
    assert torch.equal(inference_rows([feature], [rois], 7, 1), expected)
    noise = distinct_map(2, size + 4, size + 4)
    expected = torchvision_roi_pool(noise[None], [rois], 7, 1.0)
    assert torch.equal(inference_rows([noise], [rois], 7, 1), expected)
    assert np.array_equal(roi_pool_oracle(noise.numpy(), rois.numpy(), 7, 1.0), expected.numpy())


def test_a_box_at_the_bottom_needs_the_row_of_ceil_mode_pooling():
    rois = project(torch.tensor([[100.0, 370, 140, 375]]), 600 / 375)
    assert roi_cells(rois, 1 / 16)[0].tolist() == [10, 37, 14, 37]
    for rows, present in ((38, True), (37, False)):
        feature = torch.ones(2, rows, 50)
        for pooled in (roi_pool([feature], [rois], 7, 16), inference_rows([feature], [rois], 7, 16)):
            assert bool((pooled == 1).all()) == present
            assert bool((pooled == 0).all()) == (not present)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rois_of_two_images_in_chunks(dtype, monkeypatch):
    monkeypatch.setattr(roi_features, "ROIS_PER_CHUNK", 60)
    monkeypatch.setattr(roi_features, "BINS_PER_GATHER", 100)
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(8, *size, generator=generator).to(dtype) for size in ((38, 50), (29, 17))]
    features[1] = features[1][None].to(memory_format=torch.channels_last)[0]
    rois = [project(random_boxes(150, 500, 375), 1.6), project(random_boxes(61, 170, 290), 1.6)]
    expected = torch.cat(
        [torchvision_roi_pool(f.float()[None], [r], 7, 1 / 16) for f, r in zip(features, rois, strict=True)]
    )
    assert torch.equal(roi_pool(features, rois, 7, 16), expected)
    sizes = [len(chunk) for chunk in inference_chunks(features, rois, 7, 16)]
    assert sum(sizes) == 211
    assert max(sizes) <= 60
    pooled = inference_rows(features, rois, 7, 16)
    assert pooled.dtype == dtype
    assert torch.equal(pooled.float(), expected)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_pooling_is_torchvisions(data):
    height, width, pool_size = (data.draw(st.integers(1, n)) for n in (40, 40, 7))
    coordinate = st.one_of(st.integers(-20, 60).map(lambda v: v / 2), st.floats(-20, 60, width=32))
    rois = torch.tensor(data.draw(st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=8)), dtype=torch.float32)
    feature = distinct_map(2, height, width, data.draw(st.integers(0, 9)))
    expected = torchvision_roi_pool(feature[None], [rois], pool_size, 1.0)
    assert torch.equal(inference_rows([feature], [rois], pool_size, 1), expected)


def test_no_rois():
    feature = distinct_map(3, 5, 6)
    assert roi_pool([feature], [torch.empty(0, 4)], 7, 16).shape == (0, 3, 7, 7)
    assert [chunk.shape for chunk in inference_chunks([feature], [torch.empty(0, 4)], 7, 16)] == [(0, 3 * 49)]


def test_bins_first_reorders_fc6():
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(5, 3, 2, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    rows = pooled.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(rows @ bins_first(weight, 4).T, pooled.flatten(1) @ weight.T)


# ---- SPPnet ----


@given(
    st.lists(
        st.floats(-100, 300, width=32) | st.integers(-12, 40).map(lambda i: 8.0 * i - 0.5), min_size=4, max_size=4
    ),
    st.sampled_from([(16, 7.5), (16, 0.0), (1, 0.0)]),
)
def test_cells_of_sppnet_are_those_with_their_centres_inside(roi, geometry):
    assert spp_cells(torch.tensor([roi]), *geometry).tolist() == [spp_cells_oracle(roi, *geometry)]


def test_cells_of_sppnet_by_the_formula_of_its_appendix():
    rois = torch.tensor([[0.0, 15, 48, 49], [16, 17, 31, 30], [17, 33, 18, 34]])
    assert spp_cells(rois, 16, 0.0).tolist() == [[1, 1, 2, 3], [1, 1, 1, 1], [1, 2, 1, 2]]


def test_a_whole_picture_has_the_outer_cells_of_its_map_in_sppnet():
    """VGG16 at 600 x 800: 38 x 50 cells; the last row, at 37 x 16 + 7.5, has its centre beyond pixel 374 x 1.6."""
    whole = project(torch.tensor([[0.0, 0, 500, 375]]), 1.6)
    assert spp_cells(whole, 16, 7.5).tolist() == [[0, 0, 49, 36]]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pyramid", [[6, 3, 2, 1], [7], [2, 5, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pyramid_is_that_of_the_loop(name, pyramid, dtype, monkeypatch):
    monkeypatch.setattr(roi_features, "ROIS_PER_CHUNK", 2)
    features = [distinct_map(3, 12, 10).to(dtype), distinct_map(3, 11, 13, 1).to(dtype)]
    rois = [torch.tensor(CASES[name]), torch.tensor(CASES["on an edge"] + CASES["whole map"])]
    expected = [spp_oracle(f.float().numpy(), r.numpy(), pyramid, 16, 7.5) for f, r in zip(features, rois, strict=True)]
    one = way("spp", 16, 7.5, pyramid=pyramid)
    assert np.array_equal(one.pool(features, rois).flatten(2), np.concatenate(expected))
    rows = torch.cat([chunk.clone() for chunk in one.pool_for_inference(features, rois)])
    assert rows.dtype == dtype
    assert np.array_equal(
        channels_first(rows, sum(n * n for n in pyramid)).float(), np.concatenate(expected).reshape(len(rows), -1)
    )


# ---- RoIAlign ----


@pytest.mark.parametrize(
    "name", sorted(CASES.keys() - {"inside out"})
)  # no box is; torchvision's operation has a fault
@pytest.mark.parametrize("samples", [0, 1, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_is_that_of_the_loop(name, samples, aligned):
    feature, rois = torch.randn(2, 12, 10, generator=torch.Generator().manual_seed(0)), torch.tensor(CASES[name])
    one = way("roi_align", pool_size=3, sampling_ratio=samples, aligned=aligned)
    expected = roi_align_oracle(feature.numpy(), rois.numpy(), 3, 1 / 16, samples, aligned)
    assert np.allclose(one.pool([feature], [rois]), expected, atol=1e-5)
    for f, tolerance in ((feature, 0), (feature.bfloat16(), 0.02)):
        rows = torch.cat([chunk.clone() for chunk in one.pool_for_inference([f], [rois])])
        assert rows.dtype == f.dtype
        assert torch.allclose(channels_first(rows, 9).float(), one.pool([feature], [rois]).flatten(1), atol=tolerance)


def test_rois_of_roi_align_share_features_only_if_they_are_equal():
    rois = torch.tensor([[8.0, 24, 104, 120], [8.0, 24, 104, 120.01], [8.0, 24, 104, 120]])
    representatives, inverse = unique_rois(way("roi_align").cells(rois))
    assert sorted(representatives.tolist()) == [0, 1] and inverse[0] == inverse[2] != inverse[1]


# ---- gradients ----


def test_gradcheck():
    features = [distinct_map(2, 6, 7, seed).double().requires_grad_() for seed in (0, 1)]
    rois = [torch.tensor([[0.0, 0, 5, 5], [2, 1, 6.5, 3]]), torch.tensor([[1.0, 1, 4, 4]])]
    rois = [r.double() for r in rois]
    for one in (way(stride=1, pool_size=2), way("spp", 1, 0.0, pyramid=[2, 1])):
        assert torch.autograd.gradcheck(lambda *maps, one=one: one.pool(list(maps), rois), features)
    for samples, aligned in ((2, True), (0, False)):
        one = way("roi_align", 2, pool_size=2, sampling_ratio=samples, aligned=aligned)
        assert torch.autograd.gradcheck(lambda *maps, one=one: one.pool(list(maps), rois), features)
    rois = torch.tensor([[-1.0, 1, 5, 5], [2, 1, 9.5, 3]]).double()
    assert torch.autograd.gradcheck(lambda image: warp(image, rois, 4), torch.rand(3, 6, 7).double().requires_grad_())


@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "spp", "warp"])
def test_the_gradients_of_overlapping_rois_add_up(kind):
    """Equation 4 of the paper: that of all RoIs is the sum of those of each alone."""
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(3, 12, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[8.0, 24, 104, 120], [24, 8, 136, 152], [8, 24, 104, 120]], dtype=torch.float64)

    def gradient(rows):
        if kind == "warp":
            features = warp(feature, rois[rows] / 16, 8)
        else:
            features = way(kind, pool_size=2).pool([feature], [rois[rows]])
        weights = torch.arange(1, 1 + features[0].numel(), dtype=torch.float64).view(features[0].shape)
        return torch.autograd.grad((features * weights).sum(), feature)[0]

    alone = [gradient([r]) for r in range(3)]
    assert ((alone[0] != 0) & (alone[1] != 0)).any()
    assert torch.allclose(gradient([0, 1, 2]), sum(alone), rtol=1e-12)


def test_gradients_of_overlapping_rois_add_up_at_the_first_maximum():
    feature = torch.zeros(1, 4, 4)
    feature[0, 1, 1] = feature[0, 1, 2] = feature[0, 2, 0] = 3.0  # a tie: the first in row-major order is (1, 1)
    feature.requires_grad_()
    rois = torch.tensor([[0.0, 0, 3, 3], [1, 1, 3, 3], [2, 1, 3, 3]])
    roi_pool([feature], [rois], 1, 1).sum().backward()
    expected = torch.zeros(1, 4, 4)
    expected[0, 1, 1], expected[0, 1, 2] = 2, 1
    assert torch.equal(feature.grad, expected)


def test_bfloat16_maps_collect_their_gradient_in_float32():
    feature = torch.zeros(1, 2, 2, dtype=torch.bfloat16)
    feature[0, 0, 0] = 1
    feature.requires_grad_()
    rois = torch.zeros(300, 4)
    pooled = roi_pool([feature], [rois], 1, 1)
    assert pooled.dtype == torch.float32
    pooled.sum().backward()
    assert feature.grad[0, 0, 0] == 300  # adding ones in bfloat16 stops at 256


# ---- RoIs that share their cells ----


def test_unique_rois_hand_worked():
    cells = torch.tensor([[3, 1, 4, 4], [0, 0, 2, 2], [3, 1, 4, 4], [0, 0, 2, 3], [0, 0, 2, 2]])
    representatives, inverse = unique_rois(cells)
    assert representatives.tolist() == [1, 3, 0]
    assert inverse.tolist() == [2, 0, 2, 1, 0]


def test_rois_that_share_their_cells_share_their_features():
    feature = torch.randn(4, 19, 25, generator=torch.Generator().manual_seed(0))
    rois = project(random_boxes(400, 60, 45), 1.6)
    representatives, inverse = unique_rois(roi_cells(rois, 1 / 16))
    assert len(representatives) < 300
    pooled = inference_rows([feature], [rois[representatives]], 7, 16)[inverse]
    assert torch.equal(pooled, inference_rows([feature], [rois], 7, 16))


def test_unique_rois_of_none():
    representatives, inverse = unique_rois(torch.empty(0, 4, dtype=torch.int64))
    assert representatives.shape == inverse.shape == (0,)


def test_threads_pool_images_to_the_same_bits_and_gradients():
    rng, found = torch.Generator().manual_seed(0), []
    maps = [torch.randn(8, 9 + i, 12, generator=rng) for i in range(3)]
    corners = [torch.randint(0, 9, (20, 2), generator=rng) for _ in maps]
    cells = [torch.cat((c, c + torch.randint(0, 9, c.shape, generator=rng)), dim=1) for c in corners]
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            own = [m.clone().requires_grad_() for m in maps]
            pooled = roi_features.roi_pool(own, cells, [7])
            pooled.square().sum().backward()
            with torch.no_grad():
                assert not roi_features.roi_pool(own, cells, [3, 1]).requires_grad
        finally:
            torch.set_num_threads(threads)
        found.append([pooled.detach(), *(m.grad for m in own)])
    for alone, shared in zip(*found, strict=True):
        assert torch.equal(alone, shared) and float(alone.abs().sum()) > 0
