import os
import sys
import unicodedata

import numpy as np
import pytest
from made_annotations import draw, expect_error, kinds_of, make_folder, make_voc, read, thing, xml

from fastrcnn.config_data import DataSetConfig


def test_sets_are_joined_in_the_order_of_their_lists(tmp_path):
    first = make_voc(tmp_path / "VOC2007", {"b": xml(thing()), "a": xml()})
    second = make_voc(tmp_path / "VOC2012", {"2012_1": xml(thing("dog"))}, split="trainval")
    assert [r.id for r in read([first, second])] == ["b", "a", "2012_1"]


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
        ("files not read", tmp_path.name),
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
    problems = []
    read(DataSetConfig(format="folder", root=str(tmp_path / "pictures")), problems=problems)
    assert "`annotations`" in kinds_of(problems)["no annotations"]


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
    expect_error(lambda: read(dataset), "b.jpg", "b.png", "suffix")
    (tmp_path / "JPEGImages" / "b.png").unlink()
    (tmp_path / "Annotations" / "a.xml").unlink()
    expect_error(lambda: read(dataset), "a.jpg", f"no a.xml in {tmp_path / 'Annotations'}", "on_unlabelled_image: skip")
    dataset.split = "val"
    expect_error(lambda: read(dataset), "val.txt", "no such list")
    dataset.root = str(tmp_path / "elsewhere")
    expect_error(lambda: read(dataset), "elsewhere", "no such folder")


def test_annotations_of_voc_may_lie_elsewhere(tmp_path):
    """Corrected ones beside the official ones; a folder that is not there is no set without annotations."""
    dataset = make_voc(tmp_path, {"a": xml(thing("cat"))})
    (tmp_path / "corrected").mkdir()
    (tmp_path / "corrected/a.xml").write_text(xml(thing("dog"), thing("dog")))
    dataset.annotations = str(tmp_path / "corrected")
    (record,) = read(dataset)
    assert record.classes.tolist() == [2, 2] and record.annotation == tmp_path / "corrected/a.xml"


@pytest.mark.parametrize("form", ["voc", "folder", "coco", "yolo"])
def test_annotations_that_are_not_there_are_named(tmp_path, form):
    make_voc(tmp_path, {"a": xml(thing())})
    (tmp_path / "JPEGImages/a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "JPEGImages/classes.txt").write_text("cat")
    root, split = (tmp_path, "train") if form == "voc" else (tmp_path / "JPEGImages", None)
    dataset = DataSetConfig(format=form, root=str(root), split=split, annotations=str(tmp_path / "nowhere"))
    expect_error(lambda: read(dataset), tmp_path / "nowhere", "no such f", "check `annotations`")


def test_an_unreadable_image_is_named(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    expect_error(lambda: read(dataset), tmp_path / "JPEGImages" / "a.jpg")


def listed(tmp_path, lines, names, **voc):
    """The ids that a VOC list gives, and its remarks; `names` are those of the pictures."""
    make_voc(tmp_path, {})
    for name in names:
        draw(tmp_path / "JPEGImages" / "x.png")
        target = tmp_path / "JPEGImages" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "JPEGImages" / "x.png").rename(target)
        (tmp_path / "Annotations" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Annotations" / name).with_suffix(".xml").write_text(xml(thing()))
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    listing.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    problems = []
    records = read(DataSetConfig(root=str(tmp_path), split="train"), problems=problems)
    assert all(len(record.boxes) == 1 for record in records)
    return [record.id for record in records], kinds_of(problems)


LISTS = {
    "suffixes": "a.jpg\nb.jpg\n",
    "VoTT": "a.jpg 1\nb.jpg  1\n",
    "VOC classes": "a  1\nb 0\n",
    "class numbers": "a.jpg 17\r\nb.jpg\t3\r\n",
    "paths": "JPEGImages/a.jpg\n./JPEGImages/b.jpg\n",
    "backslashes": "..\\JPEGImages\\a.jpg\nJPEGImages\\b\n",
    "another machine": "/home/me/voc/JPEGImages/a.jpg\nC:\\me\\photos\\b.jpg 1\n",
    "a mark, comments, blanks": "\ufeffa.jpg\n\n# those of May\n  b  \n",
    "utf-16": "a.jpg\nb.jpg\n".encode("utf-16"),
    "utf-16 without a mark": "a.jpg\nb.jpg\n".encode("utf-16-le"),
    "another suffix": "a.png\nb.png\n",
    "another case": "A.JPG\nB\n",
    "doubled": "a\nb\na.jpg\nJPEGImages/b.jpg\n",
    "quotes": '"a.jpg"\n"b.jpg"\n',
}


@pytest.mark.parametrize(("kind", "lines"), LISTS.items(), ids=LISTS.keys())
def test_lists_as_people_have_them(tmp_path, kind, lines):
    ids, remarks = listed(tmp_path, lines, ["a.jpg", "b.jpg", "c.jpg"])
    assert ids == ["a", "b"]
    loose = kind in ("paths", "backslashes", "another machine", "another case", "quotes")
    assert ("listed otherwise" in remarks) == loose
    assert ("listed twice" in remarks) == (kind == "doubled")
    assert kind != "doubled" or remarks["listed twice"].startswith("2 images")


def test_lines_of_absent_classes_are_left_out_and_counted(tmp_path):
    ids, remarks = listed(tmp_path, "a 1\nb -1\nnone -1\n", ["a.jpg", "b.jpg"])
    assert ids == ["a"] and remarks["class absent"].startswith("2 images")
    expect_error(lambda: listed(tmp_path, "a -1\n", ["a.jpg"]), "train.txt", "names no images but 1 marked -1")


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (["猫.jpg", "ä.jpg"], "猫\nä\n".encode("gb18030")),
        (["ä.jpg", "b.jpg"], "ä\nb\n".encode("cp1252")),
        (["a\u0308.jpg", "b.jpg"], "ä.jpg\nb.jpg\n".encode()),  # the file as macOS stores it
        (["ä.jpg", "b.jpg"], "a\u0308\nb\n".encode()),
        (["x 1.jpg", "20.MP4#t=0.7.jpg"], b"x 1\n20.MP4#t=0.7.jpg 1\n"),
        (["#1.jpg", "b.c.jpg"], b"#1\nb.c\n"),
    ],
)
def test_names_are_found_in_any_form(tmp_path, names, lines):
    ids, _ = listed(tmp_path, lines, names)
    assert ids == [unicodedata.normalize("NFC", name.removesuffix(".jpg")) for name in names]


