"""The network as an ONNX file, which runs without this package and without PyTorch.

The graph is written node by node: Fast R-CNN is a chain of ten kinds of operators, RoI max pooling is one of the
standard's (MaxRoiPool, made for this network), and so no version of torch's exporter has a say in what the file holds.

Inside are the normalisation of pixels, the projection of RoIs, the whole network, softmax and decoding. RoIs are
rounded to cells as model/roi_features.py does, whatever the rounding of a runtime's MaxRoiPool, and RoIs that share all
cells are pooled and multiplied once. Outside are scaling the picture, clipping and NMS.

Shapes: R RoIs, K classes with background, h w the scaled picture.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn
from torchvision.models.resnet import Bottleneck

import fastrcnn
from fastrcnn.config import Config, ModelConfig
from fastrcnn.data.shapes import draw_image
from fastrcnn.detect.detector import Detector, detection_settings
from fastrcnn.detect.onnx_detector import FORMAT, SUFFIX, open_onnx
from fastrcnn.detections import Detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import METADATA_KEY, atomic_write, refuse_overwrite
from fastrcnn.images import read_image
from fastrcnn.inputs import as_rois
from fastrcnn.model.backbones import without_batch_norm
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.receptive_field import windows
from fastrcnn.model.skip_pooling import SMALLEST, Merge
from fastrcnn.model.weights import load_model, weights_file
from fastrcnn.proposals.dense import find_proposals

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 13, 7  # of 2020: old runtimes read the file, too
LIMIT = 2**31 - 2**20  # bytes of weights; a file of protobuf ends at 2 GiB
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-4  # of the picture's longer side

INPUTS = {
    "image": "float32 [h, w, 3]: the picture, RGB, 0..255, scaled as float32 by `scale` in both directions with linear "
    "interpolation (cv2.resize); not normalised",
    "rois": "float32 [R, 4]: proposals (x1, y1, x2, y2) in pixels of the picture as it was, 0-based, half open",
    "scale": "float64 []: scaled pixels per picture pixel, settings.image.test_short_side[0] / min(W, H), or "
    "test_long_side / max(W, H) if that is smaller",
}
OUTPUTS = {
    "scores": "float32 [R, K]: probabilities; class 0 is background, class k is settings.classes[k - 1]",
    "boxes": "float32 [R, K, 4]: the box of each RoI and class, as `rois`; clip to [0, W] x [0, H], then NMS per class",
}


@dataclass(frozen=True)
class Verification:
    """How the file, in onnxruntime, compares with torch in float32 on the same pictures and proposals."""

    pictures: int
    rois: int
    detections: int  # of torch
    same: int  # of them, found in onnxruntime too
    score_difference: float  # the largest
    seconds: tuple[float, float]  # for a picture without its proposals, the median: torch, onnxruntime


def export_onnx(weights: str | Path, output: str | Path, pictures: Sequence[str | Path] = ()) -> Verification:
    """Write the network of a weights file as ONNX, once it has computed in onnxruntime what it computes in torch.

    `pictures` are files to compare on, with proposals of selective search; without any, a made picture is used. Raises
    FastRCNNError, before any work, where onnx or onnxruntime are not installed and where the output is a file that is
    read; for a file that is no weights file, or too large; and, leaving no file, where the two differ.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as e:
        raise FastRCNNError(f'export needs {e.name}; pip install "fastrcnn[onnx]"') from None
    if Path(output).suffix.lower() != SUFFIX:
        raise FastRCNNError(f"{output}: give it a name that ends in {SUFFIX}, by which fastrcnn.load knows it")
    refuse_overwrite([weights_file(weights), *pictures], [output])
    shown = [(Path(path).stem, read_image(path)) for path in pictures] or [("made", draw_image(seed=1, i=0)[0])]
    model, config = load_model(weights, "float32")
    if config.model.roi_features != "roi_pool":
        raise FastRCNNError(
            f"{weights}: has model.roi_features {config.model.roi_features}, and the export does roi_pool alone"
        )
    size = sum(4 * p.numel() for p in model.parameters())
    if size > LIMIT:
        raise FastRCNNError(
            f"{weights}: has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2; use tools/compress.py first"
        )
    data = onnx_model(model, config).SerializeToString()
    result = _verify(Detector(model, config, torch.device("cpu")), open_onnx(data, output), shown)
    with atomic_write(output) as file:
        file.write(data)
    return result


