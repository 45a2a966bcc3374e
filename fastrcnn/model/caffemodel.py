"""Weights of Caffe: .caffemodel files of the paper's three networks, to start from or, of its authors, to detect.

A file is a protobuf message, NetParameter of caffe.proto; the numbers of the fields that we read stand in FIELDS. It is
walked field by field, so that a damaged file is refused before it is read, and its layers are parsed one by one.

A released Fast R-CNN model predicts sizes as the code that trained it measured them: fast-rcnn to the last pixel of a
box (model.size_to_last_pixel), py-faster-rcnn as we do. `recipe` says which, and stays with the weights. Taken for the
other, it is off by dx pixels in a box's centre and exp(dw) - 1 in its width, for deltas (dx, dy, dw, dh); y likewise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastrcnn import config as configs
from fastrcnn.config import Config
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import refuse_overwrite
from fastrcnn.model.backbones import NORMALISATIONS
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.weights import write_model, write_start

LARGEST = 2**31 - 1  # bytes; Caffe itself reads no larger file (src/caffe/util/io.cpp, kProtoReadBytesLimit)
# Of src/caffe/proto/caffe.proto. A list of numbers, packed in one piece, is read as the bytes that it is.
NAME, V1_LAYER, LAYER = 1, 2, 100  # fields of NetParameter
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "BlobShape": {"dim": (1, "INT64")},
    "BlobProto": {
        **{key: (number, "INT32") for number, key in enumerate(("num", "channels", "height", "width"), start=1)},
        "data": (5, "BYTES"),
        "shape": (7, "BlobShape"),
        "double_data": (8, "BYTES"),
    },
    "LayerParameter": {"name": (1, "BYTES"), "blobs": (7, "BlobProto")},
    "V1LayerParameter": {"name": (4, "BYTES"), "blobs": (6, "BlobProto")},
}
REPEATED = ("dim", "data", "double_data", "blobs")

Blob = tuple[list[int], np.ndarray]  # a shape, and as many numbers
Layers = dict[str, list[Blob]]  # by name, those with weights: the weight, and the bias if there is one

# The paper's models (section 4.1): the first convolution, by which a file is known, and the configuration.
NETWORKS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "S": ("conv1", [96, 3, 11, 11], {"backbone": "caffenet", "freeze_up_to": "conv1", "pool_size": 6}),
    "M": ("conv1", [96, 3, 7, 7], {"backbone": "vgg_cnn_m_1024", "freeze_up_to": "conv1", "pool_size": 6}),
    "L": ("conv1_1", [64, 3, 3, 3], {"backbone": "vgg16", "freeze_up_to": "conv2_2", "pool_size": 7}),
}


@dataclass(frozen=True)
class Imported:
    """What became of a file: the network; whether it detects, or is one to start from; layers that were left out."""

    network: str
    detects: bool
    left_out: list[str]


def import_caffemodel(
    source: str | Path,
    target: str | Path,
    classes: Sequence[str],
    network: str | None = None,
    recipe: str = "fast-rcnn",
) -> Imported:
    """Write the weights of a .caffemodel file as a file that we read.

    With cls_score and bbox_pred, as the authors released them (the targets' statistics are folded in), it becomes a
    weights file that detects `classes`; without, as an ImageNet network, one for model.weights. `network` is S, M or L;
    None: known by its first convolution. `recipe`, the configuration's, says by which code a detector was trained. BGR
    becomes RGB, and pixels are normalised as Caffe's. Raises FastRCNNError, naming the layer, for weights that do not
    fit.
    """
    refuse_overwrite([source], [target])
    layers = read_caffemodel(source)
    network = network or _recognised(source, layers)
    detects = {"cls_score", "bbox_pred"} <= layers.keys()
    if detects:
        _check_classes(source, layers["cls_score"], classes)
    config = _config(source, layers, network, classes, recipe)
    with torch.device("meta"):
        needed = FastRCNN(config.model, len(config.classes) + 1).state_dict()
    parts = ("backbone.", "fc6.", "fc7.", *(("cls_score.", "bbox_pred.") if detects else ()))
    tensors, used = {}, set()
    for key in filter(lambda key: key.startswith(parts), needed):
        name, _, part = key.removeprefix("backbone.").rpartition(".")
        tensors[key] = _tensor(source, layers, name, part, list(needed[key].shape))
        used.add(name)
    first = f"backbone.{NETWORKS[network][0]}.weight"
    tensors[first] = tensors[first].flip(1)  # BGR to RGB
    if detects:
        write_model(target, tensors, configs.to_dict(config), NORMALISATIONS["caffe"], feature_scale=1.0)
    else:
        write_start(target, tensors, NORMALISATIONS["caffe"])
    return Imported(network, detects, [name for name in layers if name not in used])


def _check_classes(source: str | Path, cls_score: list[Blob], classes: Sequence[str]) -> None:
    outputs = cls_score[-1][1].size
    if outputs != len(classes) + 1:
        raise FastRCNNError(
            f"{source}: layer cls_score has {outputs} outputs, for background and {outputs - 1} classes, but "
            f"{len(classes)} are named; name its classes in their order with --classes"
        )


def _config(source: str | Path, layers: Layers, network: str, classes: Sequence[str], recipe: str) -> Config:
    """The configuration that the weights are of: fc6 and fc7 as wide as they are."""
    for name in ("fc6", "fc7"):
        if name not in layers:
            raise FastRCNNError(f"{source}: has no layer {name}; it has {', '.join(layers)}")
    fc6, fc7 = (layers[name][-1][1].size for name in ("fc6", "fc7"))
    model = {**NETWORKS[network][2], "weights": str(source), "fc_width": fc6 if fc6 == fc7 else [fc6, fc7]}
    return configs.from_dict({"classes": list(classes), "recipe": recipe, "model": model}, str(source))


def _recognised(source: str | Path, layers: Layers) -> str:
    for network, (name, shape, _) in NETWORKS.items():
        if name in layers and layers[name][0][0] == shape:
            return network
    raise FastRCNNError(
        f"{source}: is none of the networks S, M and L by its first convolution; it has {', '.join(layers) or 'none'}"
    )


def _tensor(source: str | Path, layers: Layers, name: str, part: str, shape: list[int]) -> Tensor:
    """The weight or bias of a layer in the shape that the network needs. Old files have (1, 1, out, in) for a fully
    connected layer and (1, 1, 1, out) for a bias; the weights of one cast into a convolution lie in the same order."""
    blobs = dict(zip(("weight", "bias"), layers.get(name, []), strict=False))
    if part not in blobs:
        raise FastRCNNError(f"{source}: layer {name} has no {part}; this network needs {shape}")
    found, numbers = blobs[part]
    start = next((i for i, size in enumerate(found) if size != 1), len(found))
    cast = len(shape) == 2 and len(found) == 4 and found[0] == shape[0] and numbers.size == math.prod(shape)
    if found[start:] != shape and not cast:
        raise FastRCNNError(f"{source}: layer {name}: its {part} is of shape {found}; this network needs {shape}")
    return torch.from_numpy(numbers.reshape(shape))


# ---- the file


def read_caffemodel(path: str | Path) -> Layers:
    """The layers that have weights, by name, in the file's order.

    Raises FastRCNNError for a file that is missing, too large, cut short, or no .caffemodel, before it is read whole,
    and for blobs with other numbers than their shape asks for.
    """
    parsers = _messages()
    from google.protobuf.message import DecodeError

    layers: Layers = {}
    try:
        with Path(path).open("rb") as file:
            for number, start, length in list(_fields(file)):  # all of them, before the first is read
                if number in parsers:
                    file.seek(start)
                    layer = parsers[number].FromString(file.read(length))
                    name = layer.name.decode(errors="backslashreplace")
                    if layer.blobs and name in layers:
                        raise ValueError(f"layer {name} stands there twice")
                    if layer.blobs:
                        layers[name] = [_blob(blob, name) for blob in layer.blobs]
    except OSError as e:
        raise FastRCNNError(f"{path}: cannot be read: {e.strerror}") from None
    except (ValueError, DecodeError) as e:
        raise FastRCNNError(f"{path}: is not a whole .caffemodel file ({e}); fetch it again") from None
    if not layers:
        raise FastRCNNError(f"{path}: holds no layers with weights; it is no .caffemodel file")
    return layers


def _fields(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """The number, start and length of each field of a message, of which nothing but this is read.

    Raises ValueError where the file is no message, or ends too early.
    """
    size = file.seek(0, 2)
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, and Caffe itself reads at most {LARGEST:,}")
    position = file.seek(0)
    while position < size:
        key = _varint(file)
        start = file.tell()
        if key & 7 not in (0, 1, 2, 5) or not key >> 3:
            raise ValueError(f"no field of a protobuf message starts at byte {position}")
        if key & 7 == 2:
            length = _varint(file)
            start = file.tell()
        elif key & 7:
            length = 8 if key & 7 == 1 else 4
        else:
            _varint(file)
            length = file.tell() - start
        position = start + length
        if position > size:
            raise ValueError(f"it ends {position - size:,} bytes too early")
        file.seek(position)
        yield key >> 3, start, length


def _varint(file: BinaryIO) -> int:
    """A number in groups of 7 bits, the lowest first; the highest bit says that more follow."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number in it is longer than 64 bits")


