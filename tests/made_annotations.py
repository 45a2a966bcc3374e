"""Made VOC layouts and folders, for the tests of annotations."""

import pytest
from PIL import Image

from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import for_training
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

CLASSES = ["Cat", "dog"]
PART = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"


def thing(name="cat", box=(11, 6, 20, 15), extra="<difficult>0</difficult>"):
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def xml(*objects, size=(40, 30), header=""):
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"{header}<annotation><path>C:\\photos\\a.jpg</path>{size}{''.join(objects)}</annotation>"


def draw(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def make_voc(root, files, split="train", suffix=".jpg"):
    """A VOC layout of {id: text of its XML}, listed in this order."""
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "Annotations").mkdir(exist_ok=True)
    for stem, text in files.items():
        draw(root / "JPEGImages" / f"{stem}{suffix}")
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in files))
    return DataSetConfig(root=str(root), split=split)


def make_folder(root, files):
    for stem, text in files.items():
        draw(root / f"{stem}.jpg")
        if text is not None:
            (root / f"{stem}.xml").write_text(text, encoding="utf-8")
    return DataSetConfig(format="folder", root=str(root))


def read(dataset, classes=CLASSES, problems=None, training=False, **data):
    datasets = dataset if isinstance(dataset, list) else [dataset]
    records = read_data_sets(datasets, DataConfig(**data), classes, problems)
    return for_training(records, DataConfig(**data)) if training else records


def read_one(tmp_path, *objects, problems=None, **data):
    return read(make_voc(tmp_path, {"a": xml(*objects)}), problems=problems, **data)[0]


def expect_error(call, *words):
    with pytest.raises(FastRCNNError) as error:
        call()
    for word in words:
        assert str(word) in str(error.value)
    return str(error.value)


def kinds_of(problems):
    """What was noted, by kind."""
    return {p.kind: p.text for p in problems if p.outcome == "noted"}
