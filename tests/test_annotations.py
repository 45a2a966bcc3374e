import functools
import hashlib
import http.server
import logging
import tarfile
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_mutations import fuzzing, mutated
from PIL import Image

from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.records import for_training
from fastrcnn.config import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

CLASSES = ["Cat", "dog"]
PART = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"


def thing(name="cat", box=(11, 6, 20, 15), extra="<difficult>0</difficult>"):
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def xml(*objects, size=(40, 30), header=""):
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"{header}<annotation><path>C:\\photos\\a.jpg</path>{size}{''.join(objects)}</annotation>"


def draw(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def make_voc(root, files, split="train", suffix=".jpg"):
    """A VOC layout of {id: text of its XML}, listed in this order."""
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "Annotations").mkdir(exist_ok=True)
    for stem, text in files.items():
        draw(root / "JPEGImages" / f"{stem}{suffix}")
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in files))
    return DataSetConfig(root=str(root), split=split)


def make_folder(root, files):
    for stem, text in files.items():
        draw(root / f"{stem}.jpg")
        if text is not None:
            (root / f"{stem}.xml").write_text(text)
    return DataSetConfig(format="folder", root=str(root))


def read(dataset, classes=CLASSES, problems=None, training=False, **data):
    datasets = dataset if isinstance(dataset, list) else [dataset]
    records = read_data_sets(datasets, DataConfig(**data), classes, problems)
    return for_training(records, DataConfig(**data)) if training else records


def read_one(tmp_path, *objects, problems=None, **data):
    return read(make_voc(tmp_path, {"a": xml(*objects)}), problems=problems, **data)[0]


def expect_error(call, *words):
    with pytest.raises(FastRCNNError) as error:
        call()
    for word in words:
        assert str(word) in str(error.value)
    return str(error.value)


# ---- what a record holds


def test_voc_boxes_become_half_open_and_keep_their_order(tmp_path):
    objects = thing("dog", (1, 1, 40, 30)), thing("cat", (11, 6, 11, 15), "<difficult>1</difficult>")
    record = read_one(tmp_path, *objects)
    assert (record.id, record.width, record.height) == ("a", 40, 30)
    assert record.path == tmp_path / "JPEGImages" / "a.jpg"
    assert record.annotation == tmp_path / "Annotations" / "a.xml"
    np.testing.assert_array_equal(record.boxes, np.array([[0, 0, 40, 30], [10, 5, 11, 15]], np.float32))
    np.testing.assert_array_equal(record.classes, [2, 1])
    np.testing.assert_array_equal(record.difficult, [False, True])
    assert (record.boxes.dtype, record.classes.dtype, record.difficult.dtype) == (np.float32, np.int64, bool)


def test_xml_that_counts_from_zero_is_half_open_already(tmp_path):
    record = read_one(tmp_path, thing(box=(0, 0, 40, 30)), thing(box=(2.5, 3, 4.25, 5)), xml_origin=0)
    np.testing.assert_array_equal(record.boxes, np.array([[0, 0, 40, 30], [2.5, 3, 4.25, 5]], np.float32))


@given(st.lists(st.tuples(*[st.floats(1, 40, width=32)] * 4), max_size=5))
def test_every_box_within_its_image_is_read_as_it_stands(tmp_path_factory, corners):
    boxes = [(min(a, c), min(b, d, 30), max(a, c), min(max(b, d), 30)) for a, b, c, d in corners]
    record = read_one(tmp_path_factory.mktemp("x"), *[thing(box=box) for box in boxes])
    expected = [(x1 - 1, y1 - 1, x2, y2) for x1, y1, x2, y2 in boxes]
    np.testing.assert_allclose(record.boxes, np.array(expected).reshape(-1, 4), rtol=0, atol=1e-5)


def test_fractions_spaces_and_case_do_not_matter(tmp_path):
    record = read_one(tmp_path, thing(" CAT ", (" 1.5", "2.25\n", "1e1", "20.75")))
    np.testing.assert_array_equal(record.boxes, np.array([[0.5, 1.25, 10, 20.75]], np.float32))
    np.testing.assert_array_equal(record.classes, [1])


def test_parts_of_an_object_are_not_objects(tmp_path):
    record = read_one(tmp_path, f"<object><name>dog</name>{PART}{thing().removeprefix('<object><name>cat</name>')}")
    np.testing.assert_array_equal(record.boxes, np.array([[10, 5, 20, 15]], np.float32))
    np.testing.assert_array_equal(record.classes, [2])


def test_a_part_does_not_lend_its_box(tmp_path):
    make = lambda: read_one(tmp_path, f"<object><name>dog</name>{PART}</object>")  # noqa: E731
    expect_error(make, "a.xml", "object 1", "four numbers")


@pytest.mark.parametrize(
    ("flag", "expected"), [("", False), ("<difficult/>", False), ("<difficult>1</difficult>", True)]
)
def test_difficult_may_be_missing(tmp_path, flag, expected):
    assert read_one(tmp_path, thing(extra=flag)).difficult.tolist() == [expected]


def test_an_unreadable_difficult_is_named(tmp_path):
    expect_error(lambda: read_one(tmp_path, thing(extra="<difficult>yes</difficult>")), "a.xml: object 1", "difficult")


def test_the_size_is_the_upright_image_s_and_a_wrong_one_is_noted(tmp_path, caplog):
    dataset = make_voc(tmp_path, {"a": xml(thing(box=(1, 1, 30, 40)), size=(40, 30))})
    tags = Image.Exif()
    tags[274] = 6
    draw(tmp_path / "JPEGImages" / "a.jpg", exif=tags.tobytes())
    problems = []
    record = read(dataset, problems=problems)[0]
    assert (record.width, record.height) == (30, 40)
    np.testing.assert_array_equal(record.boxes, np.array([[0, 0, 30, 40]], np.float32))
    assert [(p.kind, p.outcome, p.file) for p in problems] == [("size differs", "noted", record.annotation)]
    assert "lying on its side" in str(problems[0])
    assert "size differs: 1 noted" in caplog.text


