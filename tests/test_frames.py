import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastrcnn import config as configs
from fastrcnn.annotations.objects import UNKNOWN, turn_box
from fastrcnn.annotations.read import read_data_set
from fastrcnn.annotations.records import class_index
from fastrcnn.config import Config
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.data import sheets
from fastrcnn.data.checks import check
from fastrcnn.images import ORIENTATION, UPRIGHT, read_image

STORED = (60, 40)  # width, height
BOX = (12, 5, 30, 17)  # in the stored picture, half open
ROW = "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
turns = pytest.mark.parametrize("turn", range(1, 9))


def upright(turn):
    """(width, height) of the picture as it is shown."""
    return STORED[::-1] if turn >= 5 else STORED


def lit(pixels):
    """The half-open box of what is white."""
    rows, columns = (np.flatnonzero((pixels > 128).any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(
    st.integers(1, 8),
    st.tuples(st.integers(0, 59), st.integers(0, 39)),
    st.tuples(st.integers(1, 60), st.integers(1, 40)),
)
def test_a_turned_box_is_where_pillow_turns_its_pixels(turn, low, size):
    x1, y1 = low
    x2, y2 = min(x1 + size[0], 60), min(y1 + size[1], 40)
    pixels = np.zeros((40, 60), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    turned = Image.fromarray(pixels)
    turned = turned.transpose(UPRIGHT[turn]) if turn > 1 else turned
    box = turn_box(np.array([x1, y1, x2, y2], np.float64), turn, upright(turn))
    assert box.tolist() == lit(np.asarray(turned))
    fractions = turn_box(np.array([x1 / 60, y1 / 40, x2 / 60, y2 / 40]), turn, (1.0, 1.0)) * (upright(turn) * 2)
    np.testing.assert_allclose(fractions, box, atol=1e-9)


def picture(path, turn):
    """White where BOX is, on black, with the EXIF orientation."""
    pixels = np.zeros((*STORED[::-1], 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    tags = Image.Exif()
    tags[ORIENTATION] = turn
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=tags.tobytes())


def voc(root, turn, stated):
    picture(root / "a.png", turn)
    size = f"<size><width>{stated[0]}</width><height>{stated[1]}</height></size>" if stated else ""
    (root / "a.xml").write_text(f"<annotation>{size}{ROW.format(BOX[0] + 1, BOX[1] + 1, *BOX[2:])}</annotation>")
    return DataSetConfig(format="folder", root=str(root))


def coco(root, turn, stated):
    picture(root / "a.png", turn)
    image = {"id": 1, "file_name": "a.png"} | (dict(zip(("width", "height"), stated, strict=True)) if stated else {})
    box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
    tree = {
        "images": [image],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(tree))
    return DataSetConfig(format="coco", root=str(root), annotations=str(root / "a.json"))


def yolo(root, turn, stated):
    picture(root / "images" / "a.png", turn)
    (root / "labels").mkdir()
    (width, height), (x1, y1, x2, y2) = STORED, BOX
    numbers = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
    (root / "labels" / "a.txt").write_text(f"0 {' '.join(map(str, numbers))}")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images\n")
    return DataSetConfig(format="yolo", root=str(root))


def read(dataset, **data):
    """The one record, and the kinds of the problems."""
    found = list(read_data_set(dataset, DataConfig(**data), class_index(["cat"])))
    (record,) = [record for record, _ in found if record is not None]
    return record, [p for _, problems in found for p in problems]


@turns
@pytest.mark.parametrize("write", [voc, coco, yolo])
def test_boxes_drawn_on_the_stored_picture_are_turned_upright_with_it(tmp_path, turn, write):
    record, problems = read(write(tmp_path, turn, STORED), boxes_drawn_on="stored")
    np.testing.assert_allclose(record.boxes, [lit(read_image(record.path)[..., 0])], atol=1e-4)
    assert problems == [] and record.refused == 0


@turns
@pytest.mark.parametrize("write", [voc, coco])
def test_a_size_that_is_stated_as_stored_leaves_the_frame_unknown(tmp_path, turn, write):
    record, problems = read(write(tmp_path, turn, STORED))
    if turn < 5:  # both frames have this size: upright, as labelling tools show pictures
        assert problems == [] and record.boxes.tolist() == [list(map(float, BOX))]
        return
    (problem,) = problems
    assert (problem.kind, problem.outcome) == (UNKNOWN, "error") and "boxes_drawn_on" in problem.text
    assert len(record.boxes) == 0 and record.refused == 1
    record, problems = read(write(tmp_path, turn, STORED), boxes_drawn_on="upright")
    assert problems == [] and record.boxes.tolist() == [list(map(float, BOX))]


@pytest.mark.parametrize("write", [voc, coco])
@pytest.mark.parametrize("drawn_on", [None, "upright", "stored"])
def test_a_size_that_is_stated_upright_tells_the_frame(tmp_path, write, drawn_on):
    record, problems = read(write(tmp_path, 6, STORED[::-1]), boxes_drawn_on=drawn_on)
    assert problems == [] and record.boxes.tolist() == [list(map(float, BOX))]


def test_both_frames_are_drawn_where_it_is_not_known(tmp_path):
    dataset = voc(tmp_path / "set", 6, STORED)
    config = Config(classes=["cat"], data=DataConfig(train=[dataset]))
    report = check(config, processes=1)
    assert [p.kind for p in report.findings if p.outcome == "error"] == [UNKNOWN]
    (one, first), (other, second) = sheets._both_frames(report, config)
    assert first.endswith("boxes_drawn_on: upright") and second.endswith("boxes_drawn_on: stored")
    assert one.boxes.tolist() == [list(map(float, BOX))]
    assert other.boxes.tolist() == [lit(read_image(other.path)[..., 0])]
    written = sheets.write_sheets(report, config, tmp_path / "out")
    assert Path(tmp_path / "out" / "turned.png") in written
    assert configs.to_dict(config)["data"]["boxes_drawn_on"] is None
