"""The writers of VOC, COCO and YOLO are the inverses of the readers."""

import functools
import io
import logging
import os
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrcnn.annotations.coco import write_coco
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.annotations.voc_xml import write_voc
from fastrcnn.annotations.yolo import write_yolo
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}
FORBIDDEN = "/\0" + ('<>:"\\|?*' + "".join(map(chr, range(32))) if os.name == "nt" else "")
SIZES = [(500, 375), (1, 1), (37, 4001)]


@functools.lru_cache
def picture(size):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


def names(forbidden, most):
    characters = st.characters(exclude_categories=("Cs",), exclude_characters=forbidden)
    text = st.text(characters, min_size=1, max_size=most).map(functools.partial(unicodedata.normalize, "NFC"))
    return text.filter(lambda name: name.strip() == name and name[0] != ".")


def is_line(name):
    """Whether an XML file and a list of ids can hold a name."""
    no_xml = any(unicodedata.category(c) == "Cc" or c in "\ufffe\uffff" for c in name)
    return name.splitlines() == [name] and not no_xml


@st.composite
def records_of(draw, for_format):
    """Records, as a reader gives them, and the names of their classes."""
    for_list = for_format == "voc"  # one id a line, in XML files
    plain_name = names(FORBIDDEN, 8).filter(is_line if for_list else bool)
    ids = st.lists(plain_name, min_size=1, max_size=3).map(lambda parts: unicodedata.normalize("NFC", "/".join(parts)))
    unique = lambda text: unicodedata.normalize("NFC", text).lower()  # noqa: E731
    classes = draw(
        st.lists(names("", 8).filter(is_line if for_list else bool), min_size=1, max_size=3, unique_by=unique)
    )
    records = []
    for record_id in draw(st.lists(ids, min_size=1, max_size=3, unique_by=unique)):
        width, height = draw(st.sampled_from(SIZES))
        boxes = draw(st.lists(box_in(width, height), max_size=3))
        if for_list:  # numbers up to 1 are refused as fractions of an image
            boxes = [box for box in boxes if max(box) > 1]
        numbers = [draw(st.integers(1, len(classes))) for _ in boxes]
        flags = [draw(st.booleans()) for _ in boxes]
        arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(numbers, np.int64), np.array(flags, bool)
        records.append(ImageRecord(record_id, Path("somewhere.png"), width, height, *arrays, None))
    return records, classes


def box_in(width, height):
    def ends(side):
        numbers = st.one_of(st.integers(0, side), st.floats(0, side, width=32))
        return st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[1] - pair[0] > 1e-2)

    return st.tuples(ends(width), ends(height)).map(lambda pairs: [pair[i] for i in (0, 1) for pair in pairs])


def written_and_read(folder, records, classes, format_name, **data):
    arguments = {"xml_origin": data["xml_origin"]} if "xml_origin" in data else {}
    pictures = WRITERS[format_name](records, classes, folder, "val", **arguments)
    for record in records:
        path = Path(f"{pictures}/{record.id}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture((record.width, record.height)))
    dataset = DataSetConfig(format=format_name, root=str(folder), split="val")
    return read_data_sets([dataset], DataConfig(**data), classes)


def assert_same(records, again, exact_from=0.0, tolerance=0.0, difficult=True):
    """Coordinates are equal bit for bit where they are 0 or at least `exact_from`, within `tolerance` elsewhere."""
    by_id = {record.id: record for record in again}
    records = [replace(record, id=unicodedata.normalize("NFC", record.id)) for record in records]
    assert by_id.keys() == {record.id for record in records}
    for record in records:
        other = by_id[record.id]
        assert (other.width, other.height) == (record.width, record.height)
        exact = (record.boxes == 0) | (record.boxes >= exact_from)
        np.testing.assert_array_equal(other.boxes[exact], record.boxes[exact])
        np.testing.assert_allclose(other.boxes, record.boxes, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(other.classes, record.classes)
        np.testing.assert_array_equal(
            other.difficult, record.difficult if difficult else np.zeros_like(other.difficult)
        )


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.getLogger("fastrcnn").setLevel(logging.ERROR)
    yield
    logging.getLogger("fastrcnn").setLevel(logging.NOTSET)


@settings(max_examples=60)
@given(records_of("coco"))
def test_coco_comes_back_bit_for_bit(made):
    records, classes = made
    with tempfile.TemporaryDirectory() as folder:
        again = written_and_read(Path(folder), records, classes, "coco")
        assert_same(records, again)
        assert [record.id for record in again] == [record.id for record in records]


@settings(max_examples=60)
@given(records_of("yolo"))
def test_yolo_comes_back_without_difficult(made):
    records, classes = made
    with tempfile.TemporaryDirectory() as folder:
        again = written_and_read(Path(folder), records, classes, "yolo")
        assert_same(records, again, exact_from=1e-3, tolerance=1e-11, difficult=False)


@settings(max_examples=60)
@given(records_of("voc"), st.sampled_from([0, 1]))
def test_voc_comes_back(made, origin):
    records, classes = made
    with tempfile.TemporaryDirectory() as folder:
        again = written_and_read(Path(folder), records, classes, "voc", xml_origin=origin)
        assert_same(records, again, *((2e-9, 2e-16) if origin else ()))
        assert [record.id for record in again] == [record.id for record in records]


def one(record_id="a", difficult=False, name="a.png"):
    arrays = np.array([[0, 1, 37, 4001]], np.float32), np.array([1]), np.array([difficult])
    return ImageRecord(record_id, Path(name), 37, 4001, *arrays, None)


def test_whole_pixels_are_written_as_people_write_them(tmp_path):
    write_voc([one()], ["cat"], tmp_path / "voc")
    text = (tmp_path / "voc/Annotations/a.xml").read_text()
    assert "<xmin>1</xmin><ymin>2</ymin><xmax>37</xmax><ymax>4001</ymax>" in text and "<filename>a.png<" in text
    write_yolo([one()], ["cat"], tmp_path / "yolo")
    assert (tmp_path / "yolo/labels/train/a.txt").read_text().startswith("0 0.5 ")


def test_several_parts_share_a_folder(tmp_path):
    for write in WRITERS.values():
        write([one("a")], ["cat"], tmp_path, "train")
        write([one("b")], ["cat"], tmp_path, "val")
    assert (tmp_path / "data.yaml").read_text() == 'train: images/train\nval: images/val\nnames:\n  0: "cat"\n'
    assert sorted(p.name for p in (tmp_path / "annotations").iterdir()) == [
        "instances_train.json",
        "instances_val.json",
    ]
    assert (tmp_path / "ImageSets/Main/val.txt").read_text() == "b\n"


def test_what_a_format_cannot_say_is_refused_or_said(tmp_path, caplog):
    with pytest.raises(FastRCNNError, match=r"a\.png: its name 'a\\nb' cannot be a line of a list"):
        write_voc([one("a\nb")], ["cat"], tmp_path)
    with pytest.raises(FastRCNNError, match="characters that XML cannot hold"):
        write_voc([one()], ["c\x01t"], tmp_path)
    for write in (write_voc, write_yolo):
        with pytest.raises(FastRCNNError, match="rename the picture"):
            write([one("../a")], ["cat"], tmp_path / "set")
    assert not (tmp_path / "a.txt").exists()
    logging.getLogger("fastrcnn").setLevel(logging.NOTSET)
    write_yolo([one(difficult=True)], ["cat"], tmp_path)
    assert "1 difficult objects" in caplog.text
