"""Fast R-CNN (Girshick 2015, figure 1): feature map, RoI pooling, fc6, fc7, and two sibling layers.

Shapes: N images, R RoIs in the batch, K classes with background, C channels, h w feature map, P bins a side.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Real, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrcnn.config import ModelConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.model import backbones, onednn
from fastrcnn.model.receptive_field import receptive_field
from fastrcnn.model.roi_features import RoIFeatures, channels_first, unique_rois
from fastrcnn.model.score_thresholds import ScoreThresholds
from fastrcnn.model.skip_pooling import Merge, pooled_ends
from fastrcnn.model.warp import CROPS_PER_CHUNK, context_windows, warp
from fastrcnn.threads import all_threads

REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Features = list[list[Real[Tensor, "_ _ _"]]]  # for each layer that RoIs are pooled from, the map of each image


class FastRCNN(nn.Module):
    """The network. Forward is for training; detection calls its parts (fastrcnn/detect/detector.py)."""

    feature_scale: Float32[Tensor, ""]  # one constant that pooled features are multiplied by

    def __init__(self, config: ModelConfig, num_classes: int, precision: str = "float32"):
        """Random weights: num_classes is K; precision applies to convolutions, fc6 and fc7 only.

        Raises FastRCNNError for freeze_up_to or pool_layers that the backbone does not have.
        """
        super().__init__()
        self.config, self.num_classes, self.precision = config, num_classes, precision
        self.normalisation = backbones.NORMALISATIONS["torchvision"]
        self.score_thresholds: ScoreThresholds | None = None  # travel with the weights, too
        self.svms = False  # whether cls_score holds SVMs; the same
        self.int8 = False  # whether int8.convert was here
        layers = backbones.BUILDERS[config.backbone]()
        end = len(layers) - backbones.HEAD_BLOCKS.get(config.backbone, 0)
        self.backbone, self.conv5 = layers[:end], layers[end:]  # conv5 of pooled features; empty where fc6 takes them
        try:
            self.frozen_depth = backbones.frozen_depth(self.backbone, config.freeze_up_to)
        except KeyError as e:
            raise FastRCNNError(f"model.freeze_up_to: {config.backbone} has {e.args[0]}") from None
        for layer in self.backbone[: self.frozen_depth]:
            layer.requires_grad_(False)

        self.pooled_ends = pooled_ends(self.backbone, config, self.frozen_depth)
        fields = [receptive_field(self.backbone[:end]) for end in self.pooled_ends]
        self.strides = [field.stride for field in fields]
        self.roi_features = [RoIFeatures(config, field.stride, field.offset) for field in fields]
        channels = [backbones.output_channels(self.backbone[:end]) for end in self.pooled_ends]
        self.detects = False  # a detector's copy takes rows of pool_for_inference, and has the feature scale in fc6
        self._make_head(channels[-1] * config.bins_per_roi)
        self.merge = Merge(channels) if len(channels) > 1 else None
        # train/step.py sets it, saving folds it into fc6.
        self.register_buffer("feature_scale", torch.ones(()))
        self.to(memory_format=torch.channels_last)

    def _make_head(self, inputs: int) -> None:
        """The layers after RoI pooling, which gives so many numbers for each RoI, at random weights."""
        if self.conv5:
            width = backbones.output_channels(self.conv5)
        else:
            fc6_width, width = self.config.fc_widths
            self.fc6, self.fc7 = onednn.Linear(inputs, fc6_width), onednn.Linear(fc6_width, width)
        self.cls_score = nn.Linear(width, self.num_classes)
        self.bbox_pred = nn.Linear(width, 4 * self.num_classes)
        for name in self.fc_layers:
            nn.init.kaiming_normal_(getattr(self, name).weight, nonlinearity="relu")
        nn.init.normal_(self.cls_score.weight, std=0.01)  # this and the next: models/VGG16/train.prototxt
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for name in (*self.fc_layers, "cls_score", "bbox_pred"):
            nn.init.zeros_(getattr(self, name).bias)

    @property
    def fc_layers(self) -> tuple[str, ...]:
        """The names of the fully connected layers before the two sibling layers; none where conv5 is there instead."""
        return () if self.conv5 else ("fc6", "fc7")

    @property
    def layers(self) -> dict[str, nn.Module]:
        """All that has weights, by name: layers, or residual blocks, from the picture to the two sibling layers."""
        names = (*self.fc_layers, "merge", "cls_score", "bbox_pred")
        after = [(name, layer) for name in names if (layer := getattr(self, name))]
        found = [*self.backbone.named_children(), *self.conv5.named_children(), *after]
        return {name: layer for name, layer in found if backbones.learns(layer)}

    @property
    def stride(self) -> int:
        """Image pixels per cell of the last layer's map."""
        return self.strides[-1]

    @property
    def device(self) -> torch.device:
        return self.cls_score.weight.device

    @property
    def feature_type(self) -> torch.dtype:
        """Of the frozen layers' output."""
        if self.int8:
            return torch.uint8 if self.frozen_depth else torch.float32  # with none frozen, the image's own
        return REDUCED.get(self.precision, torch.float32)

    def _reduced_precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, REDUCED.get(self.precision), enabled=self.precision in REDUCED)

    @all_threads()
    def frozen_features(self, image: Float[Tensor, "3 H W"]) -> Real[Tensor, "c _ _"]:
        """The layers that never change: a normalised image -> their output, without gradient.

        One image a call, so that the numbers do not depend on the company an image has in its batch. Where RoIs are
        warped no layer sees the whole image, and it comes back as it is.
        """
        if self.warps:
            return image
        with torch.no_grad(), self._reduced_precision():
            maps = image[None].contiguous(memory_format=torch.channels_last)
            for layer in self.backbone[: self.frozen_depth]:
                maps = layer(maps)
            return maps[0].to(self.feature_type)  # local response normalisation gives float32

    @all_threads()
    def trained_features(self, maps: list[Real[Tensor, "c _ _"]]) -> Features:
        """The layers that learn: N outputs of frozen_features -> N feature maps of each pooled layer.

        Images of equal size share a call; none is padded, so that no feature is computed from padding. Where RoIs are
        warped, the images themselves.
        """
        if self.warps:
            return [maps]
        result, segments = [list(maps) for _ in self.pooled_ends], [*pairwise([self.frozen_depth, *self.pooled_ends])]
        with self._reduced_precision():
            for shape in dict.fromkeys(m.shape for m in maps):
                same = [i for i, m in enumerate(maps) if m.shape == shape]
                outputs = torch.stack([maps[i] for i in same]).contiguous(memory_format=torch.channels_last)
                for of_layer, (start, end) in zip(result, segments, strict=True):
                    outputs = self.backbone[start:end](outputs)
                    for i, output in zip(same, outputs, strict=True):
                        of_layer[i] = output
        return result

    def features(self, images: list[Float[Tensor, "3 _ _"]]) -> Features:
        """N normalised images, whose sizes may differ -> N feature maps of each pooled layer."""
        return self.trained_features([self.frozen_features(image) for image in images])

    @property
    def warps(self) -> bool:
        """Whether each RoI goes through all layers on its own, as in R-CNN."""
        return self.config.roi_features == "warp"

    def project(self, boxes: Float32[Tensor, "R 4"], scale: float) -> Float32[Tensor, "R 4"]:
        """Half-open boxes in image pixels -> RoIs in scaled pixels, as `pool` takes them; `scale` is scaled pixels per
        image pixel."""
        if self.warps:
            return context_windows(boxes, scale, self.config.warp_size)
        return self.roi_features[-1].project(boxes, scale)

    def cells(self, rois: Float[Tensor, "R 4"]) -> Shaped[Tensor, "R _"]:
        """What the features of projected RoIs depend on, their cells in every pooled map or, in ways without cells, the
        RoIs: those that share them all have the same features."""
        if self.warps:
            return rois
        of_strides = {layer.stride: layer for layer in self.roi_features}
        return torch.cat([layer.cells(rois) for layer in of_strides.values()], dim=1)

    def _merged(self, parts: list[Float[Tensor, "R _ *bins"]]) -> Float[Tensor, "R C *bins"]:
        if self.merge is None:
            return parts[0]
        with self._reduced_precision():
            return self.merge(parts)

    def pool(self, features: Features, rois: list[Float[Tensor, "_ 4"]]) -> Float[Tensor, "R C *bins"]:
        """What fc6 takes, with gradient, of each image's projected RoIs, in the order of the images."""
        if self.warps:
            return torch.cat([part for pair in zip(features[0], rois, strict=True) for part in self._warped(*pair)])
        layers = zip(self.roi_features, features, strict=True)
        return self._merged([layer.pool(maps, rois) for layer, maps in layers])

    @torch.no_grad()
    def pool_for_inference(
        self, features: Features, rois: list[Float32[Tensor, "_ 4"]]
    ) -> Iterator[Real[Tensor, "_ BC"]]:
        """The values of `pool` without gradient, chunk by chunk: as RoIFeatures.pool_for_inference.

        Layers are merged bin by bin, before bins are copied to the RoIs that share them.
        """
        if self.warps:
            for pair in zip(features[0], rois, strict=True):
                yield from (part.flatten(2).transpose(1, 2).flatten(1) for part in self._warped(*pair))
            return
        layers = []
        for i, (layer, maps) in enumerate(zip(self.roi_features, features, strict=True)):
            each = partial(self._merged_bins, self.merge, i) if self.merge else None
            layers.append(layer.pool_for_inference(maps, rois, each))
        for parts in zip(*layers, strict=True):
            yield reduce(torch.add, parts)

    def _warped(self, image: Float[Tensor, "3 H W"], rois: Float[Tensor, "R 4"]) -> Iterator[Float[Tensor, "_ C P P"]]:
        """R-CNN: all layers on each RoI alone, then max pooling of its whole map. In training only the crops are kept
        and backward computes the layers again: VGG16's outputs from conv3_1 on would take 3 GB for 128 RoIs."""
        for chunk in rois.split(CROPS_PER_CHUNK):
            crops = warp(image, chunk, self.config.warp_size)
            yield checkpoint(self._features_of_crops, crops, use_reentrant=False, preserve_rng_state=False)

    @all_threads()
    def _features_of_crops(self, crops: Float[Tensor, "r 3 S S"]) -> Float[Tensor, "r C P P"]:
        maps = crops.contiguous(memory_format=torch.channels_last)
        with self._reduced_precision():
            with torch.no_grad():
                maps = self.backbone[: self.frozen_depth](maps)
            maps = self.backbone[self.frozen_depth :](maps)
        return F.adaptive_max_pool2d(maps.float(), self.config.pool_size)

    @all_threads()
    def _merged_bins(self, merge: Merge, layer: int, bins: Real[Tensor, "U _"]) -> Float[Tensor, "U C"]:
        with self._reduced_precision():
            # Of uint8 the step is no matter, as they are divided by their RMS.
            return merge.of_bins(layer, bins.float() if self.int8 else bins)

    @all_threads()
    def fully_connected(
        self, pooled: Real[Tensor, "R CPP"], dropout_seeds: list[tuple[int, int]] | None = None
    ) -> Float32[Tensor, "R fc_width"]:
        """fc6 and fc7 of pooled features; or, of ResNet-50, the mean of conv5 over its cells.

        With seeds, each with the number of RoIs that draw their dropout masks from it, in order (training); without,
        there is no dropout.
        """
        masks = []
        if dropout_seeds is not None and self.config.dropout > 0:
            masks = [(torch.Generator(pooled.device).manual_seed(seed), rows) for seed, rows in dropout_seeds]
        with self._reduced_precision():
            x = pooled if self.detects else pooled * self.feature_scale
            if self.conv5:
                return self.conv5(self._pooled_maps(x)).float().mean(dim=(2, 3))
            for name in self.fc_layers:
                x = F.relu(getattr(self, name)(x), inplace=True)
                if masks:
                    x = dropout(x, self.config.dropout, masks)
        return x.float()

    def _pooled_maps(self, rows: Float[Tensor, "R CPP"]) -> Float[Tensor, "R C P P"]:
        P = self.config.pool_size
        maps = rows.unflatten(1, (P, P, -1)).permute(0, 3, 1, 2) if self.detects else rows.unflatten(1, (-1, P, P))
        return maps.contiguous(memory_format=torch.channels_last)

    def siblings(self, x: Float[Tensor, "R fc_width"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4*K"]]:
        """The two output layers, always float32: scores and normalised deltas."""
        with torch.autocast(self.device.type, enabled=False):
            return self.cls_score(x), self.bbox_pred(x)

    def probabilities(self, scores: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
        """Softmax of cls_score's output; of SVMs the logistic function of each raw score, which keeps their order, and
        so every average precision, while thresholds stay numbers from 0 to 1: the margin is at 0.27 and 0.73."""
        return scores.sigmoid() if self.svms else scores.softmax(dim=1)

    def forward(
        self,
        maps: list[Float[Tensor, "c _ _"]],
        rois: list[Float[Tensor, "_ 4"]],
        scales: list[float],
        dropout_seeds: list[int] | None,
        choose: Callable[[Features], list[Float[Tensor, "_ 4"]]] | None = None,
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4*K"]]:
        """N outputs of frozen_features, each image's RoIs (image pixels), scale and seed of dropout -> scores and
        normalised deltas, RoIs in the order of the images. `choose` gives others in the place of the RoIs, once it has
        seen the feature maps."""
        features = self.trained_features(maps)
        return self.head(features, choose(features) if choose else rois, scales, dropout_seeds)

    def head(
        self,
        features: Features,
        rois: list[Float[Tensor, "_ 4"]],
        scales: list[float],
        dropout_seeds: list[int] | None,
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4*K"]]:
        """What forward does, from the feature maps of N images on."""
        projected = [self.project(boxes, scale) for boxes, scale in zip(rois, scales, strict=True)]
        pooled = self.pool(features, projected).flatten(1)
        seeds = None if dropout_seeds is None else list(zip(dropout_seeds, map(len, rois), strict=True))
        return self.siblings(self.fully_connected(pooled, seeds))

    @torch.no_grad()
    def head_without_gradient(
        self,
        features: Features,
        rois: list[Float[Tensor, "_ 4"]],
        scales: list[float],
        dropout_seeds: list[int] | None,
    ) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4*K"]]:
        """What head gives, for many RoIs: pooled the fast way, in chunks, each with dropout masks of its own. RoIs that
        share all cells are multiplied once, and so share their masks."""
        of_images = []
        with self._reduced_precision():  # around all chunks, so that weights are brought to it once
            for i, (boxes, scale) in enumerate(zip(rois, scales, strict=True)):
                projected = self.project(boxes, scale)
                first, inverse = unique_rois(self.cells(projected))
                chunks = self.pool_for_inference([[maps[i].detach()] for maps in features], [projected[first]])
                parts = []
                for j, pooled in enumerate(chunks):
                    rows = channels_first(pooled, self.config.bins_per_roi)
                    seeds = None if dropout_seeds is None else [(dropout_seeds[i] + j, len(rows))]
                    parts.append(self.siblings(self.fully_connected(rows, seeds)))
                of_images.append([torch.cat(part)[inverse] for part in zip(*parts, strict=True)])
        scores, deltas = (torch.cat(part) for part in zip(*of_images, strict=True))
        return scores, deltas


def factors(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two layers in place of one [out, in]: V [rank, in] without bias, U [out, rank] with it; weights still random."""
    V = nn.Linear(layer.in_features, rank, bias=False, device=layer.weight.device)
    U = nn.Linear(rank, layer.out_features, device=layer.weight.device)
    return nn.Sequential(OrderedDict(V=V, U=U))


def dropout(
    x: Float[Tensor, "R n"], probability: float, masks: list[tuple[torch.Generator, int]]
) -> Float[Tensor, "R n"]:
    """Zeroes each number with `probability` and scales the rest so that the mean stays; generators decide, each for so
    many rows, R in all."""
    width, device = x.shape[1], x.device
    drawn = torch.cat([torch.rand(rows, width, generator=each, device=device) for each, rows in masks])
    return x * (drawn >= probability) / (1 - probability)


def rms(x: Float[Tensor, "*n"]) -> float:
    """Root of the mean square of all numbers."""
    return float(x.float().square().mean().sqrt())
