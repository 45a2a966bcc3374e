import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_annotations import CLASSES, expect_error
from oracles_mutations import altered, fuzzing, mutated
from PIL import Image

from fastrcnn.annotations.read import read_data_sets
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

TREE = {
    "images": [
        {"id": 0, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 5.5, 20, 9.25], "area": 1, "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 10], "keypoints": [1, 2, 2]},
    ],
    "categories": [{"id": 1, "name": "cat "}, {"id": 3, "name": "DOG"}, {"id": 9, "name": "never used"}],
}


def draw(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def make(root, tree=TREE, json_name="annotations.json", pictures=("a.jpg", "b.jpg")):
    for name in pictures:
        draw(root / name)
    path = root / json_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return DataSetConfig(format="coco", root=str(root))


def changed(**lists):
    """TREE with other images, annotations or categories."""
    return {**TREE, **lists}


def annotated(*annotations):
    """TREE with annotations of a.jpg, each a change of a good one."""
    good = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 10], "iscrowd": 0}
    return changed(annotations=[{"id": n, **good, **a} for n, a in enumerate(annotations, start=1)])


def read(dataset, problems=None, classes=CLASSES, **data):
    return read_data_sets([dataset], DataConfig(**data), classes, problems)


def kinds(problems):
    return [(p.kind, p.outcome) for p in problems]


def test_boxes_are_corner_and_size_and_the_order_is_the_file_s(tmp_path):
    problems = []
    first, second = read(make(tmp_path), problems)
    assert (first.id, first.path, first.annotation) == ("b", tmp_path / "b.jpg", tmp_path / "annotations.json")
    assert (second.id, second.width, second.height) == ("a", 40, 30)
    np.testing.assert_array_equal(first.boxes, np.array([[0, 0, 40, 30]], np.float32))
    np.testing.assert_array_equal(second.boxes, np.array([[10, 5.5, 30, 14.75], [1, 2, 11, 12]], np.float32))
    assert (first.classes.tolist(), second.classes.tolist()) == ([2], [1, 2])
    assert (first.difficult.tolist(), second.difficult.tolist()) == ([True], [False, False])
    assert problems == []


def test_the_far_side_is_added_in_float64(tmp_path):
    x, width = 16.32, 1.05
    (record,) = [r for r in read(make(tmp_path, annotated({"bbox": [x, 0, width, 30]}))) if r.id == "a"]
    assert record.boxes[0, 2] == np.float32(x + width) != np.float32(x) + np.float32(width)


@pytest.mark.parametrize(
    ("json_name", "pictures", "split"),
    [
        ("train/_annotations.coco.json", ("train/a.jpg", "train/b.jpg"), "train"),  # Roboflow
        ("annotations/instances_default.json", ("images/a.jpg", "images/b.jpg"), ""),  # CVAT
        ("annotations/instances_default.json", ("images/default/a.jpg", "images/default/b.jpg"), ""),  # Datumaro
        ("annotations/instances_train2017.json", ("train2017/a.jpg", "train2017/b.jpg", "val2017/a.jpg"), ""),  # COCO
        ("annotations/instances_val.json", ("train/a.jpg", "val/a.jpg", "val/b.jpg"), "val"),
        ("result.json", ("images/a.jpg", "images/b.jpg"), ""),  # Label Studio
        ("a.json", ("deep/down/a.jpg", "elsewhere/b.jpg"), ""),
    ],
)
def test_pictures_lie_where_tools_put_them(tmp_path, json_name, pictures, split):
    dataset = make(tmp_path, json_name=json_name, pictures=pictures)
    dataset.split = split or None
    records = read(dataset)
    assert [r.id for r in records] == ["b", "a"]
    assert "val2017" not in str(records[1].path) and all(not split or split in r.path.parts for r in records)


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("one/a.jpg", "one/a"),
        ("./one/a.jpg", "one/a"),
        ("one\\a.jpg", "one/a"),
        ("/home/somebody/set/one/a.jpg", "one/a"),
        ("C:\\Users\\me\\one\\a.jpg", "one/a"),
        ("gone/only.jpg", "only"),
        ("file é.jpg", "file é"),
    ],
)
def test_file_names_of_other_machines_find_their_pictures(tmp_path, file_name, expected):
    images = [{"id": 1, "file_name": file_name, "width": 40, "height": 30}]
    pictures = ("one/a.jpg", "two/a.jpg", "three/only.jpg", "file é.jpg")
    records = read(make(tmp_path, changed(images=images, annotations=[]), pictures=pictures))
    assert [r.id for r in records] == [expected]


def test_a_name_that_several_pictures_have_is_not_guessed(tmp_path):
    dataset = make(tmp_path, pictures=("one/a.jpg", "two/a.jpg", "b.jpg"))
    expect_error(lambda: read(dataset), "a.jpg", "one/a.jpg", "two/a.jpg", "its folder")


