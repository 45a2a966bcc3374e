"""The table, plot and files that an evaluation leaves behind."""

import logging
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from test_detections import BOX, CLASSES, IMAGES, found
from test_page import NASTY
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


def each_found(names):
    """One object of each class, which is found."""
    rows = [(k, 0.5, (10 * k, 0, 10 * k + 9, 9)) for k in range(1, len(names) + 1)]
    truth = [(k, box, False) for k, _, box in rows]
    return evaluate(
        *join([DetectedImage("c", found(*rows, class_list=names))], [record("c", *truth)], names), len(rows) + 1
    )


@pytest.mark.parametrize(
    ("scored", "names", "panels", "side"),
    [
        (result(), CLASSES, 2, 240),
        (each_found([f"costs $ {i}" for i in range(7)]), [f"costs $ {i}" for i in range(7)], 7, 240),
    ]
    + [(each_found([f"class {i}" for i in range(40)]), ["dog"] * 40, 40, 153)],
)
def test_plot_has_a_panel_for_each_class_with_objects(tmp_path, scored, names, panels, side):
    """Only panels have colours, those of the curves; many are smaller."""
    plot_precision_recall(scored, names, tmp_path / "pr.png")
    pixels = np.array(Image.open(tmp_path / "pr.png").convert("RGB")).astype(int)
    columns = int(np.ceil(np.sqrt(panels)))
    rows = -(-panels // columns)
    assert np.abs(np.subtract(pixels.shape, (side * rows, side * columns, 3))).max() <= columns
    coloured = np.ptp(pixels, axis=2) > 100
    parts = [np.array_split(row, columns, axis=1) for row in np.array_split(coloured, rows)]
    assert [part[:, side // 3 : -side // 3].any() for row in parts for part in row] == [
        k < panels for k in range(rows * columns)
    ]


def test_plot_without_objects(tmp_path):
    scored = evaluate(*join([DetectedImage("c", found(class_list=["a"]))], [record("c")], ["a"]), 2)
    plot_precision_recall(scored, ["a"], tmp_path / "pr.png")
    assert np.array(Image.open(tmp_path / "pr.png")).min() < 128, "it says so"


def test_a_name_that_no_font_has_is_a_number(tmp_path, monkeypatch):
    """No warning of a missing glyph for any name; what stands in its place is said in the figure."""
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **_: titles.append(text))
    names = ["dog", "\U0010fffd", "a " * 30]
    plot_precision_recall(each_found(names), names, tmp_path / "pr.png")
    assert titles[:2] == ["dog, AP 1.000", "class 2, AP 1.000"]
    assert titles[2].startswith("a a a a") and len(titles[2]) < 40
    assert "no font here" in titles[3]
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plot_precision_recall(each_found(NASTY), NASTY, tmp_path / "pr.png")


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
