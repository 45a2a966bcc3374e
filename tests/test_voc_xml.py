import logging
from xml.etree.ElementTree import ParseError, TreeBuilder, fromstring

import numpy as np
import pytest
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser
from hypothesis import example, given
from hypothesis import strategies as st
from made_annotations import PART, draw, expect_error, make_voc, read, read_one, thing, xml
from oracles_mutations import fuzzing, mutated

from fastrcnn.annotations import xml_tree
from fastrcnn.annotations.voc_xml import origins
from fastrcnn.errors import FastRCNNError


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
    draw(tmp_path / "JPEGImages" / "a.jpg", size=(30, 40))
    problems = []
    record = read(dataset, problems=problems)[0]
    assert (record.width, record.height) == (30, 40)
    np.testing.assert_array_equal(record.boxes, np.array([[0, 0, 30, 40]], np.float32))
    assert [(p.kind, p.outcome, p.file) for p in problems] == [("size differs", "noted", record.annotation)]
    assert "turned" in str(problems[0])
    assert "size differs: 1 noted" in caplog.text


def test_an_image_without_objects_has_empty_arrays(tmp_path):
    record = read_one(tmp_path)
    assert (record.boxes.shape, record.boxes.dtype) == ((0, 4), np.float32)
    assert (record.classes.shape, record.difficult.shape) == ((0,), (0,))


def declare(encoding):
    return f'<?xml version="1.0" encoding="{encoding}"?>\n'


ENCODED = {
    "gb2312": (declare("gb2312") + xml(thing("猫"))).encode("gb18030"),
    "GBK": (declare("GBK") + xml(thing("猫"))).encode("gbk"),
    "Shift_JIS": (declare("Shift_JIS") + xml(thing("猫"))).encode("cp932"),
    "euc-kr": (declare("euc-kr") + xml(thing("고양이"))).encode("cp949"),
    "windows-1252": (declare("windows-1252") + xml(thing("Kätzchen"))).encode("cp1252"),
    "utf-16": (declare("utf-16") + xml(thing("猫"))).encode("utf-16"),
    "utf-16 without a mark": (declare("utf-16") + xml(thing("猫"))).encode("utf-16-le"),
    "utf-16, undeclared": xml(thing("猫")).encode("utf-16"),
    "utf-16 that is UTF-8": (declare("utf-16") + xml(thing("猫"))).encode(),
    "utf-8 that is UTF-16": (declare("utf-8") + xml(thing("猫"))).encode("utf-16"),
    "an unknown one that is UTF-8": (declare("nonsense") + xml(thing("猫"))).encode(),
    "blank lines ahead": ("\n \r\n" + declare("utf-8") + xml(thing("猫"))).encode(),
    "a mark": ("\ufeff" + declare("utf-8") + xml(thing("猫"))).encode(),
    "a mark and a blank line": ("\ufeff\n" + declare("utf-8") + xml(thing("猫"))).encode(),
}


@pytest.mark.parametrize("data", ENCODED.values(), ids=ENCODED.keys())
def test_declared_encodings_are_read(tmp_path, data):
    dataset = make_voc(tmp_path, {"a": ""})
    (tmp_path / "Annotations" / "a.xml").write_bytes(data)
    problems = []
    record = read(dataset, ["dog", "猫", "Kätzchen", "고양이"], problems)[0]
    assert len(record.classes) == 1 and record.classes[0] >= 2 and problems == []


@pytest.mark.parametrize(
    ("encoding", "name", "header"),
    [
        ("gb18030", "猫", ""),
        ("cp1252", "Kätzchen", ""),
        ("cp1252", "Kätzchen", declare("utf-8")),
        ("cp932", "ねこ", ""),
        ("cp949", "고양이", ""),
        ("cp1251", "кошка", declare("utf-8")),
    ],
)
def test_an_undeclared_encoding_is_read_if_the_classes_tell_it(tmp_path, encoding, name, header):
    dataset = make_voc(tmp_path, {"a": ""})
    (tmp_path / "Annotations" / "a.xml").write_bytes(xml(thing(name), thing("dog"), header=header).encode(encoding))
    problems = []
    assert read(dataset, ["dog", name], problems)[0].classes.tolist() == [2, 1]
    assert [(p.kind, p.outcome) for p in problems] == [("encoding guessed", "noted")] and encoding in str(problems[0])