def _blob(blob: Any, name: str) -> Blob:
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    data, kind = (blob.double_data, "<f8") if blob.double_data else (blob.data, "<f4")
    with np.errstate(all="ignore"):  # of float64 that float32 cannot hold
        numbers = np.frombuffer(b"".join(data), kind).astype(np.float32)
    if min(shape, default=1) < 1 or math.prod(shape) != numbers.size:
        raise ValueError(f"layer {name} holds {numbers.size} numbers of shape {shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"layer {name} holds numbers that are not finite")
    return shape, numbers


@cache
def _messages() -> dict[int, Any]:
    """What parses a layer, by its field in NetParameter. Raises FastRCNNError where protobuf is not installed."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise FastRCNNError('a .caffemodel file needs protobuf; pip install "fastrcnn[caffe]"') from None
    file = descriptor_pb2.FileDescriptorProto(name="fastrcnn_caffe.proto", package="fastrcnn_caffe")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for key, (number, kind) in fields.items():
            field = described.field.add(name=key, number=number)
            field.label = field.LABEL_REPEATED if key in REPEATED else field.LABEL_OPTIONAL
            if kind in FIELDS:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                field.type = field.Type.Value(f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    names = {V1_LAYER: "V1LayerParameter", LAYER: "LayerParameter"}
    return {n: message_factory.GetMessageClass(find(f"{file.package}.{name}")) for n, name in names.items()}
