import json
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
from PIL import Image

from fastrcnn.data import shapes
from fastrcnn.data.shapes import CLASSES, draw_image, make_shapes
from fastrcnn.errors import FastRCNNError


@pytest.fixture(scope="module")
def drawn():
    return [draw_image(5, i) for i in range(1, 61)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(root, train=4, test=2, seed=5)
    return root


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_layout_and_the_lists_are_those_of_voc(made):
    assert (made / "ImageSets/Main/train.txt").read_text() == "000001\n000002\n000003\n000004\n"
    assert (made / "ImageSets/Main/test.txt").read_text() == "000005\n000006\n"
    ids = [f"{i:06d}" for i in range(1, 7)]
    assert sorted(path.name for path in (made / "Annotations").iterdir()) == [f"{i}.xml" for i in ids]
    assert sorted(path.name for path in (made / "JPEGImages").iterdir()) == [f"{i}.jpg" for i in ids]


def test_annotations_are_the_1_based_inclusive_bounds_of_the_masks(made, drawn):
    for i, (image, objects) in enumerate(drawn[:6], start=1):
        tree = ET.parse(made / f"Annotations/{i:06d}.xml").getroot()
        assert tree.findtext("filename") == f"{i:06d}.jpg"
        size = [int(tree.findtext(f"size/{name}")) for name in ("height", "width", "depth")]
        assert size == list(image.shape)
        found = [
            (item.findtext("name"), item.findtext("difficult"))
            + tuple(int(item.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax"))
            for item in tree.findall("object")
        ]
        expected = []
        for shape in objects:
            rows, columns = np.nonzero(shape.mask)
            bounds = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
            expected.append((shape.name, str(int(shape.difficult)), *bounds))
        assert found == expected


def test_the_jpeg_is_the_drawn_image(made, drawn):
    for i, (image, _) in enumerate(drawn[:6], start=1):
        with Image.open(made / f"JPEGImages/{i:06d}.jpg") as file:
            stored = np.asarray(file)
        assert stored.shape == image.shape
        # The grain is lost in compression; smoothed, the two agree, and with red and blue exchanged they would not.
        difference = cv2.blur(stored.astype(np.float32), (5, 5)) - cv2.blur(image.astype(np.float32), (5, 5))
        assert np.abs(difference).mean() < 5


def test_an_image_depends_on_seed_and_number_only(drawn):
    image, objects = draw_image(5, 3)
    assert np.array_equal(image, drawn[2][0])
    assert [(s.name, s.box) for s in objects] == [(s.name, s.box) for s in drawn[2][1]]
    assert not np.array_equal(image, drawn[3][0])
    other = draw_image(6, 3)[0]
    assert image.shape != other.shape or not np.array_equal(image, other)


def test_sizes_are_within_bounds_and_vary(drawn):
    sides = np.array([image.shape[:2] for image, _ in drawn])
    assert set(sides.ravel().tolist()) == {160, 192, 224, 256}
    ratios = sides[:, 1] / sides[:, 0]
    assert ratios.min() < 0.8 and ratios.max() > 1.25
    boxes = np.array([shape.box for _, objects in drawn for shape in objects])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 12
    assert 20 <= longer.min() < 32 and 80 < longer.max() <= 111


def test_every_class_appears_and_one_to_five_objects_an_image(drawn):
    assert {shape.name for _, objects in drawn for shape in objects} == set(CLASSES) and len(CLASSES) == 5
    assert {len(objects) for _, objects in drawn} == {1, 2, 3, 4, 5}


def test_objects_overlap_and_stay_recognisable(drawn):
    plain = [shape for _, objects in drawn for shape in objects if not shape.difficult]
    assert min(shape.visible for shape in plain) >= 0.7
    partly_hidden = [shape for shape in plain if shape.visible < 0.98]
    assert len(partly_hidden) > 0.1 * len(plain)


def test_what_is_hidden_is_what_later_objects_cover(drawn):
    for _, objects in drawn:
        if any(shape.difficult for shape in objects):
            continue  # there a patch that is no object covers something too
        for k, shape in enumerate(objects):
            later = np.zeros_like(shape.mask)
            for other in objects[k + 1 :]:
                later |= other.mask
            assert shape.visible == pytest.approx((shape.mask & ~later).sum() / shape.mask.sum())


def test_difficult_objects_are_mostly_hidden(drawn):
    difficult = [shape for _, objects in drawn for shape in objects if shape.difficult]
    assert difficult
    assert all(0.2 <= shape.visible <= 0.5 for shape in difficult)


def test_an_object_stands_out_from_what_is_around_it(drawn):
    contrast = []
    for image, objects in drawn:
        shape = objects[-1]  # on top of the others
        if shape.difficult:
            continue
        mask = shape.mask.astype(np.uint8)
        around = (cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0) & (cv2.dilate(mask, np.ones((3, 3), np.uint8)) == 0)
        contrast.append(np.linalg.norm(image[shape.mask].mean(axis=0) - image[around].mean(axis=0)))
    assert np.quantile(contrast, 0.1) > 50


@pytest.mark.parametrize("name, corners", [("square", 4), ("triangle", 3), ("star", 10), ("cross", 12)])
def test_outlines_have_the_corners_of_their_class(name, corners):
    assert shapes.OUTLINES[name].shape == (corners, 2)
    polygon = shapes.OUTLINES[name].astype(np.float32)
    assert cv2.isContourConvex(polygon) == (name in ("square", "triangle"))


def test_the_cross_is_a_plus_sign():
    area = cv2.contourArea(shapes.OUTLINES["cross"].astype(np.float32))
    assert area == pytest.approx(2 * (2 * 0.72) - 0.72**2)  # two bars of 2 x 0.72, their square counted once


def test_a_finished_set_of_the_same_arguments_is_left_alone(tmp_path):
    make_shapes(tmp_path / "set", train=2, test=1, seed=1)
    marked = tmp_path / "set/JPEGImages/000001.jpg"
    marked.write_bytes(b"mine")
    make_shapes(tmp_path / "set", train=2, test=1, seed=1)
    assert marked.read_bytes() == b"mine"


@pytest.mark.parametrize("changed", [{"seed": 2}, {"train": 1}, {"test": 2}])
def test_other_arguments_draw_the_set_anew(tmp_path, changed):
    arguments = {"train": 2, "test": 1, "seed": 1}
    make_shapes(tmp_path / "a/set", **arguments)
    make_shapes(tmp_path / "a/set", **(arguments | changed))
    make_shapes(tmp_path / "b/set", **(arguments | changed))
    assert contents(tmp_path / "a/set") == contents(tmp_path / "b/set")


def test_a_set_drawn_by_another_version_of_the_code_is_drawn_anew(tmp_path):
    make_shapes(tmp_path / "set", train=1, test=1, seed=1)
    whole = contents(tmp_path / "set")
    key = json.loads((tmp_path / "set/shapes.json").read_text())
    (tmp_path / "set/shapes.json").write_text(json.dumps(key | {"source": "older"}))
    (tmp_path / "set/JPEGImages/000001.jpg").write_bytes(b"older")
    make_shapes(tmp_path / "set", train=1, test=1, seed=1)
    assert contents(tmp_path / "set") == whole


@pytest.mark.parametrize("images_before_the_kill", [0, 1, 2])
def test_a_killed_run_is_redone(tmp_path, monkeypatch, images_before_the_kill):
    def killed(seed, i):
        if i > images_before_the_kill:
            raise KeyboardInterrupt
        return draw_image(seed, i)

    monkeypatch.setattr(shapes, "draw_image", killed)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "set", train=2, test=1, seed=1)
    monkeypatch.undo()
    make_shapes(tmp_path / "set", train=2, test=1, seed=1)
    make_shapes(tmp_path / "other/set", train=2, test=1, seed=1)
    assert contents(tmp_path / "set") == contents(tmp_path / "other/set")


def test_a_folder_with_something_else_in_it_is_not_touched(tmp_path):
    (tmp_path / "VOC2007/JPEGImages").mkdir(parents=True)
    with pytest.raises(FastRCNNError, match="VOC2007.*empty folder"):
        make_shapes(tmp_path / "VOC2007", train=1, test=1, seed=1)
    assert list((tmp_path / "VOC2007").rglob("*")) == [tmp_path / "VOC2007/JPEGImages"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FastRCNNError, match="file.*empty folder"):
        make_shapes(tmp_path / "file", train=1, test=1, seed=1)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_impossible_arguments_are_refused(tmp_path, arguments):
    with pytest.raises(FastRCNNError, match="at least 1 training image"):
        make_shapes(tmp_path / "set", *arguments)