def test_two_lines_never_share_a_picture_by_chance(tmp_path):
    call = lambda: listed(tmp_path, "/old/day1/1.jpg\n/old/day2/1.jpg\n", ["1.jpg", "2.jpg"])  # noqa: E731
    expect_error(call, "day2/1.jpg", "no such image")


def test_a_list_cannot_name_files_outside_its_set(tmp_path):
    draw(tmp_path / "elsewhere" / "b.jpg")
    for line in ("../elsewhere/b", str(tmp_path / "elsewhere" / "b.jpg"), "day/a.jpg"):
        expect_error(lambda line=line: listed(tmp_path, f"{line}\n", ["a.jpg", "b.jpg"]), "no such image")


def test_a_list_that_is_no_text_is_named(tmp_path):
    expect_error(lambda: listed(tmp_path, b"\x80\xff\x81\n", ["a.jpg"]), "train.txt", "UTF-8")


def test_sub_folders_are_read_in_both_layouts(tmp_path):
    ids, remarks = listed(tmp_path / "voc", "day/1\nday2\\1.jpg\n", ["day/1.jpg", "day2/1.jpg", "top.jpg"])
    assert ids == ["day/1", "day2/1"] and remarks == {}
    dataset = make_folder(tmp_path / "set", {"top": xml(thing()), "day/b": xml(), "night/b": xml(thing("dog"))})
    assert [(r.id, r.classes.tolist()) for r in read(dataset)] == [("day/b", []), ("night/b", [2]), ("top", [1])]


@pytest.mark.parametrize("label_folder", ["flat", "mirror", "beside"])
def test_xml_files_lie_flat_or_mirror_the_pictures(tmp_path, label_folder):
    draw(tmp_path / "images" / "day" / "a.jpg")
    draw(tmp_path / "images" / "b.jpg")
    folder = tmp_path / "annotations"
    (folder / "day").mkdir(parents=True)
    (folder / ("a.xml" if label_folder == "flat" else "day/a.xml")).write_text(xml(thing("dog")))
    (folder / "b.xml").write_text(xml(thing()))
    root, annotations = (tmp_path, None) if label_folder == "beside" else (tmp_path / "images", str(folder))
    records = read(DataSetConfig(format="folder", root=str(root), annotations=annotations))
    assert {r.id.removeprefix("images/"): r.classes.tolist() for r in records} == {"b": [1], "day/a": [2]}


