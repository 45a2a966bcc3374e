"""Files as Caffe writes them, by protobuf from the fields of caffe.proto with their own types: for the tests of the
reader, which reads packed numbers as bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = {
    "BlobShape": "dim 1 INT64*",
    "BlobProto": "num 1 INT32, channels 2 INT32, height 3 INT32, width 4 INT32, data 5 FLOAT*, diff 6 FLOAT*, "
    "shape 7 BlobShape, double_data 8 DOUBLE*",
    "LayerParameter": "name 1 STRING, type 2 STRING, bottom 3 STRING*, top 4 STRING*, blobs 7 BlobProto*",
    "V1LayerParameter": "bottom 2 STRING*, top 3 STRING*, name 4 STRING, type 5 INT32, blobs 6 BlobProto*",
    "NetParameter": "name 1 STRING, layers 2 V1LayerParameter*, force_backward 5 BOOL, layer 100 LayerParameter*",
}


def net_class() -> type:
    file = descriptor_pb2.FileDescriptorProto(name="made.proto", package="made")
    for name, fields in PROTO.items():
        message = file.message_type.add(name=name)
        for key, number, kind in map(str.split, fields.split(", ")):
            plain = kind.rstrip("*")
            field = message.field.add(name=key, number=int(number), label=3 if kind != plain else 1)
            if plain in PROTO:
                field.type, field.type_name = field.TYPE_MESSAGE, f".made.{plain}"
            else:
                field.type = field.Type.Value(f"TYPE_{plain}")
                field.options.packed = kind != plain and plain != "STRING"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("made.NetParameter"))


Net = net_class()
V1_TYPES = {"Convolution": 4, "InnerProduct": 14}


def encoded(layers: Mapping[str, Sequence[np.ndarray]], old: bool = False, double: bool = False) -> bytes:
    """A file of these layers, weight and bias each, and of a ReLU after each; `old`: the format before 2015."""
    net = Net(name="made", force_backward=False)
    for name, arrays in layers.items():
        kind = "Convolution" if arrays[0].ndim == 4 else "InnerProduct"
        add = net.layers.add if old else net.layer.add
        layer = add(name=name, type=V1_TYPES[kind] if old else kind, bottom=["x"], top=["x"])
        for array in arrays:
            blob = layer.blobs.add(**{"double_data" if double else "data": array.ravel().tolist()})
            if old:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
            else:
                blob.shape.dim.extend(array.shape)
        add(name=f"relu_{name}", type=18 if old else "ReLU", bottom=["x"], top=["x"])
    return net.SerializeToString()


def write_caffemodel(path: Path, layers: Mapping[str, Sequence[np.ndarray]], **kind: bool) -> Path:
    path.write_bytes(encoded(layers, **kind))
    return path