# ---- the graph


class Graph:
    """Nodes and weights as they come; each method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, op: str, *inputs: str, output: str | None = None, more: Sequence[str] = (), **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output, *more], name=output, **attributes))
        return output

    def constant(self, name: str, value: float | Sequence[float] | torch.Tensor, dtype: str = "float32") -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype, order="C"), name))
        return name

    def layer(self, name: str, layer: nn.Module, x: str) -> str:
        """A layer of the backbone, or a fully connected one; compressed, it is two."""
        if isinstance(layer, nn.ReLU):
            return self.add("Relu", x)
        if isinstance(layer, nn.MaxPool2d):
            ((size, stride, padding),) = windows(layer)
            shape, strides, pads = [size] * 2, [stride] * 2, [padding] * 4
            return self.add(
                "MaxPool", x, kernel_shape=shape, strides=strides, pads=pads, ceil_mode=int(layer.ceil_mode)
            )
        if isinstance(layer, nn.LocalResponseNorm):
            return self.add("LRN", x, size=layer.size, alpha=layer.alpha, beta=layer.beta, bias=layer.k)
        if isinstance(layer, nn.Identity):
            return x
        if isinstance(layer, Bottleneck):
            return self.block(name, layer, x)
        if isinstance(layer, nn.Sequential):
            for part, inner in layer.named_children():
                x = self.layer(f"{name}.{part}", inner, x)
            return x
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weights = [self.constant(f"{name}.{part}", weight) for part, weight in layer.state_dict().items()]
        if isinstance(layer, nn.Linear):
            return self.add("Gemm", x, *weights, transB=1)
        ((_, stride, padding),) = windows(layer)
        return self.add("Conv", x, *weights, strides=[stride] * 2, pads=[padding] * 4, group=layer.groups)

    def block(self, name: str, block: Bottleneck, x: str) -> str:
        """A residual block."""
        shortcut = self.layer(f"{name}.downsample", block.downsample or nn.Identity(), x)
        for part in ("conv1", "relu", "conv2", "relu", "conv3"):
            x = self.layer(f"{name}.{part}", getattr(block, part), x)
        return self.add("Relu", self.add("Add", x, shortcut))


@torch.no_grad()
def onnx_model(model: FastRCNN, config: Config) -> "onnx.ModelProto":
    """The network, as load_model gives it, with INPUTS and OUTPUTS; the metadata says all that a caller must know."""
    from onnx import TensorProto, helper

    g, model = Graph(), without_batch_norm(model)
    centred = g.add("Sub", "image", g.constant("mean", model.normalisation.mean))
    normalised = g.add("Div", centred, g.constant("std", model.normalisation.std))
    x = g.add("Unsqueeze", g.add("Transpose", normalised, perm=[2, 0, 1]), g.constant("batch", [0], "int64"))
    maps = []
    for start, end in pairwise([0, *model.pooled_ends]):
        x = g.layer("backbone", model.backbone[start:end], x)
        maps.append(x)
    parts = roi_features(g, maps, model.strides, model.config.pool_size)
    x = merged(g, parts, model.merge) if model.merge else parts[0]
    if model.conv5:
        x = g.add("GlobalAveragePool", g.layer("conv5", model.conv5, x))
    x = g.add("Flatten", x)
    for name in model.fc_layers:
        x = g.add("Relu", g.layer(name, getattr(model, name), x))
    scores = g.add("Sigmoid" if model.svms else "Softmax", g.layer("cls_score", model.cls_score, x))
    g.add("Gather", scores, "inverse", output="scores")
    decoded(g, g.add("Gather", g.layer("bbox_pred", model.bbox_pred, x), "inverse"), model.num_classes, model.config)

    def described(name: str, shape: Sequence[str | int], kind: int = TensorProto.FLOAT) -> "onnx.ValueInfoProto":
        return helper.make_tensor_value_info(name, kind, shape, (INPUTS | OUTPUTS)[name])

    inputs = [
        described("image", ["h", "w", 3]),
        described("rois", ["R", 4]),
        described("scale", [], TensorProto.DOUBLE),
    ]
    outputs = [described("scores", ["R", model.num_classes]), described("boxes", ["R", model.num_classes, 4])]
    graph = helper.make_graph(g.nodes, "fast_rcnn", inputs, outputs, g.weights)
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    result.producer_name, result.producer_version = "fastrcnn", fastrcnn.__version__
    helper.set_model_props(result, {METADATA_KEY: json.dumps(_about(model, config))})
    return result


def roi_features(g: Graph, maps: Sequence[str], strides: Sequence[int], pool_size: int) -> list[str]:
    """Of each map, the features [U, C, P, P] of distinct RoIs; the output `inverse` says which row is each RoI's.

    model/roi_features.py's project, roi_cells and unique_rois: in float64, but for the one rounding to float32.
    """
    from onnx import TensorProto

    rois = g.add("Cast", "rois", to=TensorProto.DOUBLE)
    inclusive = g.add("Sub", rois, g.constant("one_pixel", [0, 0, 1, 1], "float64"))
    projected = g.add("Cast", g.add("Mul", inclusive, "scale"), to=TensorProto.FLOAT)
    half_cell, cells = g.constant("half_cell", 0.5, "float64"), []
    for i, stride in enumerate(strides):
        product = g.add("Mul", projected, g.constant(f"spatial_scale.{i}", 1 / stride))
        product = g.add("Cast", product, to=TensorProto.DOUBLE)
        nearest = g.add("Floor", g.add("Add", g.add("Abs", product), half_cell))
        cells.append(g.add("Cast", g.add("Mul", nearest, g.add("Sign", product)), to=TensorProto.FLOAT))
    distinct = g.add("Unique", g.add("Concat", *cells, axis=1), axis=0, more=["first", "inverse"])
    axis, image = g.constant("cell_axis", [1], "int64"), g.constant("batch_index", [0, 1, 0, 0], "int64")
    pooled = []
    for i, feature_map in enumerate(maps):
        ends = [g.constant(f"columns.{i}.{end}", [4 * i + end], "int64") for end in (0, 4)]
        indexed = g.add("Pad", g.add("Slice", distinct, *ends, axis), image)  # column 0: image 0
        pooled.append(g.add("MaxRoiPool", feature_map, indexed, pooled_shape=[pool_size] * 2, spatial_scale=1.0))
    return pooled


def merged(g: Graph, parts: Sequence[str], merge: Merge) -> str:
    """What model/skip_pooling.py's Merge makes of the features of several layers."""
    least, layers = g.constant("smallest_norm", SMALLEST), []
    for i, (part, weight) in enumerate(zip(parts, merge.weight.split(merge.channels, dim=1), strict=True)):
        norm = g.add("Max", g.add("ReduceL2", part, axes=[1], keepdims=1), least)
        inverse_rms = g.add("Div", g.constant(f"merge.{i}.root", weight.shape[1] ** 0.5), norm)
        convolved = g.add("Conv", part, g.constant(f"merge.{i}.weight", weight[:, :, None, None]))
        layers.append(g.add("Mul", convolved, inverse_rms))
    return g.add("Sum", *layers)