@pytest.mark.parametrize("ids", [(0, 1), (10**30, -1), ("x", "y"), ("a.jpg", 1.0), (1, "2")])
def test_ids_are_of_any_size_and_type(tmp_path, ids):
    images = [{"id": i, "file_name": f} for i, f in zip(ids, ("a.jpg", "b.jpg"), strict=True)]
    objects = [{"id": i, "image_id": i, "category_id": "k", "bbox": [n, 0, 9, 9]} for n, i in enumerate(ids)]
    tree = {"images": images, "annotations": objects, "categories": [{"id": "k", "name": "cat"}]}
    assert [r.boxes.tolist() for r in read(make(tmp_path, tree))] == [[[0, 0, 9, 9]], [[1, 0, 10, 9]]]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}], ("image b.jpg", "id 1 of a.jpg")),
        ([{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}], ("image a.jpg", "two ids")),
        ([{"file_name": "a.jpg"}], ("image a.jpg", "no id")),
        ([{"id": True, "file_name": "a.jpg"}], ("image a.jpg", "no id")),
        ([{"id": 1}], ("image 1 of its list", "file_name")),
        (["a.jpg"], ("image 1 of its list", "file_name")),
        ([{"id": 1, "file_name": "c.jpg"}], ("c.jpg", "no such picture", "annotations.json names it")),
    ],
)
def test_images_that_cannot_be_are_named(tmp_path, images, words):
    expect_error(lambda: read(make(tmp_path, changed(images=images, annotations=[]))), "annotations.json", *words)


def test_what_belongs_to_no_image_is_counted(tmp_path):
    images = [TREE["images"][1], TREE["images"][1]]
    annotations = [{**TREE["annotations"][0], "image_id": i} for i in (7, 70, 70, None)]
    problems = []
    make(tmp_path, pictures=("a.jpg", "b.jpg", "sub/c.jpg", "x/d.txt.png"))
    (record,) = read(make(tmp_path, changed(images=images, annotations=annotations)), problems)
    assert len(record.boxes) == 1
    text = {p.kind: (p.outcome, str(p)) for p in problems}
    assert text["image listed twice"][0] == "noted"
    assert text["annotation without image"][0] == "ignored" and "3 of its" in text["annotation without image"][1]
    assert text["annotation id twice"][0] == "noted" and "such as 1" in text["annotation id twice"][1]
    assert "does not name 3 pictures" in text["picture not named"][1]


def test_categories_of_one_name_are_one_class_and_one_number_with_two_names_is_an_error(tmp_path):
    problems = []
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "cat"}]
    records = read(make(tmp_path, changed(categories=categories)), problems)
    assert [r.classes.tolist() for r in records] == [[1], [1, 1]]
    assert kinds(problems) == [("category listed twice", "noted")]
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 3, "name": "dog"}]
    expect_error(lambda: read(make(tmp_path, changed(categories=categories))), "category 1", "'cat'", "'dog'")
    expect_error(lambda: read(make(tmp_path, changed(categories=[{"id": 1}]))), "category 1 of its list")


def test_an_unknown_class_names_the_annotation(tmp_path):
    dataset = make(tmp_path)
    expect_error(lambda: read(dataset, classes=["cat", "dgo"]), "annotation 2 of image b.jpg", "'DOG'", "'dgo'")
    problems = []
    read(dataset, problems, classes=["cat"], on_unknown_class="ignore")
    assert kinds(problems) == [("unknown class", "ignored")] * 2
    expect_error(lambda: read(make(tmp_path, annotated({"category_id": 5}))), "annotation 1", "category_id 5")


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"bbox": [1, 2, 0, 5]}, "box empty", "[1, 2, 0, 5]"),
        ({"bbox": [20, 20, -5, 5]}, "box inside out", "[20, 20, -5, 5]"),
        ({"bbox": [35, 2, 10, 10]}, "box outside", "40 x 30"),
        ({"bbox": [1, 2, 3]}, "box unreadable", "four numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "box unreadable", "four numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "box unreadable", "four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "box unreadable", "four numbers"),
        ({"bbox": "1 2 3 4"}, "box unreadable", "four numbers"),
        ({"bbox": None}, "box missing", "no bbox"),
        ({"bbox": []}, "box missing", "no bbox"),
        ({"bbox": [], "segmentation": {"counts": "abc", "size": [30, 40]}}, "box missing", "RLE"),
        ({"bbox": [], "segmentation": [[1, 2, 3]]}, "box missing", "no polygon"),
    ],
)
def test_bad_boxes_are_named_by_kind_and_annotation(tmp_path, change, kind, word):
    dataset = make(tmp_path, annotated({}, change))
    expect_error(lambda: read(dataset), "annotations.json: annotation 2 of image a.jpg", word, "on_bad_box")
    problems = []
    records = read(dataset, problems, on_bad_box="skip")
    assert [len(r.boxes) for r in records] == [0, 1]
    assert [(p.kind, p.object, p.outcome) for p in problems] == [(kind, "annotation 2 of image a.jpg", "skipped")]