def test_a_flat_xml_file_is_nobodys_where_names_repeat(tmp_path):
    for name in ("day/a", "night/a", "b"):
        draw(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        (tmp_path / "labels" / f"{name}.xml").write_text(xml(thing()))
    paths = {"root": str(tmp_path / "images"), "annotations": str(tmp_path / "labels")}
    problems = []
    records = read(DataSetConfig(format="folder", **paths), problems=problems)
    assert [(r.id, len(r.boxes)) for r in records] == [("b", 1), ("day/a", 0), ("night/a", 0)]
    assert "1 XML files have no picture" in kinds_of(problems)["annotations of other pictures"]


def test_one_folder_of_annotations_serves_two_splits(tmp_path):
    for part, name in (("train", "a"), ("val", "b")):
        draw(tmp_path / part / f"{name}.jpg")
    (tmp_path / "labels").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "labels" / f"{name}.xml").write_text(xml(thing()))
    for part, name in (("train", "a"), ("val", "b")):
        problems = []
        paths = {"root": str(tmp_path / part), "annotations": str(tmp_path / "labels")}
        assert [r.id for r in read(DataSetConfig(format="folder", **paths), problems=problems)] == [name]
        (text,) = kinds_of(problems).values()
        assert text.startswith("2 XML files have no picture") and "remove" not in text


def test_hidden_files_are_skipped_quietly_and_others_counted(tmp_path):
    dataset = make_folder(tmp_path, {"a": xml(thing())})
    for name in (".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/._a.jpg", "._a.jpg", "Thumbs.db", ".a.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    problems = []
    assert [r.id for r in read(dataset, problems=problems)] == ["a"] and problems == []
    for name in ("b.heic", "c.HEIC", "d.nef", "classes.txt", "deep/notes.txt", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    read(dataset, problems=problems)
    remarks = kinds_of(problems)
    assert "2 .heic, 1 .nef" in remarks["pictures not read"] and "2 .txt, 1 without suffix" in remarks["files not read"]


def test_xml_may_be_named_with_the_pictures_suffix(tmp_path):
    dataset = make_folder(tmp_path, {"a": None, "b": xml()})
    (tmp_path / "a.jpg.xml").write_text(xml(thing()))
    assert [(r.id, len(r.boxes)) for r in read(dataset)] == [("a", 1), ("b", 0)]


def test_names_that_differ_in_case_only_belong_together(tmp_path):
    dataset = make_folder(tmp_path, {"a": None, "b": xml()})
    (tmp_path / "A.XML").write_text(xml(thing()))
    assert [(r.id, len(r.boxes)) for r in read(dataset)] == [("a", 1), ("b", 0)]


def test_a_list_with_suffixes_tells_pictures_of_one_name_apart(tmp_path):
    names = ["a.jpg", "a.png"]
    message = expect_error(lambda: listed(tmp_path, "a\n", names), "a.jpg", "a.png", "suffix")
    assert "remove" not in message and "rename" not in message
    assert listed(tmp_path, "a.png\n", names)[0] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_used(tmp_path):
    dataset = make_folder(tmp_path, {"a": xml(), "b": xml(thing())})
    for suffix in (".jpg", ".xml"):
        (tmp_path / f"b{suffix}").rename(tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode()))
    records = read(dataset)
    assert [(r.id, len(r.boxes)) for r in records] == [("a", 0), ("caf%E9", 1)]
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no picture")
    expect_error(lambda: read(dataset), "not a picture").encode()


def test_a_set_without_any_annotation_is_for_detection_only(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml(), "b": xml()})
    for name in ("a", "b"):
        (tmp_path / "Annotations" / f"{name}.xml").unlink()
    for _ in range(2):
        problems = []
        assert [(r.id, r.annotation) for r in read(dataset, problems=problems)] == [("a", None), ("b", None)]
        assert "none of its 2 images" in kinds_of(problems)["no annotations"]
        (tmp_path / "Annotations").rmdir() if (tmp_path / "Annotations").exists() else None


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").touch()
    (tmp_path / "b.txt").touch()
    dataset = DataSetConfig(format="folder", root=str(tmp_path))
    expect_error(lambda: read(dataset), tmp_path, "no pictures", "1 .heic, 1 .txt")
    dataset = make_voc(tmp_path / "voc", {"a": xml()})
    (tmp_path / "voc" / "JPEGImages" / "b.heic").touch()
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("a\nb.heic\n")
    expect_error(lambda: read(dataset), "b.heic", "kind that is not read")
