import numpy as np
import pytest
from made_annotations import draw, expect_error, make_folder, make_voc, read, thing, xml

from fastrcnn.config import DataSetConfig


def test_sets_are_joined_in_the_order_of_their_lists(tmp_path):
    first = make_voc(tmp_path / "VOC2007", {"b": xml(thing()), "a": xml()})
    second = make_voc(tmp_path / "VOC2012", {"2012_1": xml(thing("dog"))}, split="trainval")
    assert [r.id for r in read([first, second])] == ["b", "a", "2012_1"]


def test_an_id_that_stands_twice_names_both_files(tmp_path):
    first, second = (make_voc(tmp_path / year, {"a": xml()}) for year in ("VOC2007", "VOC2012"))
    expect_error(lambda: read([first, second]), tmp_path / "VOC2007", tmp_path / "VOC2012", "rename")
    expect_error(lambda: read([first, first]), "a.jpg", "its id a")


def test_lists_may_have_blank_lines_and_class_columns(tmp_path):
    dataset = make_voc(tmp_path, {stem: xml() for stem in ("a", "b", "c", "my photo")}, split="cat_train")
    listing = tmp_path / "ImageSets" / "Main" / "cat_train.txt"
    listing.write_bytes("\ufeffa  1\r\n\r\nb -1\n  \nc  0\nmy photo\n".encode())
    assert [r.id for r in read(dataset)] == ["a", "c", "my photo"]


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png"])
def test_images_may_have_other_suffixes(tmp_path, suffix):
    assert read(make_voc(tmp_path, {"a": xml()}, suffix=suffix))[0].path.name == f"a{suffix}"


def test_a_folder_as_labelimg_leaves_it(tmp_path, caplog):
    labelled = xml(thing("dog", (1, 1, 5, 5), extra=""), size=(0, 0))
    dataset = make_folder(tmp_path, {"two words": labelled, "a.b": xml(thing()), "none": None, "later": None})
    (tmp_path / "classes.txt").write_text("dog\n")
    (tmp_path / "._a.b.jpg").write_bytes(b"left by a Mac")
    problems = []
    records = read(dataset, problems=problems)
    assert [(r.id, len(r.boxes), r.annotation and r.annotation.name) for r in records] == [
        ("a.b", 1, "a.b.xml"),
        ("later", 0, None),
        ("none", 0, None),
        ("two words", 1, "two words.xml"),
    ]
    assert sorted((p.kind, p.file.name) for p in problems) == [
        ("missing annotation", "later.jpg"),
        ("missing annotation", "none.jpg"),
        ("size differs", "two words.xml"),
    ]
    assert caplog.text.count("missing annotation: 2 noted") == 1


def test_annotations_may_lie_in_a_folder_of_their_own(tmp_path):
    draw(tmp_path / "pictures" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.xml").write_text(xml(thing()))
    paths = {"root": str(tmp_path / "pictures"), "annotations": str(tmp_path / "labels")}
    record = read(DataSetConfig(format="folder", **paths))[0]
    assert record.path.name == "a.png"
    np.testing.assert_array_equal(record.boxes, np.array([[10, 5, 20, 15]], np.float32))
    alone = DataSetConfig(format="folder", root=str(tmp_path / "pictures"))
    expect_error(lambda: read(alone), tmp_path / "pictures", "no XML file", "annotations")


def test_a_list_chooses_from_a_folder(tmp_path):
    dataset = make_folder(tmp_path / "set", {"a": xml(), "b 1": xml(), "c": xml()})
    (tmp_path / "chosen.txt").write_text("c\nb 1.jpg\n")
    dataset.split = str(tmp_path / "chosen.txt")
    assert [r.id for r in read(dataset)] == ["c", "b 1"]


def test_missing_pieces_are_named(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml(), "b": xml()})
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    expect_error(lambda: read(dataset), tmp_path / "JPEGImages" / "b.jpg", "no such image", f"drop b from {listing}")
    draw(tmp_path / "JPEGImages" / "b.jpg")
    draw(tmp_path / "JPEGImages" / "b.png")
    expect_error(lambda: read(dataset), "b.jpg", "b.png", "remove")
    (tmp_path / "JPEGImages" / "b.png").unlink()
    (tmp_path / "Annotations" / "a.xml").unlink()
    expect_error(
        lambda: read(dataset), tmp_path / "Annotations" / "a.xml", "no such annotation", f"drop a from {listing}"
    )
    dataset.split = "val"
    expect_error(lambda: read(dataset), "val.txt", "no such list")
    dataset.root = str(tmp_path / "elsewhere")
    expect_error(lambda: read(dataset), "elsewhere", "no such folder")


def test_xml_without_its_image_is_an_error_in_a_folder_too(tmp_path):
    dataset = make_folder(tmp_path, {"a": xml(), "b": xml()})
    (tmp_path / "b.jpg").unlink()
    expect_error(lambda: read(dataset), "b.jpg", "b.xml has no image")


def test_an_unreadable_image_is_named(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    expect_error(lambda: read(dataset), tmp_path / "JPEGImages" / "a.jpg")


def test_a_list_that_is_no_text_is_named(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x80\n")
    expect_error(lambda: read(dataset), "train.txt", "UTF-8")


def test_a_list_cannot_name_files_outside_its_set(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("../JPEGImages/a\n")
    expect_error(lambda: read(dataset), "no such image")
