import numpy as np
import pytest
from made_annotations import expect_error, make_voc, read, read_one, thing, xml

from fastrcnn.errors import FastRCNNError


def test_unknown_classes_are_an_error_or_ignored(tmp_path):
    objects = thing("cat"), thing("dgo")
    expect_error(lambda: read_one(tmp_path, *objects), "a.xml: object 2", "'dgo'", "nearest: 'dog'", "on_unknown_class")
    problems = []
    record = read_one(tmp_path, *objects, on_unknown_class="ignore", problems=problems)
    np.testing.assert_array_equal(record.classes, [1])
    assert [(p.kind, p.object, p.outcome) for p in problems] == [("unknown class", 2, "ignored")]


BAD = {
    (0, 1, 5, 5): "box outside",
    (1, 1, 41, 5): "box outside",
    (1, 1, 5, 31): "box outside",
    (1, 0.5, 5, 5): "box outside",
    (9, 1, 5, 5): "box inside out",
    (1, 9, 5, 5): "box inside out",
    (5, 1, 3.5, 5): "box inside out",
    (5, 1, 4, 5): "box empty",  # both ends belong to the box, so one pixel is (5, 5)
    (1, 5.5, 5, 4.5): "box empty",
    (65536, 1, 65540, 5): "box outside",
    ("1e300", 1, "1e301", 5): "box empty",
    ("nan", 1, 5, 5): "box unreadable",
    ("inf", 1, 5, 5): "box unreadable",
    ("", 1, 5, 5): "box unreadable",
    ("four", 1, 5, 5): "box unreadable",
}


@pytest.mark.parametrize(("box", "kind"), BAD.items())
def test_a_bad_box_is_an_error_by_default_and_may_be_skipped(tmp_path, box, kind):
    objects = thing(), thing("dog", box)
    expect_error(lambda: read_one(tmp_path, *objects), tmp_path / "Annotations" / "a.xml", "object 2", "on_bad_box")
    problems = []
    record = read_one(tmp_path, *objects, on_bad_box="skip", problems=problems)
    np.testing.assert_array_equal(record.classes, [1])
    assert [(p.kind, p.object, p.outcome) for p in problems] == [(kind, 2, "skipped")]


def test_a_tiny_box_is_kept_and_noted(tmp_path):
    problems = []
    record = read_one(tmp_path, thing(), thing(box=(5, 5, 30, 7)), thing(box=(5, 5, 8, 8)), problems=problems)
    np.testing.assert_array_equal(record.boxes[1:], np.array([[4, 4, 30, 7], [4, 4, 8, 8]], np.float32))
    assert [(p.kind, p.object, p.outcome) for p in problems] == [("box tiny", 2, "noted")]


def test_a_box_from_zero_suggests_the_other_origin(tmp_path):
    make = lambda **data: read_one(tmp_path, thing(box=(0, 3, 5, 5)), **data)  # noqa: E731
    expect_error(make, "object 1", "data.xml_origin: 0")
    np.testing.assert_array_equal(make(xml_origin=0).boxes, np.array([[0, 3, 5, 5]], np.float32))
    assert "xml_origin" not in expect_error(lambda: read_one(tmp_path, thing(box=(1, 1, 99, 5))), "leaves the image")


def test_clipping_keeps_what_lies_in_the_image(tmp_path, caplog):
    boxes = [(-4, 2, 60, 9), (1, 1, 5, 5), (50, 1, 60, 5), (9, 1, 5, 5), ("x", 1, 5, 5)]
    problems = []
    record = read_one(tmp_path, *[thing(box=box) for box in boxes], on_bad_box="clip", problems=problems)
    np.testing.assert_array_equal(record.boxes, np.array([[0, 1, 40, 9], [0, 0, 5, 5]], np.float32))
    assert [(p.object, p.outcome) for p in problems] == [(1, "clipped"), (3, "skipped"), (4, "skipped"), (5, "skipped")]
    assert "box outside: 1 clipped" in caplog.text and "a.xml: object 1" in caplog.text


def test_only_training_leaves_out_difficult_objects_and_empty_images(tmp_path):
    hard = thing("dog", extra="<difficult>1</difficult>")
    dataset = make_voc(tmp_path, {"a": xml(thing(), hard), "b": xml(hard), "c": xml()})
    keys = {"drop_difficult": True, "drop_empty": True}
    assert [(r.id, r.classes.tolist()) for r in read(dataset, training=True, **keys)] == [("a", [1])]
    assert [(r.id, r.classes.tolist()) for r in read(dataset, training=True)] == [("a", [1, 2]), ("b", [2]), ("c", [])]
    assert [(r.id, r.classes.tolist()) for r in read(dataset, **keys)] == [("a", [1, 2]), ("b", [2]), ("c", [])]
    with pytest.raises(FastRCNNError, match="no object of any class"):
        read(make_voc(tmp_path, {"c": xml()}), training=True, **keys)
