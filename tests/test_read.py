import json
import shutil

import numpy as np
import pytest
from made_annotations import expect_error, kinds_of, make_folder, make_voc, read, thing, xml
from PIL import Image

from fastrcnn.annotations.read import absent, image_paths, part_of, read_data_set, read_data_sets, read_each_data_set
from fastrcnn.annotations.records import class_index
from fastrcnn.config_data import DataConfig, DataSetConfig, SplitConfig
from fastrcnn.errors import FastRCNNError

XML = "<annotation><object><name>cat</name><bndbox>{}</bndbox></object></annotation>".format(
    "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
)
CLASSES = ["cat"]


def draw(folder, count, start=0):
    """Pictures that differ, with XML files and label files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(start, start + count):
        Image.fromarray(np.full((10, 10), n, np.uint8)).save(folder / f"{n:03}.png")
        (folder / f"{n:03}.xml").write_text(XML)
        (folder / f"{n:03}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "classes.txt").write_text("cat\n")
    images = [{"id": int(path.stem), "file_name": path.name} for path in sorted(folder.glob("*.png"))]
    tree = {"images": images, "annotations": [], "categories": []}
    (folder / "instances_all.json").write_text(json.dumps(tree))


def ids(folder, split, format_name="folder", **data):
    dataset = DataSetConfig(format=format_name, root=str(folder), split=split)
    return [record.id for record in read_data_sets([dataset], DataConfig(**data), CLASSES)]


def split_of(part, of=(0.5, 0.5), seed=0):
    return SplitConfig(part=part, of=list(of), seed=seed)


@pytest.mark.parametrize("format_name", ["folder", "coco", "yolo"])
@pytest.mark.parametrize("of", [(0.8, 0.2), (0.6, 0.3, 0.1)])
def test_parts_are_a_whole_in_every_format(tmp_path, format_name, of):
    draw(tmp_path, 120)
    parts = [ids(tmp_path, split_of(part, of), format_name) for part in split_of("train", of).parts]
    assert sorted(sum(parts, [])) == [f"{n:03}" for n in range(120)]
    for part, share in zip(parts, of, strict=True):
        assert abs(len(part) - 120 * share) < 4 * np.sqrt(120 * share * (1 - share))


def test_added_and_renamed_pictures_move_no_other_and_equal_ones_stay_together(tmp_path):
    draw(tmp_path, 40)
    before = ids(tmp_path, split_of("train"))
    draw(tmp_path, 40, start=40)
    assert [i for i in ids(tmp_path, split_of("train")) if int(i) < 40] == before
    for n in range(40):
        for suffix in (".png", ".xml"):
            shutil.copy(tmp_path / f"{n:03}{suffix}", tmp_path / f"copy{n:03}{suffix}")
    after = set(ids(tmp_path, split_of("train")))
    assert all((i in after) == (f"copy{i}" in after) for i in (f"{n:03}" for n in range(40)))


def test_a_seed_gives_parts_of_its_own_and_both_readers_the_same(tmp_path):
    draw(tmp_path, 60)
    assert ids(tmp_path, split_of("train")) != ids(tmp_path, split_of("train", seed=1))
    assert ids(tmp_path, split_of("test", seed=1)) == ids(tmp_path, split_of("test", seed=1), "yolo")


def test_an_empty_part_is_an_error_and_a_missing_picture_is_in_one_part(tmp_path):
    draw(tmp_path, 1)
    other = next(part for part in ("train", "test") if part != part_of(tmp_path / "000.png", split_of("train")))
    with pytest.raises(FastRCNNError, match="none of its 1 images is in this part"):
        ids(tmp_path, split_of(other))
    assert part_of(tmp_path / "gone.png", split_of("train")) in ("train", "test")


@pytest.mark.parametrize("format_name", ["folder", "coco", "yolo"])
def test_a_limit_keeps_the_first_of_the_part(tmp_path, format_name):
    draw(tmp_path, 30)
    whole = ids(tmp_path, split_of("train"), format_name)
    assert ids(tmp_path, split_of("train"), format_name, limit=4) == whole[:4]
    dataset = DataSetConfig(format=format_name, root=str(tmp_path), split=split_of("train"))
    assert [path.stem for path in image_paths(dataset, DataConfig(limit=4))] == whole[:4]


def outcomes(dataset, **data):
    found = list(read_data_set(dataset, DataConfig(**data), class_index(CLASSES)))
    records = [record.id for record, _ in found if record is not None]
    return records, [(p.kind, p.outcome) for _, problems in found for p in problems]


@pytest.mark.parametrize("format_name", ["folder", "coco", "yolo"])
def test_unreadable_images_stop_or_are_skipped_and_counted(tmp_path, format_name):
    draw(tmp_path, 3)
    data = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(data[:-20])  # its header is whole
    (tmp_path / "002.png").write_bytes(b"no picture")
    dataset = DataSetConfig(format=format_name, root=str(tmp_path))
    records, found = outcomes(dataset, on_unreadable_image="skip")
    assert records == ["000"] and found.count(("unreadable image", "skipped")) == 2
    records, found = outcomes(dataset)
    assert records == ["000", "001"] and ("unreadable image", "error") in found
    with pytest.raises(FastRCNNError, match=r"002\.png: .*on_unreadable_image: skip"):
        ids(tmp_path, None, format_name)


@pytest.mark.parametrize("format_name", ["folder", "yolo"])
def test_unlabelled_images_stop_are_skipped_or_are_empty(tmp_path, format_name):
    draw(tmp_path, 2)
    for suffix in (".xml", ".txt"):
        (tmp_path / f"001{suffix}").unlink()
    dataset = DataSetConfig(format=format_name, root=str(tmp_path))
    assert outcomes(dataset)[0] == outcomes(dataset, on_unlabelled_image="empty")[0] == ["000", "001"]
    records, found = outcomes(dataset, on_unlabelled_image="skip")
    assert records == ["000"] and ("missing annotation", "skipped") in found
    assert ("missing annotation", "error") in outcomes(dataset, on_unlabelled_image="error")[1]


def test_several_lists_are_joined_and_name_each_image_once(tmp_path):
    draw(tmp_path, 5)
    for name, numbers in (("one", "003\n001\n"), ("two", "001\n004\n")):
        (tmp_path / f"{name}.list").write_text(numbers)
    dataset = DataSetConfig(format="folder", root=str(tmp_path), split=[f"{tmp_path}/{n}.list" for n in ("one", "two")])
    assert outcomes(dataset) == (["003", "001", "004"], [("listed twice", "noted")])


def test_parts_of_coco_and_yolo_are_joined(tmp_path):
    for part, start in (("train", 0), ("val", 3)):
        draw(tmp_path / "images" / part, 3, start)
        (tmp_path / "images" / part / "instances_all.json").rename(tmp_path / f"instances_{part}.json")
    (tmp_path / "classes.txt").write_text("cat\n")
    for format_name in ("coco", "yolo"):
        assert ids(tmp_path, ["val", "train"], format_name) == ["003", "004", "005", "000", "001", "002"]
    assert sorted(ids(tmp_path, split_of("train"), "yolo") + ids(tmp_path, split_of("test"), "yolo")) == sorted(
        ids(tmp_path, ["train", "val"], "yolo")
    )


def test_an_image_that_a_coco_file_names_and_is_not_there_may_be_skipped(tmp_path):
    draw(tmp_path, 2)
    (tmp_path / "001.png").unlink()
    dataset = DataSetConfig(format="coco", root=str(tmp_path))
    assert outcomes(dataset, on_unreadable_image="skip") == (["000"], [("missing image", "skipped")])


@pytest.mark.parametrize(
    ("roots", "prefixes"),
    [
        (["d1", "d2"], ["d1", "d2"]),
        (["x/a/images", "x/b/images"], ["a", "b"]),
        (["x/a/one/images", "x/b/two/images"], ["a/one", "b/two"]),
        (["x", "x/x"], ["x", "x/x"]),
        (["day 1", "day 2", "night"], ["day 1", "day 2", "night"]),
    ],
)
def test_files_of_one_name_get_the_part_of_the_roots_that_differs(tmp_path, roots, prefixes):
    sets = []
    for i, root in enumerate(roots):
        make_folder(tmp_path / root, {"f": xml(thing("dog" if i % 2 else "cat"))})
    if roots == ["x", "x/x"]:  # a list keeps the outer set from reading the inner one
        (tmp_path / "outer.txt").write_text("f.jpg\n")
    for i, root in enumerate(roots):
        split = str(tmp_path / "outer.txt") if roots == ["x", "x/x"] and i == 0 else None
        sets.append(DataSetConfig(format="folder", root=str(tmp_path / root), split=split))
    problems = []
    each = read_each_data_set(sets, DataConfig(), ["cat", "dog"], problems)
    assert [record.id for records in each for record in records] == [f"{prefix}/f" for prefix in prefixes]
    assert [record.classes.tolist() for records in each for record in records] == [[1], [2], [1]][: len(roots)]
    assert [p.outcome for p in problems if p.kind == "same names"] == ["noted"]


def test_all_images_of_sets_that_clash_are_renamed_and_no_others(tmp_path):
    sets = [
        make_folder(tmp_path / name, files) for name, files in (("a", {"1": xml(), "2": xml()}), ("b", {"1": xml()}))
    ]
    sets.append(make_voc(tmp_path / "VOC2007", {"000005": xml()}))
    problems = []
    assert [r.id for r in read(sets, problems=problems)] == ["a/1", "a/2", "b/1", "000005"]
    assert "1 names" in kinds_of(problems)["same names"]
    assert [r.id for r in read(sets[1:])] == ["1", "000005"]


def test_a_file_that_is_listed_in_two_sets_is_an_error(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    message = expect_error(lambda: read([dataset, dataset]), "a.jpg", "listed twice", "leave it out of one list")
    assert "rename" not in message


def test_a_set_is_absent_where_the_file_that_names_its_pictures_is(tmp_path):
    """Or, without such a file, its root; what is fetched says so."""
    draw(tmp_path, 1)
    file, elsewhere = str(tmp_path / "instances_all.json"), str(tmp_path / "elsewhere")
    assert absent(DataSetConfig(format="coco", root=elsewhere, annotations=file)) is None
    assert absent(DataSetConfig(format="folder", root=str(tmp_path), annotations=elsewhere)) is None
    missing = DataSetConfig(format="yolo", root=str(tmp_path), annotations=elsewhere, source="a.zip of the moon")
    assert absent(missing) == f"{elsewhere}: not there; it comes from a.zip of the moon"
    assert "elsewhere: fetched" in absent(DataSetConfig(root=elsewhere, split="val", download=True))
    assert "elsewhere: not there; put it" in absent(DataSetConfig(format="folder", root=elsewhere))
    expect_error(lambda: read(missing), "elsewhere", "; it comes from a.zip of the moon")
