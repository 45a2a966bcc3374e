"""Small pictures with lines: which labels are drawn."""

from dataclasses import replace

import numpy as np
from test_rows import record

from fastrcnn.drawing import write_image
from fastrcnn.evaluate.thumbnails import Drawn, legend, thumbnail


def drawn(tmp_path, *boxes):
    write_image(tmp_path / "a.png", np.zeros((80, 100, 3), np.uint8))
    made = thumbnail(replace(record("a"), path=tmp_path / "a.png"), [Drawn(*one) for one in boxes], "found")
    return made.findall("div/svg/rect"), made.findall("div/svg/text"), made.find("div/img").get("alt")


def test_each_box_is_drawn_and_labels_that_would_cover_others_are_not(tmp_path):
    box, far = np.array([10, 10, 40, 40]), np.array([60, 50, 90, 70.4])
    boxes = [("wrong", "dog", box), ("right", "cat", box + 1), ("object", "cat", box), ("object", "<" * 99, far)]
    rects, texts, alt = drawn(tmp_path, *boxes)
    assert [rect.get("class") for rect in rects[1::2]] == ["object", "object", "right", "wrong"], "the first on top"
    assert {key: rects[1].get(key) for key in ("x", "y", "width", "height")} == {
        "x": "60", "y": "50", "width": "30", "height": "20"
    }  # fmt: skip
    assert [text.text for text in texts] == ["\N{BALLOT X} dog", "cat", "<" * 23 + "\N{HORIZONTAL ELLIPSIS}"]
    assert [text.get("text-anchor") for text in texts] == ["start", "start", "end"]
    assert "dog (wrong), cat (right), cat (object), <<" in alt


def test_a_box_that_ends_before_it_starts_has_no_size(tmp_path):
    rects, _, _ = drawn(tmp_path, ("wrong", "dog", np.array([40, 30, 20, 10])))
    assert {(rect.get("width"), rect.get("height")) for rect in rects} == {("0", "0")}


def test_a_picture_without_boxes(tmp_path):
    rects, texts, alt = drawn(tmp_path)
    assert not rects and not texts and "nothing to find" in alt


def test_the_legend_names_every_kind():
    said = "".join(legend().itertext())
    assert "annotated" in said and "right" in said and "wrong" in said and "difficult" in said
