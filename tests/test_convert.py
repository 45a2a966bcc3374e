import json

import numpy as np
import pytest

from fastrcnn import config as configs
from fastrcnn.annotations.convert import SPLITS, WRITERS, convert
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.config_data import DataSetConfig
from fastrcnn.data.shapes import CLASSES
from fastrcnn.errors import FastRCNNError


@pytest.fixture
def config(shapes):
    sets = {part: [{"root": str(shapes), "split": part}] for part in ("train", "test")}
    sets["validation"] = sets["test"]
    return configs.from_dict({"classes": list(CLASSES), "data": sets})


@pytest.mark.parametrize("format_name", WRITERS)
@pytest.mark.parametrize("link", [False, True])
def test_a_converted_set_gives_the_same_records(tmp_path, config, format_name, link):
    written = convert(config, format_name, tmp_path / "new", link)
    for part, split in SPLITS.items():
        expected = read_data_sets(getattr(config.data, part), config.data, config.classes)
        dataset = DataSetConfig(format=format_name, root=str(tmp_path / "new"), split=split)
        again = read_data_sets([dataset], config.data, config.classes)
        assert [r.id for r in again] == [r.id for r in expected] == [r.id for r in written[part]]
        for record, other in zip(expected, again, strict=True):
            assert record.path.read_bytes() == other.path.read_bytes() and other.path.is_symlink() == link
            assert (record.width, record.height) == (other.width, other.height)
            np.testing.assert_array_equal(record.boxes, other.boxes)
            np.testing.assert_array_equal(record.classes, other.classes)
            if format_name != "yolo":
                np.testing.assert_array_equal(record.difficult, other.difficult)


def test_nothing_is_written_over(tmp_path, config, shapes):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for output, words in ((tmp_path / "mine", "not empty"), (shapes / "new", "in the folder of a data set")):
        with pytest.raises(FastRCNNError, match=words):
            convert(config, "coco", output)
    assert not (shapes / "new").exists() and (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_one_id_for_two_pictures_is_refused_before_anything_is_written(tmp_path, config):
    convert(config, "coco", tmp_path / "one")
    listing = tmp_path / "one/annotations/instances_test.json"
    tree = json.loads(listing.read_text())
    first = read_data_sets(config.data.train, config.data, config.classes)[0].id
    old, new = tree["images"][0]["file_name"], f"{first}.jpg"
    (tmp_path / "one/test" / old).rename(tmp_path / "one/test" / new)
    tree["images"][0]["file_name"] = new
    listing.write_text(json.dumps(tree))
    config.data.test = [DataSetConfig(format="coco", root=str(tmp_path / "one"), split="test")]
    with pytest.raises(FastRCNNError, match=f"its id {first} is that of"):
        convert(config, "voc", tmp_path / "two")
    assert not (tmp_path / "two").exists()
