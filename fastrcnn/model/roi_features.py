"""RoI max pooling (paper, section 2.1): the door from image-pixel boxes to cells of the feature map.

Exact, as Caffe's ROIPooling and torchvision.ops.roi_pool: ends rounded half away from zero on the float32 product,
both inclusive; float32 bin sizes; an empty bin is 0. Training pools with torchvision's op, which has a backward. On a
CPU that op is one scalar thread, so detection pools with a range-maximum table, which gives the same values.

Shapes: R RoIs, C channels, h w cells of the feature map, P bins along each axis, U distinct bins.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torchvision.ops import roi_pool as torchvision_roi_pool

ROIS_PER_CHUNK = 512  # a chunk of 7x7x512 features is 51 MB in float32; larger ones gain nothing in fc6
BINS_PER_GATHER = 2000  # 4 MB of 512 float32 channels: the maximum finds in cache what the gather before it left there
EachBin = Callable[[Float[Tensor, "U C"]], Float[Tensor, "U _"]]  # other channels in place of those of pooled bins


def project(boxes: Float32[Tensor, "R 4"], scale: float) -> Float32[Tensor, "R 4"]:
    """Half-open boxes in image pixels -> RoIs in scaled pixels with both ends inside.

    `scale` is scaled pixels per image pixel. In float64 until the end, as fast-rcnn's lib/fast_rcnn/test.py: in
    float32, or with the 1 taken off after scaling, some ends round to another cell.
    """
    inclusive = boxes.double() - boxes.new_tensor([0, 0, 1, 1], dtype=torch.float64)
    return (inclusive * scale).float()


def roi_cells(rois: Float32[Tensor, "R 4"], spatial_scale: float) -> Int64[Tensor, "R 4"]:
    """First and last cells (x1, y1, x2, y2) of RoIs in scaled pixels, not yet clamped to the map.

    `spatial_scale` is cells per scaled pixel, 1 / 16 for VGG16. Rounds half away from zero as C's round does on the
    float32 product; torch.round would round half to even.
    """
    product = (rois * spatial_scale).double()
    return torch.copysign(torch.floor(product.abs() + 0.5), product).long()


def bin_edges(
    first: Int64[Tensor, "R"], last: Int64[Tensor, "R"], pool_size: int, length: int
) -> tuple[Int64[Tensor, "R P"], Int64[Tensor, "R P"]]:
    """Cells [start, end) of each bin along one axis of a map of `length` cells.

    Bins overlap when a RoI is not a multiple of P cells, and are empty off the map. The arithmetic is float32: at sizes
    57, 114 and 121 its rounding makes the last of 7 bins read one cell past the RoI, and so does the original.
    """
    bin_size = (last - first + 1).clamp(min=1).float() / pool_size  # an inside-out RoI is 1 cell, as in Caffe
    edges = torch.arange(pool_size + 1, device=first.device).float() * bin_size[:, None]
    start = first[:, None] + edges[:, :-1].floor().long()
    end = first[:, None] + edges[:, 1:].ceil().long()
    return start.clamp(0, length), end.clamp(0, length)


def roi_pool(
    features: list[Float[Tensor, "C _ _"]], rois: list[Float[Tensor, "_ 4"]], pool_size: int, spatial_scale: float
) -> Float[Tensor, "R C P P"]:
    """Differentiable pooling, for training, of each image's RoIs from its map; R is the sum of all images' RoIs.

    RoIs are in scaled pixels, as `project` gives them; rows come in the order of the images, whose maps may differ in
    size. The result has the RoIs' dtype: bfloat16 maps are pooled, and their gradients added up, in float32.
    """
    pooled = [
        torchvision_roi_pool(feature[None].to(r.dtype), [r], pool_size, spatial_scale)
        for feature, r in zip(features, rois, strict=True)
    ]
    return torch.cat(pooled)


def unique_rois(cells: Int64[Tensor, "R _"]) -> tuple[Int64[Tensor, "U"], Int64[Tensor, "R"]]:
    """RoIs that share all their cells have the same features: (representatives, inverse).

    `cells[representatives][inverse]` equals `cells`. A representative is the first of its kind; they are ordered by
    their cells, so that neighbours share bins. fast-rcnn's DEDUP_BOXES hashes with another rounding and gives every
    duplicate the representative's box; here each RoI keeps its own box and its exact features.
    """
    distinct, inverse = torch.unique(cells, dim=0, return_inverse=True)
    rows = torch.arange(len(cells), device=cells.device)
    first = torch.full((len(distinct),), len(cells), device=cells.device)
    return first.scatter_reduce(0, inverse, rows, "amin"), inverse


def bins_first(weight: Float[Tensor, "out CPP"], pool_size: int) -> Float[Tensor, "out CPP"]:
    """Columns of fc6, C * P * P of them, in the order of `pool_for_inference`'s rows: P * P * C.

    Done once when a detector is made: transposing each chunk of features would cost about as much as pooling it.
    """
    channels_first = weight.unflatten(1, (-1, pool_size, pool_size))
    return channels_first.permute(0, 2, 3, 1).flatten(1)


def channels_first(pooled: Float[Tensor, "R PPC"], pool_size: int) -> Float[Tensor, "R CPP"]:
    """Rows of `pool_for_inference`, copied in the order that fc6 has in training."""
    return pooled.unflatten(1, (pool_size**2, -1)).transpose(1, 2).flatten(1)


@torch.no_grad()
def pool_for_inference(
    features: list[Float[Tensor, "C _ _"]],
    rois: list[Float32[Tensor, "_ 4"]],
    pool_size: int,
    spatial_scale: float,
    each: EachBin | None = None,
) -> Iterator[Float[Tensor, "_ PPC"]]:
    """The values of `roi_pool` without a gradient, chunk by chunk: yields [r, P * P * C], r <= ROIS_PER_CHUNK.

    Arguments as for `roi_pool`. Rows are bins first, channels last: multiply them by `bins_first(fc6.weight)`. They
    have the map's dtype, for a maximum of bfloat16 numbers is one of them, and **hold only until the next chunk is
    asked for**: the buffer is used again, since fresh memory for all RoIs costs more than the pooling. Maps must be
    finite. An image without RoIs yields one chunk of no rows. `each` is applied to bins before they are copied to the
    RoIs that share them.
    """
    for feature, image_rois in zip(features, rois, strict=True):
        pool = _pool_by_table if feature.device.type == "cpu" else _pool_by_torchvision
        chunks = image_rois.tensor_split(max(1, math.ceil(len(image_rois) / ROIS_PER_CHUNK)))
        channels = each(feature.new_empty(0, len(feature))).shape[1] if each else len(feature)
        buffer = feature.new_empty(len(chunks[0]) * pool_size**2, channels)
        for chunk in chunks:
            rows = buffer[: len(chunk) * pool_size**2]
            pool(feature, chunk, pool_size, spatial_scale, each, rows)
            yield rows.view(len(chunk), pool_size**2 * channels)


def _pool_by_torchvision(
    feature: Tensor, rois: Tensor, pool_size: int, spatial_scale: float, each: EachBin | None, out: Tensor
) -> None:
    bins = roi_pool([feature], [rois], pool_size, spatial_scale).permute(0, 2, 3, 1).flatten(0, 2)
    out.copy_(each(bins) if each else bins)


def _pool_by_table(
    feature: Tensor, rois: Tensor, pool_size: int, spatial_scale: float, each: EachBin | None, out: Tensor
) -> None:
    """Pool each distinct bin once, then copy it to its RoIs: of a chunk's 25,088 about a quarter differ."""
    height, width = feature.shape[1:]
    bins, levels, index = _distinct_bins(roi_cells(rois, spatial_scale), pool_size, height, width)
    maxima = _bin_maxima(feature, bins, levels)
    torch.index_select(each(maxima).to(out.dtype) if each else maxima, 0, index, out=out)