def test_an_encoding_that_nothing_tells_is_to_be_converted(tmp_path):
    dataset = make_voc(tmp_path, {"a": ""})
    (tmp_path / "Annotations" / "a.xml").write_bytes(xml(thing("Kätzchen")).encode("cp1252"))
    message = expect_error(lambda: read(dataset, ["dog", "cat"]), "a.xml", "save it as UTF-8")
    assert "label" not in message and "remove" not in message


def test_foreign_bytes_outside_the_class_names_do_no_harm(tmp_path):
    dataset = make_voc(tmp_path, {"a": ""})
    text = xml(thing()).replace("C:\\photos", "C:\\照片")
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode("gb18030"))
    problems = []
    assert read(dataset, problems=problems)[0].classes.tolist() == [1] and problems == []


def test_namespaces_upper_case_and_comments_are_read_through(tmp_path):
    labelled = xml(thing())
    texts = {
        "namespace": labelled.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        "upper": labelled.replace("<object", "<Object").replace("</object", "</Object").replace("bndbox", "BndBox"),
        "comment": labelled.replace("<object>", "<!-- one --><object><!-- two -->"),
    }
    for record in read(make_voc(tmp_path, texts)):
        np.testing.assert_array_equal(record.boxes, np.array([[10, 5, 20, 15]], np.float32), record.id)


def test_unspecified_is_not_difficult(tmp_path):
    assert read_one(tmp_path, thing(extra="<difficult>Unspecified</difficult>")).difficult.tolist() == [False]


def test_objects_one_level_too_deep_are_read_and_noted(tmp_path):
    problems = []
    objects = f"<objects>{thing()}{thing('dog', (1, 1, 5, 5))}</objects>"
    record = read_one(tmp_path, objects, thing("dog", (1, 1, 9, 9)), problems=problems)
    np.testing.assert_array_equal(record.boxes[:, 3], [15, 5, 9])
    assert [(p.kind, p.outcome) for p in problems] == [("objects nested", "noted")] and "2 of its" in str(problems[0])
    inner = thing("dog").replace("<object>", f"<object>{thing()}")
    expect_error(lambda: read_one(tmp_path, inner), "a.xml", "1 of its <object> lie inside another", "move")


BNDBOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
SHAPES = {
    BNDBOX * 3: ("several boxes", "3 <bndbox>"),
    "<robndbox><cx>9</cx><cy>9</cy><w>5</w><h>3</h><angle>0.5</angle></robndbox>": ("box of another shape", "turned"),
    "<polygon><x1>1</x1><y1>1</y1></polygon>": ("box of another shape", "polygon"),
    "<bndbox><xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.6</xmax><ymax>1.0</ymax></bndbox>": ("box in fractions", "pixels"),
    "": ("box unreadable", "four numbers"),
}


@pytest.mark.parametrize(("content", "found"), SHAPES.items())
def test_what_an_object_has_in_place_of_one_box_is_named(tmp_path, content, found):
    kind, word = found
    text = f"<object><name>cat</name>{content}</object>"
    expect_error(lambda: read_one(tmp_path, thing(), text), "a.xml: object 2", word, "on_bad_box")
    problems = []
    assert len(read_one(tmp_path, thing(), text, on_bad_box="skip", problems=problems).boxes) == 1
    assert [(p.kind, p.object, p.outcome) for p in problems] == [(kind, 2, "skipped")]


def test_a_polygon_beside_a_box_is_no_matter(tmp_path):
    problems = []
    read_one(tmp_path, thing(extra="<polygon><x1>11</x1><y1>6</y1></polygon>"), problems=problems)
    assert problems == []


