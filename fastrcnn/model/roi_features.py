"""From RoIs and a feature map to what fc6 takes: the door from image-pixel boxes to cells, and three ways to pool.

RoI max pooling (paper, section 2.1) is exact, as Caffe's ROIPooling and torchvision.ops.roi_pool: ends rounded half
away from zero on the float32 product, both inclusive; float32 bin sizes; an empty bin is 0. SPPnet's pyramid has cells
of its own and several sizes of bins. RoIAlign has no cells. The fourth way, R-CNN's, is in model/warp.py.

Training pools with torchvision's operations, which have a backward. On a CPU they are one scalar thread, so detection
takes maxima from a range-maximum table, which gives the same values.

Shapes: R RoIs, C channels, h w cells of the feature map, P bins along each axis, B bins of a RoI, U distinct bins.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Float32, Int64, Real, Shaped
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.ops import roi_pool as torchvision_roi_pool

from fastrcnn.config import ModelConfig

ROIS_PER_CHUNK = 512  # a chunk of 7x7x512 features is 51 MB in float32; larger ones gain nothing in fc6
LEVELS = 64  # more than the logarithm of any map's side
BINS_PER_GATHER = 2000  # 4 MB of 512 float32 channels: the maximum finds in cache what the gather before it left there
EachBin = Callable[[Real[Tensor, "U C"]], Float[Tensor, "U _"]]  # other channels in place of those of pooled bins


def project(boxes: Float32[Tensor, "R 4"], scale: float) -> Float32[Tensor, "R 4"]:
    """Half-open boxes in image pixels -> RoIs in scaled pixels with both ends inside.

    `scale` is scaled pixels per image pixel. In float64 until the end, as fast-rcnn's lib/fast_rcnn/test.py: in
    float32, or with the 1 taken off after scaling, some ends round to another cell.
    """
    exact = boxes.double()
    return (torch.cat((exact[:, :2], exact[:, 2:] - 1), dim=1) * scale).float()


def roi_cells(rois: Float[Tensor, "R 4"], spatial_scale: float) -> Int64[Tensor, "R 4"]:
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


def spp_cells(rois: Float[Tensor, "R 4"], stride: int, offset: float) -> Int64[Tensor, "R 4"]:
    """First and last cells (x1, y1, x2, y2) of RoIs in SPPnet, not yet clamped to the map: those whose receptive fields
    have their centres, `offset` + `stride` times the cell, strictly inside the RoI.

    floor(x / stride) + 1 for the left and top, ceil(x / stride) - 1 for the right and bottom, and the offset that other
    paddings than theirs need (SPPnet, appendix A). A RoI without any has the one in the middle of the two (SPP_net,
    spm_pool_caffe_mex.cpp).
    """
    place = (rois.double() - offset) / stride
    first, last = place[:, :2].floor() + 1, place[:, 2:].ceil() - 1
    middle, none = ((first + last) / 2).floor(), first > last
    return torch.cat((first.where(~none, middle), last.where(~none, middle)), dim=1).long()


def roi_pool(
    features: list[Float[Tensor, "C _ _"]], cells: list[Int64[Tensor, "_ 4"]], sizes: Sequence[int]
) -> Float[Tensor, "R C *bins"]:
    """Differentiable max pooling, for training, of each image's RoIs, given as cells, from its map.

    R is the sum of all images' RoIs, in the order of the images, whose maps may differ in size. `sizes` are the bins on
    a side: [P] gives [R, C, P, P], a pyramid [R, C, B], level by level. Maps of 16 bits are pooled, and their gradients
    added up, in float32. On a CPU images are shared by threads, as torchvision's operation has one.
    """
    learning, workers = torch.is_grad_enabled(), min(len(features), torch.get_num_threads())

    def of_image(pair: tuple[Float[Tensor, "C h w"], Int64[Tensor, "r 4"]]) -> Float[Tensor, "r C *bins"]:
        feature, c = pair
        with torch.set_grad_enabled(learning):  # each thread has its own
            whole = feature[None].to(torch.promote_types(feature.dtype, torch.float32))
            levels = [torchvision_roi_pool(whole, [c.to(whole.dtype)], size, 1.0) for size in sizes]
            return levels[0] if len(levels) == 1 else torch.cat([level.flatten(2) for level in levels], dim=2)

    pairs = zip(features, cells, strict=True)
    if workers < 2 or features[0].device.type != "cpu":
        return torch.cat([*map(of_image, pairs)])
    with ThreadPoolExecutor(workers) as pool:
        return torch.cat([*pool.map(of_image, pairs)])


class RoIFeatures:
    """How the features of RoIs come from the maps of one layer: model.roi_features, but for warp."""

    def __init__(self, config: ModelConfig, stride: int, offset: float):
        """Scaled pixels from cell to cell, and of the centre of cell 0's receptive field."""
        self.config, self.stride, self.offset = config, stride, offset

    def project(self, boxes: Float32[Tensor, "R 4"], scale: float) -> Float32[Tensor, "R 4"]:
        """Half-open boxes in image pixels -> RoIs in scaled pixels; those of RoIAlign stay half open."""
        return (boxes.double() * scale).float() if self.config.roi_features == "roi_align" else project(boxes, scale)

    def cells(self, rois: Float[Tensor, "R 4"]) -> Shaped[Tensor, "R 4"]:
        """What the features of RoIs in scaled pixels depend on: their cells; for RoIAlign the RoIs themselves."""
        if self.config.roi_features == "roi_align":
            return rois
        if self.config.roi_features == "spp":
            return spp_cells(rois, self.stride, self.offset)
        return roi_cells(rois, 1 / self.stride)

    def _cells_of_map(self, feature: Real[Tensor, "C h w"], rois: Float[Tensor, "R 4"]) -> Int64[Tensor, "R 4"]:
        """SPPnet clamps a RoI to the map; of Fast R-CNN's, bins off the map are empty."""
        cells = self.cells(rois)
        if self.config.roi_features != "spp":
            return cells
        height, width = feature.shape[1:]
        return torch.stack((cells[:, ::2].clamp(0, width - 1), cells[:, 1::2].clamp(0, height - 1)), dim=2).flatten(1)

    def pool(
        self, features: list[Float[Tensor, "C _ _"]], rois: list[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "R C *bins"]:
        """With gradient, the features of each image's RoIs, in scaled pixels, from its map: as `roi_pool`."""
        config = self.config
        if config.roi_features != "roi_align":
            return roi_pool(
                features, [self._cells_of_map(*pair) for pair in zip(features, rois, strict=True)], config.bins
            )
        how = (config.pool_size, 1 / self.stride, config.sampling_ratio, config.aligned)
        return torch.cat([roi_align(f[None].to(r.dtype), [r], *how) for f, r in zip(features, rois, strict=True)])

    @torch.no_grad()
    def pool_for_inference(
        self,
        features: list[Real[Tensor, "C _ _"]],
        rois: list[Float32[Tensor, "_ 4"]],
        each: EachBin | None = None,
    ) -> Iterator[Real[Tensor, "_ BC"]]:
        """The values of `pool` without a gradient, chunk by chunk: yields [r, B * C], r <= ROIS_PER_CHUNK.

        Rows are bins first, channels last: multiply them by `bins_first(fc6.weight)`. They have the map's dtype, for a
        maximum of some numbers is one of them, and **hold only until the next chunk is asked for**: the buffer is
        used again, since fresh memory for all RoIs costs more than the pooling. Maps must be finite. An image without
        RoIs yields one chunk of no rows. `each` is applied to bins before they are copied to the RoIs that share them;
        of uint8 maps, rows then have the dtype that it gives.
        """
        count = self.config.bins_per_roi
        for feature, image_rois in zip(features, rois, strict=True):
            by_table = feature.device.type == "cpu" and self.config.roi_features != "roi_align"
            chunks = image_rois.tensor_split(max(1, math.ceil(len(image_rois) / ROIS_PER_CHUNK)))
            none = feature.new_empty(0, len(feature))
            kind = each(none) if each else none
            dtype = feature.dtype if feature.is_floating_point() else kind.dtype
            buffer = feature.new_empty(len(chunks[0]) * count, kind.shape[1], dtype=dtype)
            for chunk in chunks:
                rows = buffer[: len(chunk) * count]
                if by_table:
                    _pool_by_table(feature, self._cells_of_map(feature, chunk), self.config.bins, each, rows)
                else:
                    bins = self.pool([feature], [chunk]).flatten(2).transpose(1, 2).flatten(0, 1)
                    rows.copy_(each(bins) if each else bins)
                yield rows.view(len(chunk), count * kind.shape[1])


def unique_rois(cells: Shaped[Tensor, "R _"]) -> tuple[Int64[Tensor, "U"], Int64[Tensor, "R"]]:
    """RoIs that share all their cells have the same features: (representatives, inverse).

    `cells[representatives][inverse]` equals `cells`. A representative is the first of its kind; they are ordered by
    their cells, so that neighbours share bins. fast-rcnn's DEDUP_BOXES hashes with another rounding and gives every
    duplicate the representative's box; here each RoI keeps its own box and its exact features.
    """
    distinct, inverse = torch.unique(cells, dim=0, return_inverse=True)
    rows = torch.arange(len(cells), device=cells.device)
    first = torch.full((len(distinct),), len(cells), device=cells.device)
    return first.scatter_reduce(0, inverse, rows, "amin"), inverse


def bins_first(weight: Real[Tensor, "out CB"], bins: int) -> Real[Tensor, "out CB"]:
    """Columns of fc6, C * B of them, in the order of `pool_for_inference`'s rows: B * C.

    Done once when a detector is made: transposing each chunk of features would cost about as much as pooling it.
    """
    return weight.unflatten(1, (-1, bins)).transpose(1, 2).flatten(1)


def channels_first(pooled: Float[Tensor, "R BC"], bins: int) -> Float[Tensor, "R CB"]:
    """Rows of `pool_for_inference`, copied in the order that fc6 has in training."""
    return pooled.unflatten(1, (bins, -1)).transpose(1, 2).flatten(1)


def _pool_by_table(feature: Tensor, cells: Tensor, sizes: Sequence[int], each: EachBin | None, out: Tensor) -> None:
    """Pool each distinct bin once, then copy it to its RoIs: of a chunk's 25,088 about a quarter differ."""
    height, width = feature.shape[1:]
    bins, levels, index = _distinct_bins(cells, sizes, height, width)
    maxima = _bin_maxima(feature, bins, levels)
    torch.index_select(each(maxima).to(out.dtype) if each else maxima, 0, index, out=out)


def _distinct_bins(
    cells: Int64[Tensor, "R 4"], sizes: Sequence[int], height: int, width: int
) -> tuple[Int64[Tensor, "U 4"], Int64[Tensor, "U"], Int64[Tensor, "RB"]]:
    """The bins of RoIs (cells), each kind once: bins, levels, and for each bin of each RoI its index into them.

    A bin is (x1, y1, x2, y2), half open. Its level is LEVELS * i + j where 2^i rows of 2^j cells are the largest
    power-of-two window that fits in it, -1 for an empty bin; bins are sorted by level.
    """
    x1, x2, columns = _distinct_intervals(cells[:, 0], cells[:, 2], sizes, width)
    y1, y2, rows = _distinct_intervals(cells[:, 1], cells[:, 3], sizes, height)
    pairs = [row[:, :, None] * len(x1) + column[:, None, :] for row, column in zip(rows, columns, strict=True)]
    # Small keys in int32, for those torch sorts several times faster than int64.
    keys, index = torch.cat([p.int().flatten(1) for p in pairs], dim=1).flatten().unique(return_inverse=True)
    row, column = keys.long() // len(x1), keys.long() % len(x1)
    bins = torch.stack((x1[column], y1[row], x2[column], y2[row]), dim=1)

    log2 = torch.frexp((bins[:, [3, 2]] - bins[:, [1, 0]]).float()).exponent.long() - 1
    levels = torch.where((log2 < 0).any(dim=1), -1, LEVELS * log2[:, 0] + log2[:, 1])
    order = torch.argsort(levels, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return bins[order], levels[order], rank[index]


def _distinct_intervals(
    first: Int64[Tensor, "R"], last: Int64[Tensor, "R"], sizes: Sequence[int], length: int
) -> tuple[Int64[Tensor, "I"], Int64[Tensor, "I"], list[Int64[Tensor, "R _"]]]:
    """The bins along one axis of a map of `length` cells, each kind once: start, end, and the index into them of each
    size's bins."""
    edges = [bin_edges(first, last, size, length) for size in sizes]
    keys, index = torch.cat([start * (length + 1) + end for start, end in edges], dim=1).unique(return_inverse=True)
    return keys // (length + 1), keys % (length + 1), list(index.split(list(sizes), dim=1))


def _bin_maxima(
    feature: Real[Tensor, "C h w"], bins: Int64[Tensor, "U 4"], levels: Int64[Tensor, "U"]
) -> Real[Tensor, "U C"]:
    """The maximum over each bin of a map; bins (cells) are sorted by `levels`.

    A range-maximum (sparse) table: a bin is covered by the 2^i x 2^j windows at its four corners, which overlap, so its
    maximum is that of four rows. Levels are made from the one before and dropped when done: three maps at a time live.
    """
    rows = window = feature.permute(1, 2, 0).contiguous()  # [h, w, C]: no copy when the map is channels_last
    maxima = feature.new_empty(len(bins), len(feature))
    scratch = feature.new_empty(BINS_PER_GATHER, len(feature))
    row_level = column_level = done = 0
    groups, counts = torch.unique_consecutive(levels, return_counts=True)
    for group_level, count in zip(groups.tolist(), counts.tolist(), strict=True):
        i, j = divmod(group_level, LEVELS)
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