def _distinct_bins(
    cells: Int64[Tensor, "R 4"], pool_size: int, height: int, width: int
) -> tuple[Int64[Tensor, "U 4"], Int64[Tensor, "U 2"], Int64[Tensor, "RPP"]]:
    """The bins of RoIs (cells), each kind once: bins, levels, and for each bin of each RoI its index into them.

    A bin is (x1, y1, x2, y2), half open. Its levels (y, x) are the logarithms of the largest power-of-two window that
    fits in it, -1 for an empty bin; bins are sorted by them.
    """
    x1, x2, column = _distinct_intervals(*bin_edges(cells[:, 0], cells[:, 2], pool_size, width), width)
    y1, y2, row = _distinct_intervals(*bin_edges(cells[:, 1], cells[:, 3], pool_size, height), height)
    # Small keys in int32, for those torch sorts several times faster than int64.
    keys, index = (row[:, :, None] * len(x1) + column[:, None, :]).int().flatten().unique(return_inverse=True)
    row, column = keys.long() // len(x1), keys.long() % len(x1)
    bins = torch.stack((x1[column], y1[row], x2[column], y2[row]), dim=1)

    levels = torch.frexp((bins[:, [3, 2]] - bins[:, [1, 0]]).float()).exponent.long() - 1
    levels[(levels < 0).any(dim=1)] = -1
    order = torch.argsort(levels[:, 0] * 64 + levels[:, 1], stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return bins[order], levels[order], rank[index]


def _distinct_intervals(
    start: Int64[Tensor, "R P"], end: Int64[Tensor, "R P"], length: int
) -> tuple[Int64[Tensor, "I"], Int64[Tensor, "I"], Int64[Tensor, "R P"]]:
    """Intervals of cells within [0, length], each kind once: start, end, index into them."""
    keys, index = (start * (length + 1) + end).unique(return_inverse=True)
    return keys // (length + 1), keys % (length + 1), index


def _bin_maxima(
    feature: Float[Tensor, "C h w"], bins: Int64[Tensor, "U 4"], levels: Int64[Tensor, "U 2"]
) -> Float[Tensor, "U C"]:
    """The maximum over each bin of a map; bins (cells) are sorted by `levels`.

    A range-maximum (sparse) table: a bin is covered by the 2^i x 2^j windows at its four corners, which overlap, so its
    maximum is that of four rows. Levels are made from the one before and dropped when done: three maps at a time live.
    """
    rows = window = feature.permute(1, 2, 0).contiguous()  # [h, w, C]: no copy when the map is channels_last
    maxima = feature.new_empty(len(bins), len(feature))
    scratch = feature.new_empty(BINS_PER_GATHER, len(feature))
    row_level = column_level = done = 0
    groups, counts = torch.unique_consecutive(levels, dim=0, return_counts=True)
    for (i, j), count in zip(groups.tolist(), counts.tolist(), strict=True):
        group = slice(done, done + count)
        done += count
        if i < 0:
            maxima[group] = 0  # empty bins
            continue
        if i > row_level:
            for level in range(row_level, i):
                rows = torch.maximum(rows[: -(1 << level)], rows[1 << level :])
            window, row_level, column_level = rows, i, 0
        for level in range(column_level, j):
            window = torch.maximum(window[:, : -(1 << level)], window[:, 1 << level :])
        column_level = j

        x1, y1, x2, y2 = bins[group].unbind(dim=1)
        ys = (y1, y2 - (1 << i)) if i else (y1,)  # windows one cell high or wide coincide: most bins are tiny
        xs = (x1, x2 - (1 << j)) if j else (x1,)
        corners = torch.stack([y * window.shape[1] + x for y in ys for x in xs])
        for part, at in zip(maxima[group].split(BINS_PER_GATHER), corners.split(BINS_PER_GATHER, dim=1), strict=True):
            torch.index_select(window.flatten(0, 1), 0, at[0], out=part)
            for corner in at[1:]:
                more = torch.index_select(window.flatten(0, 1), 0, corner, out=scratch[: len(part)])
                torch.maximum(part, more, out=part)
    return maxima