def test_a_polygon_without_a_box_gives_the_box_around_it(tmp_path):
    polygons = [[1, 2, 11, 2, 11, 12.5], [20, 4, 22, 4, 21, 3]]
    problems = []
    record = read(make(tmp_path, annotated({"bbox": None, "segmentation": polygons}, {})), problems)[1]
    np.testing.assert_array_equal(record.boxes, np.array([[1, 2, 22, 12.5], [1, 2, 11, 12]], np.float32))
    assert kinds(problems) == [("polygon", "noted")] and "1 objects" in str(problems[0])


def test_a_box_that_leaves_its_image_by_rounding_ends_on_the_edge(tmp_path):
    problems = []
    boxes = [[-9e-6, 0, 40 + 1.8e-5, 30], [0.1, 0, 39.900001, 30]]
    record = read(make(tmp_path, annotated(*({"bbox": box} for box in boxes))), problems)[1]
    np.testing.assert_array_equal(record.boxes, np.array([[0, 0, 40, 30], [0.1, 0, 40, 30]], np.float32))
    assert problems == []
    expect_error(lambda: read(make(tmp_path, annotated({"bbox": [-2e-5, 0, 9, 9]}))), "leaves the image")


def test_a_size_that_contradicts_the_picture_is_noted(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg", "width": 80, "height": 60}]
    problems = []
    read(make(tmp_path, changed(images=images, annotations=[])), problems)
    assert kinds(problems) == [("size differs", "noted"), ("picture not named", "noted")][::-1]
    assert "80 x 60" in str(problems[1]) and "40 x 30" in str(problems[1])


def test_an_unreadable_picture_and_a_bad_iscrowd_are_named(tmp_path):
    dataset = make(tmp_path, annotated({"iscrowd": "yes"}))
    expect_error(lambda: read(dataset), "annotation 1 of image a.jpg", "iscrowd", "'yes'")
    make(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    expect_error(lambda: read(dataset), tmp_path / "a.jpg")


def test_several_files_are_named_and_one_is_chosen(tmp_path):
    dataset = make(tmp_path, json_name="annotations/instances_a.json")
    make(tmp_path, changed(images=[]), json_name="annotations/instances_b.json")
    make(tmp_path, {}, json_name="annotations/captions.json")
    expect_error(lambda: read(dataset), "instances_a.json", "instances_b.json", "`annotations`")
    dataset.annotations = str(tmp_path / "annotations" / "instances_a.json")
    assert len(read(dataset)) == 2
    dataset.annotations, dataset.split = None, "a"
    assert len(read(dataset)) == 2
    dataset.split = "c"
    expect_error(lambda: read(dataset), tmp_path, "no JSON file of c", "`annotations`")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("not JSON",)),
        ("[" * 100_000, ("not JSON",)),
        ("{}", ("not a COCO data set",)),
        ('{"images": [], "annotations": {}, "categories": []}', ("not a COCO data set",)),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', ("results", "categories")),
        ('{"version": "5", "shapes": [], "imagePath": "a.jpg"}', ("labelme", "COCO")),
        ('{"a.jpg1": {"filename": "a.jpg", "regions": []}}', ("VIA", "COCO")),
        ('{"_via_img_metadata": {}}', ("VIA", "COCO")),
        ('[{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}]', ("Label Studio", "COCO")),
        ('[{"image": "a.jpg", "annotations": []}]', ("Create ML", "COCO")),
    ],
)
def test_other_files_are_refused_with_the_export_to_choose(tmp_path, text, words):
    dataset = make(tmp_path)
    (tmp_path / "annotations.json").write_text(text)
    expect_error(lambda: read(dataset), tmp_path / "annotations.json", *words)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    logging.getLogger("fastrcnn").setLevel(logging.ERROR)
    yield make(tmp_path_factory.mktemp("damaged"))
    logging.getLogger("fastrcnn").setLevel(logging.NOTSET)


def check_damaged(dataset, on_bad_box):
    try:
        records = read(dataset, on_bad_box=on_bad_box, on_unknown_class="ignore")
    except FastRCNNError as e:
        assert dataset.root in str(e)
        return
    for record in records:
        assert record.boxes.shape == (len(record.classes), 4) and record.classes.shape == record.difficult.shape
        x1, y1, x2, y2 = record.boxes.T
        assert np.all((x1 >= 0) & (x1 < x2) & (x2 <= 40) & (y1 >= 0) & (y1 < y2) & (y2 <= 30))


@fuzzing
@given(tree=altered(TREE), on_bad_box=st.sampled_from(["error", "clip", "skip"]))
def test_files_with_mutated_values_are_read_or_refused(damaged, tree, on_bad_box):
    Path(damaged.root, "annotations.json").write_text(json.dumps(tree))
    check_damaged(damaged, on_bad_box)


@fuzzing
@given(data=mutated([json.dumps(TREE).encode(), json.dumps(TREE).encode("utf-16")]))
def test_mutated_files_are_read_or_refused(damaged, data):
    Path(damaged.root, "annotations.json").write_bytes(data)
    check_damaged(damaged, "skip")
