"""One XML file to its tree of elements, in whatever encoding and with whatever namespace a tool writes it."""

import re
from collections.abc import Container
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from fastrcnn.annotations.text import national_texts, unicode_text
from fastrcnn.detections import plain_name
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_bytes

# Web browsers read these names as their supersets too, for that is what files hold (WHATWG Encoding Standard).
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "euc-kr": "cp949"}


def read_annotation(path: Path, classes: Container[str]) -> tuple[Element, str | None]:
    """The <annotation> of a file, its tags in lower case and without namespace, and the encoding if it was guessed.

    `classes` are plain names: an encoding that the file does not declare is taken only if it alone makes every class
    in the file one of them. Raises FastRCNNError for a file that is no XML, declares entities, or is no annotation.
    """
    try:
        root, guessed = _decoded(path, read_bytes(path), classes)
    except DefusedXmlException:
        raise FastRCNNError(f"{path}: declares XML entities, which are refused; delete its <!DOCTYPE> line") from None
    if root.tag != "annotation":
        raise FastRCNNError(f"{path}: is not a VOC annotation: its root is <{root.tag}>; export it as Pascal VOC")
    return root, guessed


def _decoded(path: Path, data: bytes, classes: Container[str]) -> tuple[Element, str | None]:
    """The root of a file, and the encoding if it was guessed."""
    error = None
    try:
        root = _parse(data)
        if data.isascii() or all(name in classes for name in _foreign_names(root)):
            return root, None
    except DefusedXmlException:
        raise
    except (ParseError, ValueError, LookupError) as e:
        root, error = None, e
    if not data.strip(b" \t\r\n\0"):
        raise FastRCNNError(f"{path}: is empty; restore it from a copy, or export it again")
    # What the parser itself cannot read: blank lines ahead, a wrong or a multi-byte encoding.
    texts = [text for text in (_as_declared(data), unicode_text(data)) if text is not None]
    trees = [tree for tree in map(_try, texts) if tree is not None]
    for tree in trees:
        if all(name in classes for name in _foreign_names(tree)):
            return tree, None
    guesses: dict[tuple[str, ...], tuple[Element, str | None]] = {}
    for encoding, text in national_texts(data):
        guess = _try(text)
        if guess is not None:
            guesses.setdefault(_foreign_names(guess), (guess, encoding))
    known = [found for names, found in guesses.items() if all(name in classes for name in names)]
    if () in guesses:  # no class has a name beyond ASCII
        return guesses[()][0], None
    if len(known) == 1:
        return known[0]
    if root is not None or trees:
        return (trees[0] if root is None else root), None
    if guesses:
        raise FastRCNNError(
            f"{path}: is not in the encoding it declares, nor in UTF-8, and its class names point to no other; save "
            "it as UTF-8 in a text editor, or convert it, such as by: iconv -f GB18030 -t UTF-8"
        )
    raise FastRCNNError(f"{path}: is not XML: {error}; correct that place in a text editor, or restore the file")


def _as_declared(data: bytes) -> str | None:
    declared = re.search(rb"""\bencoding\s*=\s*["']([\w.:-]+)""", data[:200])
    try:
        name = declared[1].decode().lower() if declared else "utf-8"
        return data.decode(SUPERSETS.get(name, name))
    except (UnicodeDecodeError, LookupError):
        return None


def _foreign_names(root: Element) -> tuple[str, ...]:
    """The plain class names with letters beyond ASCII, which depend on the encoding."""
    names = (plain_name(element.findtext("name") or "") for element in root.iter("object"))
    return tuple(name for name in names if not name.isascii())


def _parse(data: bytes | str) -> Element:
    # Without "<!" a file of ASCII alone declares nothing, as expat takes no encoding that gives ASCII another meaning.
    # Others go through defusedxml, whose parser in Python takes several times as long.
    plain = isinstance(data, bytes) and data.isascii() and b"\0" not in data and b"<!" not in data
    parser = XMLParser() if plain else DefusedXMLParser(target=TreeBuilder())
    parser.feed(data)
    root = parser.close()
    if not _is_plain(root):
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2].lower()
    return root


def _is_plain(root: Element) -> bool:
    """Whether the tags are VOC's own; a tool that writes <Object> or a namespace does so from the top."""
    return root.tag == "annotation" and all(child.tag.islower() and "{" not in child.tag for child in root)


def _try(text: str) -> Element | None:
    try:
        return _parse(text.lstrip("\ufeff \t\r\n"))
    except DefusedXmlException:
        raise
    except (ParseError, ValueError, LookupError):
        return None
