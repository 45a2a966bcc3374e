from xml.etree.ElementTree import fromstring

import pytest

from fastrcnn.annotations.voc_xml import origins

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