def test_an_object_without_a_name_says_so(tmp_path):
    for name in ("<name/>", "<name> </name>", ""):
        text = thing("dog").replace("<name>dog</name>", name)
        expect_error(lambda text=text: read_one(tmp_path, thing(), text), "a.xml: object 2", "no class", "<name>")
    problems = []
    read_one(tmp_path, thing(), text, problems=problems, on_unknown_class="ignore")
    assert [(p.kind, p.object, p.outcome) for p in problems] == [("no class name", 2, "ignored")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("<annotation><object></annotation>", "not XML"),
        ('{"objects": []}', "not XML"),
        ("<html></html>", "<html>"),
        (xml(header='<!DOCTYPE a [<!ENTITY b "c">]>'), "entities"),
        (xml(header='<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'), "entities"),
        (xml(header='<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;">]>', size=("&d;", 1)), "entities"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path, text, word):
    expect_error(lambda: read(make_voc(tmp_path, {"a": text})), tmp_path / "Annotations" / "a.xml", word)


SEEDS = [
    xml(thing(), thing("dog", (1, 1, 40, 30)), thing("cat", (9, 9, 2, 2)), thing("bird")).encode(),
    xml(f"<object><name>dog</name>{PART}</object>", header='<?xml version="1.0" encoding="utf-8"?>\n').encode(),
    xml(thing(), header='<!DOCTYPE a [<!ENTITY b "c">]>').encode(),
    xml(thing(), header='<?xml version="1.0" encoding="utf-16"?>').encode("utf-16"),
    xml(f"<objects>{thing()}</objects>", thing("d\xf6g"), header='<?xml version="1.0" encoding="gbk"?>').encode(
        "cp1252"
    ),
    xml(f"<object><name>cat</name>{BNDBOX * 2}</object>").replace("<annotation>", '<annotation xmlns="a">').encode(),
]


def parsed(data):
    """The elements of a file, or what it is refused for."""
    try:
        return [(e.tag, e.text, e.tail, e.attrib) for e in xml_tree._parse(data).iter()]
    except (DefusedXmlException, ParseError, ValueError, LookupError) as e:
        return type(e)


@fuzzing
@given(mutated(SEEDS))
@example(b'<?xml version="1.0" encoding="cp037"?>' + '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'.encode("cp037"))
@example(b'<?xml version="1.0" encoding="utf-7"?><annotation>+ADwAIQ-</annotation>')
def test_the_fast_parser_reads_and_refuses_what_defusedxml_does(data):
    fast = parsed(data)
    with pytest.MonkeyPatch.context() as slow:
        slow.setattr(xml_tree, "XMLParser", lambda: DefusedXMLParser(target=TreeBuilder()))
        assert parsed(data) == fast


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


SOURCES = {
    "<source><database>The VOC2007 Database</database><annotation>PASCAL VOC2007</annotation></source>": (1, "PASCAL"),
    "<source><database>roboflow.com</database></source>": (0, "Roboflow"),
    "<database/><annotation/><image/>": (0, "labelme"),
    "<source><database>Unknown</database><annotation>Unknown</annotation><image>Unknown</image></source>": (0, "CVAT"),
    "<path>C:\\a.jpg</path><source><database>Unknown</database></source>": (0, "LabelImg"),
    "<source><database>mine</database></source>": None,
    "<source><database>Unknown</database></source>": None,
    "": None,
}


def shown(text, *sides):
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{name}>{side}</{name}>" for name, side in zip(names, sides, strict=True)) if sides else ""
    return list(origins(fromstring(f"<annotation>{text}<object><bndbox>{box}</bndbox></object></annotation>")))


@pytest.mark.parametrize("text", SOURCES)
def test_tools_are_known_by_their_marks(text):
    wanted = SOURCES[text]
    found = shown(text, 1, 1, 20, 30)
    assert [number for number, _ in found] == ([] if wanted is None else [wanted[0]])
    assert wanted is None or wanted[1] in found[0][1]


@pytest.mark.parametrize(
    ("sides", "count"),
    [
        ((0, 5, 20, 30), 1),
        ((5, 0, 20, 30), 1),
        ((5, 5, 20.5, 30), 1),
        ((0.5, 5, 20.5, 30), 2),
        ((1, 1, 20, 30), 0),
        ((-1, 5, 20, 30), 0),  # outside the image, whatever the origin
        ((0.1, 0.2, 0.5, 0.9), 0),  # fractions of the image
        (("", "many", "nan", "inf"), 0),
        ((), 0),
    ],
)
def test_boxes_at_0_and_parts_of_pixels_show_that_it_is_0(sides, count):
    found = shown("", *sides)
    assert len(found) == count and all(number == 0 for number, _ in found)


def test_voc_s_own_parts_of_pixels_show_nothing():
    voc = next(iter(SOURCES))
    assert shown(voc, 45.70000076293945, 5, 20, 30) == shown(voc, 45, 5, 20, 30)
