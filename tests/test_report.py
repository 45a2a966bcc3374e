"""The table, plot and files that an evaluation leaves behind."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_detections import BOX, CLASSES, IMAGES, found
from test_rows import RECORDS, record

from fastrcnn.detections import DetectedImage
from fastrcnn.evaluate.report import ap_table, plot_precision_recall, write_voc_files
from fastrcnn.evaluate.rows import join
from fastrcnn.evaluate.voc import evaluate


def result():
    return evaluate(*join(IMAGES, RECORDS, CLASSES), len(CLASSES) + 1)


def test_ap_table():
    assert ap_table(result(), CLASSES).splitlines() == [
        "class       objects  detections      AP",
        "dog               1           2  1.0000",
        "tv monitor        1           1  1.0000",
        "cat               0           0  no objects",
        "mean of 2         2           3  1.0000",
        "AP: 11 recall points; left out of the mean, having no objects: cat",
    ]


@pytest.mark.parametrize("names", [["a"], CLASSES, [f"costs $ {i}" for i in range(7)]])
def test_plot_has_a_panel_for_each_class(tmp_path, names):
    """Panels have grid lines in the middle, places without a class are white; only what was detected has a curve."""
    empty = join([DetectedImage("c", found(class_list=names))], [record("c")], names)
    plot_precision_recall(
        result() if names is CLASSES else evaluate(*empty, len(names) + 1), names, tmp_path / "pr.png"
    )
    pixels = np.array(Image.open(tmp_path / "pr.png").convert("RGB")).astype(int)
    columns = int(np.ceil(np.sqrt(len(names))))
    rows = -(-len(names) // columns)
    assert pixels.shape == (240 * rows, 240 * columns, 3)
    panels = pixels.reshape(rows, 240, columns, 240, 3).swapaxes(1, 2).reshape(-1, 240, 240, 3)
    drawn = (panels[:, 60:180, 60:180] < 255).any(axis=(1, 2, 3))
    assert drawn.tolist() == [k < len(names) for k in range(len(panels))]
    curve = (np.ptp(panels, axis=3) > 100).any(axis=(1, 2))  # colour; all else is grey
    assert np.flatnonzero(curve).tolist() == ([0, 1] if names is CLASSES else [])


def test_voc_files(tmp_path):
    paths = write_voc_files(tmp_path / "results", "test", CLASSES, IMAGES)
    assert [path.name for path in paths] == [f"comp4_det_test_{name}.txt" for name in CLASSES]
    assert [path.read_text() for path in paths] == ["b 0.5 1 1 10 10\nb 0.25 51 51 60 60\n", "a 0.75 1 1 10 10\n", ""]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(2**-20, 1, width=32), min_size=1, max_size=20, unique=True))
def test_voc_files_keep_scores_and_boxes_apart(tmp_path_factory, scores):
    """No two scores become one, and boxes come back as the same float32 numbers."""
    image = found(*[(1, score, (score, 1 / 3, 499 + score, 374.9)) for score in scores], class_list=["dog"])
    path = write_voc_files(tmp_path_factory.mktemp("voc"), "test", ["dog"], [DetectedImage("a", image)])[0]
    rows = np.array([line.split()[1:] for line in path.read_text().splitlines()], float)
    np.testing.assert_array_equal(rows[:, 0].astype(np.float32), image.scores)
    np.testing.assert_allclose(rows[:, 1:] - (1, 1, 0, 0), image.boxes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [["n/a", "n_a"], ["../../x", "y" * 300], ["a\0", "CON"], ["\udc80", "a:b"]])
def test_any_class_name_has_a_file_of_its_own(tmp_path, names):
    images = [DetectedImage("a\udcff", found((1, 0.5, BOX), (2, 0.25, BOX), class_list=names))]
    first, second = write_voc_files(tmp_path / "voc", "te/st", names, images)
    assert {first, second} == set((tmp_path / "voc").iterdir())
    assert (first.read_bytes(), second.read_bytes()) == (b"a\xff 0.5 1 1 10 10\n", b"a\xff 0.25 1 1 10 10\n")


def test_voc_files_warn_of_ids_with_spaces(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_voc_files(tmp_path, "test", ["dog"], [DetectedImage("IMG 1", found((1, 0.5, BOX), class_list=["dog"]))])
    assert "IMG 1" in caplog.text