def test_an_image_without_objects_has_empty_arrays(tmp_path):
    record = read_one(tmp_path)
    assert (record.boxes.shape, record.boxes.dtype) == ((0, 4), np.float32)
    assert (record.classes.shape, record.difficult.shape) == ((0,), (0,))


# ---- the layouts


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


# ---- choices


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
    with pytest.raises(FastRCNNError, match="no images with objects"):
        read(make_voc(tmp_path, {"c": xml()}), training=True, **keys)


# ---- what is missing or damaged


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


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not XML"),
        ("<annotation><object></annotation>", "not XML"),
        ('{"objects": []}', "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
        ("<html></html>", "<html>"),
        (xml(header='<!DOCTYPE a [<!ENTITY b "c">]>'), "entities"),
        (xml(header='<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'), "entities"),
        (xml(header='<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;">]>', size=("&d;", 1)), "entities"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path, text, word):
    expect_error(lambda: read(make_voc(tmp_path, {"a": text})), tmp_path / "Annotations" / "a.xml", word)


def test_an_unreadable_image_is_named(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    expect_error(lambda: read(dataset), tmp_path / "JPEGImages" / "a.jpg")


def test_a_list_that_is_no_text_is_named(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x80\n")
    expect_error(lambda: read(dataset), "train.txt", "UTF-8")


SEEDS = [
    xml(thing(), thing("dog", (1, 1, 40, 30)), thing("cat", (9, 9, 2, 2)), thing("bird")).encode(),
    xml(f"<object><name>dog</name>{PART}</object>", header='<?xml version="1.0" encoding="utf-8"?>\n').encode(),
    xml(thing(), header='<!DOCTYPE a [<!ENTITY b "c">]>').encode(),
    xml(thing(), header='<?xml version="1.0" encoding="utf-16"?>').encode("utf-16"),
]


@pytest.fixture(scope="module")
def one_image(tmp_path_factory):
    logging.getLogger("fastrcnn").setLevel(logging.ERROR)
    root = tmp_path_factory.mktemp("mutated")
    yield make_voc(root, {"a": xml()}), root / "Annotations" / "a.xml"
    logging.getLogger("fastrcnn").setLevel(logging.NOTSET)


@fuzzing
@given(data=mutated(SEEDS), on_bad_box=st.sampled_from(["error", "clip", "skip"]), origin=st.sampled_from([0, 1]))
def test_mutated_xml_is_read_or_refused(one_image, data, on_bad_box, origin):
    dataset, path = one_image
    path.write_bytes(data)
    try:
        (record,) = read(dataset, on_bad_box=on_bad_box, on_unknown_class="ignore", xml_origin=origin)
    except FastRCNNError as e:
        assert str(path) in str(e)
        return
    assert record.boxes.shape == (len(record.classes), 4) and record.classes.shape == record.difficult.shape
    x1, y1, x2, y2 = record.boxes.T
    assert np.all((x1 >= 0) & (x1 < x2) & (x2 <= 40) & (y1 >= 0) & (y1 < y2) & (y2 <= 30))
    assert np.isin(record.classes, [1, 2]).all()


# ---- download


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address under which this machine alone can fetch the files of tmp_path."""
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def make_archive(tmp_path, server, name, files, split):
    make_voc(tmp_path / name / "VOC2007", files, split)
    path = tmp_path / f"{name}.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / name / "VOC2007", "VOCdevkit/VOC2007")
    return {
        "url": f"{server}/{path.name}",
        "filename": path.name,
        "md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "base_dir": "VOCdevkit/VOC2007",
    }


@pytest.mark.parametrize("root", ["VOCdevkit/VOC2007", "here/VOC2007"])
def test_download_leaves_both_archives_of_a_year_at_root(tmp_path, monkeypatch, server, root):
    from torchvision.datasets import voc

    archives = {
        "2007": make_archive(tmp_path, server, "trainval", {"a": xml(thing())}, "trainval"),
        "2007-test": make_archive(tmp_path, server, "testing", {"b": xml(thing("dog"))}, "test"),
    }
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", archives)
    sets = [DataSetConfig(root=str(tmp_path / root), split=split, download=True) for split in ("trainval", "test")]
    records = read(sets)
    assert [(r.id, r.classes.tolist()) for r in records] == [("a", [1]), ("b", [2])]
    assert sorted(path.name for path in (tmp_path / root).parent.iterdir()) == ["VOC2007"]

    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", {})  # what is there is not fetched again
    assert [r.id for r in read(sets)] == ["a", "b"]


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch, server):
    from torchvision.datasets import voc

    archive = make_archive(tmp_path, server, "trainval", {"a": xml()}, "trainval")
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", {"2007": archive | {"url": f"{server}/nowhere.tar"}})
    dataset = DataSetConfig(root=str(tmp_path / "VOC2007"), split="trainval", download=True)
    expect_error(lambda: read(dataset), tmp_path / "VOC2007", "cannot be downloaded", "unpack")
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", {"2007": archive | {"md5": "0" * 32}})
    expect_error(lambda: read(dataset), "cannot be downloaded")
    dataset.root = str(tmp_path / "mine")
    expect_error(lambda: read(dataset), tmp_path / "mine", "named after its year")


def test_a_list_cannot_name_files_outside_its_set(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("../JPEGImages/a\n")
    expect_error(lambda: read(dataset), "no such image")