def decoded(g: Graph, deltas: str, num_classes: int, config: ModelConfig) -> None:
    """The output `boxes`: boxes.decode of `rois` and deltas."""
    deltas = g.add("Reshape", deltas, g.constant("each_class", [0, num_classes, 4], "int64"))
    g.add("Split", deltas, output="shift", more=["growth"], axis=2)
    g.add("Split", "rois", output="corner", more=["end"], axis=1)
    axis, half = g.constant("class_axis", [1], "int64"), g.constant("half", 0.5)
    more, end = g.constant("beyond_the_last_pixel", float(config.size_to_last_pixel)), "end"
    if config.size_to_last_pixel:
        end = g.add("Max", g.add("Sub", end, more), g.add("Add", "corner", more))
    size = g.add("Unsqueeze", g.add("Sub", end, "corner"), axis)
    middle = g.add("Add", g.add("Unsqueeze", "corner", axis), g.add("Mul", size, half))
    centre = g.add("Add", middle, g.add("Mul", "shift", size))
    reach = g.add("Mul", g.add("Mul", g.add("Exp", "growth"), half), size)
    g.add(
        "Concat", g.add("Sub", centre, reach), g.add("Add", g.add("Add", centre, reach), more), output="boxes", axis=2
    )


def _about(model: FastRCNN, config: Config) -> dict[str, Any]:
    """The metadata, JSON under the key `fastrcnn`."""
    return {
        "format": FORMAT,
        "version": fastrcnn.__version__,
        "settings": detection_settings(config) | {"precision": "float32"},
        "normalisation": {"mean": model.normalisation.mean, "std": model.normalisation.std},
        "score_thresholds": asdict(model.score_thresholds) if model.score_thresholds else None,
        "stride": model.stride,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }


