"""The JSON file of a COCO data set: its categories, and its images with their annotations."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.recognise import kind_of_json
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_bytes


@dataclass(frozen=True)
class Entry:
    """One image of a COCO file."""

    name: str  # file_name
    size: tuple[Any, Any]  # width and height as the file has them
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class CocoFile:
    path: Path
    images: list[Entry]
    names: dict[str, str]  # of the categories, by id
    problems: list[Problem]  # of what belongs to no one image


def read_coco_file(path: Path) -> CocoFile:
    """Raises FastRCNNError when the file is no COCO data set."""
    tree = _load(path)
    problems: list[Problem] = []
    names = _categories(tree["categories"], path, problems)
    by_image: dict[str | None, list[dict[str, Any]]] = {}
    images = _images(tree["images"], path, problems, by_image)
    lost: list[Any] = []
    for annotation in tree["annotations"]:
        key = id_key(annotation.get("image_id")) if isinstance(annotation, dict) else None
        by_image.get(key, lost).append(annotation)
    if lost:
        first = lost[0].get("image_id") if isinstance(lost[0], dict) else lost[0]
        text = f"{len(lost)} of its annotations are of images that it does not list, the first of {first!r:.60}"
        problems.append(Problem("annotation without image", path, None, text, "ignored"))
    _check_ids(tree["annotations"], path, problems)
    return CocoFile(path, images, names, problems)


def _load(path: Path) -> dict[str, list[Any]]:
    missing = "no such file; check `annotations` of the data set"
    data = read_bytes(path, "set `annotations` to a JSON file", missing)
    try:
        tree = json.loads(data, object_hook=_without_mask)
    except (ValueError, RecursionError) as e:
        raise FastRCNNError(f"{path}: is not JSON: {e}; export it again as COCO") from None
    if not isinstance(tree, dict) or not all(
        isinstance(tree.get(key), list) for key in ("images", "annotations", "categories")
    ):
        text = f"{path}: is not a COCO data set with lists of images, annotations and categories"
        what = kind_of_json(tree, path)
        raise FastRCNNError(f"{text}; {what if what and what != 'coco' else 'export it as COCO'}")
    return tree


def _without_mask(node: dict[str, Any]) -> dict[str, Any]:
    """Masks, which are most of a file, are dropped where there is a box."""
    if node.get("bbox"):
        node.pop("segmentation", None)
    return node


def id_key(value: Any) -> str | None:
    """An id as it is compared: 7, 7.0 and "7" are one. None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else None


def _categories(entries: list[Any], path: Path, problems: list[Problem]) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        key, name = (id_key(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if key is None or not isinstance(name, str):
            text = "has no id and name; write both"
            problems.append(Problem("bad category", path, f"category {number} of its list", text))
        elif names.setdefault(key, name) != name:
            text = f"is both {names[key]!r} and {name!r}; give them distinct ids, also in annotations"
            problems.append(Problem("bad category", path, f"category {key}", text))
    for name, count in Counter(map(str.strip, names.values())).items():
        if count > 1:
            text = f"{count} of its categories are named {name!r}; they are one class"
            problems.append(Problem("category listed twice", path, None, text, "noted"))
    return names


def _images(
    entries: list[Any], path: Path, problems: list[Problem], by_image: dict[str | None, list[dict[str, Any]]]
) -> list[Entry]:
    """The images, each with the list in `by_image` that its annotations go to."""
    images: dict[str, Entry] = {}
    names: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        key, name = (id_key(entry.get("id")), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        where = f"image {name}" if isinstance(name, str) else f"image {number} of its list"
        if key is None or not isinstance(name, str) or not name:
            problems.append(Problem("bad image entry", path, where, "has no id and file_name; write both"))
        elif key in images and images[key].name != name:
            text = f"has the id {key} of {images[key].name}: give them distinct ids"
            problems.append(Problem("duplicate id", path, where, text))
        elif key not in images and name in names:
            text = f"is listed under two ids, the second {key}; join its annotations under one"
            problems.append(Problem("duplicate id", path, where, text))
        elif key in images:
            problems.append(Problem("image listed twice", path, where, "is listed twice; it is read once", "noted"))
        else:
            images[key] = Entry(name, (entry.get("width"), entry.get("height")), by_image.setdefault(key, []))
            names.add(name)
    return list(images.values())


def _check_ids(annotations: list[Any], path: Path, problems: list[Problem]) -> None:
    keys = Counter(id_key(a.get("id")) for a in annotations if isinstance(a, dict))
    twice = [key for key, count in keys.items() if count > 1 and key is not None]
    if twice:
        text = f"{len(twice)} ids of annotations are listed twice, such as {twice[0]}; all these annotations are read"
        problems.append(Problem("annotation id twice", path, None, text, "noted"))
