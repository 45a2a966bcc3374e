"""One VOC XML file and the objects in it, as PASCAL VOC and many labelling tools write them.

XML files hold boxes in pixels of the upright picture (EXIF applied, as labelling tools show it). `xml_origin: 1` is
VOC: the first pixel is 1 and both ends belong to the box, so it becomes (xmin - 1, ymin - 1, xmax, ymax).
`xml_origin: 0` is what CVAT, Roboflow and labelme write: positions between pixels, where the right edge of the image is
its width, so the numbers are taken as they are, half open. (LabelImg writes such positions too, but never below 1.)
"""

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from fastrcnn.annotations.objects import check_box, check_class
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.records import Object
from fastrcnn.config import DataConfig
from fastrcnn.errors import FastRCNNError


def read_objects(
    path: Path, size: tuple[int, int], data: DataConfig, index: dict[str, int]
) -> tuple[list[Object], list[Problem]]:
    """The objects of one file for an upright image of `size` (width, height), and what is wrong with it.

    `index` is class_index's. Raises FastRCNNError for a file that is no annotation.
    """
    root = _parse(path)
    problems = _check_size(root, path, size)
    objects: list[Object] = []
    for number, element in enumerate(root.findall("object"), start=1):
        found, new = _read_object(element, number, path, size, data, index)
        objects += [found] if found else []
        problems += new
    return objects, problems


def _parse(path: Path) -> Element:
    """The root of an annotation file. Raises FastRCNNError if it is no XML, declares entities, or is no annotation."""
    try:
        # With the C tree builder: defusedxml's own, in Python, takes six times as long.
        parser = DefusedXMLParser(target=TreeBuilder())
        parser.feed(path.read_bytes())
        root = parser.close()
    except DefusedXmlException:
        raise FastRCNNError(f"{path}: declares XML entities, which are refused; remove its DOCTYPE") from None
    except OSError as e:
        raise FastRCNNError(f"{path}: cannot be read: {e.strerror}; check its permissions") from None
    except (ParseError, ValueError, LookupError) as e:
        raise FastRCNNError(f"{path}: is not XML: {e}; restore it or label the image again") from None
    if root.tag != "annotation":
        raise FastRCNNError(f"{path}: is not a VOC annotation: its root is <{root.tag}>; export it as Pascal VOC")
    return root


def _check_size(root: Element, path: Path, size: tuple[int, int]) -> list[Problem]:
    stated = tuple((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    actual = tuple(map(str, size))
    if stated in (("", ""), actual):
        return []
    text = f"<size> says {' x '.join(stated)}, the upright image has {' x '.join(actual)}; the image's is used"
    if stated == actual[::-1]:
        text += " (if the boxes were drawn on the picture lying on its side, draw them again)"
    return [Problem("size differs", path, None, text, "noted")]


def _read_object(
    element: Element, number: int, path: Path, size: tuple[int, int], data: DataConfig, index: dict[str, int]
) -> tuple[Object | None, list[Problem]]:
    """An <object>, or None if it is left out, and what is wrong with it."""
    label, problems = check_class((element.findtext("name") or "").strip(), index, path, number, data)
    if label is None:
        return None, problems
    flag = (element.findtext("difficult") or "0").strip().lower()
    if flag not in ("", "0", "1", "false", "true"):
        return None, [Problem("bad <difficult>", path, number, f"its <difficult> is {flag!r}; write 0 or 1")]

    sides = _sides(element)
    box = _half_open(sides, data.xml_origin)
    hint = ""
    if data.xml_origin == 1 and -1 <= box[:2].min() < 0:
        hint = "; the first pixel is 1 here: set data.xml_origin: 0 if your tool counts from 0"
    good, problems = check_box(box, f"({', '.join(sides)})", size, path, number, data, hint)
    return None if good is None else (good, label, flag in ("1", "true")), problems


def _half_open(sides: list[str], origin: int) -> np.ndarray:
    """float64 [4] in image pixels; NaN for a box that is not four finite numbers."""
    try:
        raw = [float(text) for text in sides]
    except ValueError:
        raw = [math.nan]
    if not all(map(math.isfinite, raw)):
        return np.full(4, np.nan)
    return np.array([raw[0] - origin, raw[1] - origin, raw[2], raw[3]], np.float64)


def _sides(element: Element) -> list[str]:
    """What the object's own <bndbox> holds; a <part> of the object has another.

    The original takes the first <xmin> anywhere below <object> (lib/datasets/pascal_voc.py), so that it reads a
    <part>'s box for 26 objects of VOC whose parts come first.
    """
    return [(element.findtext(f"bndbox/{side}") or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
