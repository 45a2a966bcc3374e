from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrcnn import config as configs
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import make_record
from fastrcnn.data import sheets
from fastrcnn.data.checks import check
from fastrcnn.data.image_set import open_data
from fastrcnn.drawing import class_colour
from fastrcnn.images import read_image


def holds(picture, colour):
    return (picture == np.array(colour, np.uint8)).all(axis=2).any()


def test_all_that_the_data_allow_is_drawn(tree, tmp_path):
    config = configs.from_dict(tree)
    written = sheets.write_sheets(check(config, processes=1), config, tmp_path / "out")
    assert [path.name for path in written] == ["labels.png", "batches.png", "histograms.png"]
    assert all(Image.open(path).width > 400 for path in written)
    for dataset in (*config.data.train, *config.data.test):
        dataset.proposals = str(tmp_path / "none.safetensors")
    written = sheets.write_sheets(check(config, processes=1), config, tmp_path / "without")
    assert [path.name for path in written] == ["labels.png", "histograms.png"]
    config.data.train[0].root = config.data.test[0].root = str(tmp_path / "nowhere")
    assert sheets.write_sheets(check(config, processes=1), config, tmp_path / "nothing") == []


def test_batches_are_drawn_scaled_with_foreground_background_and_targets(tree):
    tree["image"] |= {"train_short_side": [96, 144]}
    config = configs.from_dict(tree)
    images = open_data(config.data.train, config)
    batch = sheets.BatchDataset(images, config, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[0]
    for (picture, title), image, rois in zip(
        sheets._as_seen(batch, config.classes), batch.images, batch.rois, strict=True
    ):
        factor = picture.shape[0] // image.shape[1]  # small pictures are enlarged
        assert picture.shape == (image.shape[1] * factor, image.shape[2] * factor, 3)
        assert holds(picture, sheets.FOREGROUND) and holds(picture, sheets.BACKGROUND)
        assert f"{image.shape[2]} x {image.shape[1]}" in title
        numbers = [int(word) for word in title.replace(",", "").split() if word.isdigit()][-2:]
        assert sum(numbers) == len(rois)


def test_objects_are_drawn_where_they_are_with_their_names(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (600, 500)).save(path)
    record = make_record("a", path, 600, 500, [(np.array([100, 50, 300, 400], np.float32), 2, False)], None)
    sheet = sheets.label_sheet([(record, "a: odd")], ["cat", "dog"])
    drawn = (sheet == np.array(class_colour("dog"), np.uint8)).all(axis=2)
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    scale = 480 / 600
    assert columns[[0, -1]] == pytest.approx([8 + 100 * scale, 8 + 300 * scale], abs=3)
    assert rows[-1] == pytest.approx(8 + 40 + 400 * scale, abs=3)  # in the middle of a square cell


def test_the_worst_findings_come_first(tree):
    report = check(configs.from_dict(tree), processes=1)
    records = report.sets[0].records
    report.findings.extend(
        [
            Problem("odd", records[3].path, None, "is odd", "noted"),
            Problem("bad", records[2].annotation, 1, "is bad"),
            Problem("even", Path("instances.json"), "image 000004", "is even", "noted"),
        ]
    )
    cells = sheets._labelled(report)
    assert [title for _, title in cells[:2]] == [f"{records[2].id}: bad", f"{records[3].id}: odd"]
    assert len(cells) == sum(len(checked.records) for checked in report.sets)
    assert all(read_image(record.path).shape[:2] == (record.height, record.width) for record, _ in cells)