# ---- the comparison


def _verify(
    reference: Detector, exported: Detector, pictures: list[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]
) -> Verification:
    """Raises FastRCNNError where a score of any RoI, or a box that scores enough for a detection, differs by more than
    the tolerance. That detections are the same follows, but for those that hang on the rounding of an overlap or score:
    they are counted."""
    rois, detections, same, differences, seconds = 0, 0, 0, [0.0], []
    for name, pixels in pictures:
        proposals = as_rois(find_proposals(pixels, name, reference.config.proposals))
        n, limit = len(proposals), BOX_TOLERANCE * max(pixels.shape)
        (scores, boxes), (others, moved) = (detector.classify(pixels, proposals) for detector in (reference, exported))
        enough = scores[:n] > reference.config.test.score_threshold
        difference, shift = _largest(scores[:n] - others[:n]), _largest((boxes[:n] - moved[:n])[enough])
        if not (difference <= SCORE_TOLERANCE and shift <= limit):  # NaN too
            raise FastRCNNError(
                f"picture {name}: torch and onnxruntime differ by up to {difference:.2g} in scores and {shift:.2g} "
                f"pixels in boxes, more than {SCORE_TOLERANCE:g} or {limit:.2g}; no file is written"
            )
        differences.append(difference)
        (found, one), (again, two) = (_timed(detector, pixels, proposals) for detector in (reference, exported))
        seconds.append((one, two))
        rois, detections, same = rois + n, detections + len(found), same + _common(found, again, limit)
    torch_seconds, onnx_seconds = map(median, zip(*seconds, strict=True))
    return Verification(len(pictures), rois, detections, same, max(differences), (torch_seconds, onnx_seconds))


def _largest(differences: torch.Tensor) -> float:
    return float(differences.abs().max()) if differences.numel() else 0.0


def _timed(detector: Detector, pixels: np.ndarray, proposals: torch.Tensor) -> tuple[Detections, float]:
    start = time.perf_counter()
    found = detector.detect(pixels, proposals)
    return found, time.perf_counter() - start


def _common(found: Detections, others: Detections, pixels: float) -> int:
    """How many detections have their like in the other list, wherever it stands."""
    alike = found.classes[:, None] == others.classes
    alike &= np.abs(found.scores[:, None] - others.scores) <= SCORE_TOLERANCE
    alike &= (np.abs(found.boxes[:, None] - others.boxes) <= pixels).all(axis=2)
    return int(min(alike.any(axis=0).sum(), alike.any(axis=1).sum()))
