"""Where a YOLO data set has its files: data.yaml or a file of names, folders or lists of pictures, folders of labels.

Known are images/<part> with labels/<part>, <part>/images with <part>/labels, labels beside the pictures, and lists of
pictures <part>.txt.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastrcnn.annotations.folders import Pictures, files_below, image_id, is_picture
from fastrcnn.annotations.problems import Problem
from fastrcnn.config_data import DataSetConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write, read_bytes

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")
PARTS = ("train", "val", "valid", "test")  # Roboflow's folder is valid, its key val


@dataclass(frozen=True)
class Names:
    """What data.yaml, or a file of names, says."""

    file: Path
    by_number: dict[int, str]  # the class names
    parts: dict[str, list[str]] = field(default_factory=dict)  # folders or lists of pictures, as data.yaml has them
    folder: Path | None = None  # data.yaml's `path`
    keypoints: int = 0  # numbers behind the box in each line
    problems: list[Problem] = field(default_factory=list)


# ---- names


def find_names(dataset: DataSetConfig) -> Names:
    """`annotations` if that is a file, else the data.yaml or file of names in or near the root or the labels.

    Raises FastRCNNError when there is none, several data.yaml, or one that cannot be read, and for `annotations` that
    are not there.
    """
    root, given = Path(dataset.root), Path(dataset.annotations or dataset.root)
    if dataset.annotations and not given.exists():
        raise FastRCNNError(f"{given}: no such file or folder; check `annotations` of the data set")
    if given.is_file():
        if given.suffix.lower() not in (".yaml", ".yml"):
            return _read_names(given)
        names = _read_yaml(given)
        if names is None:
            raise FastRCNNError(f"{given}: is not a data.yaml with names of classes; set `annotations` to one that is")
        return names
    near = [root, root / "labels", root / "data", *(root / part for part in (*dataset.split_names, *PARTS))]
    near += [given, given.parent, given.parent.parent] if dataset.annotations else []
    near = list(dict.fromkeys(near))
    for folder in near:
        paths = sorted(p for suffix in ("yaml", "yml") for p in folder.glob(f"*.{suffix}"))
        found = [names for names in map(_read_yaml, paths) if names is not None]
        if len(found) > 1:
            files = ", ".join(names.file.name for names in found)
            raise FastRCNNError(f"{folder}: holds {files}; set `annotations` of the data set to one of them")
        if found:
            return found[0]
    for folder in near:
        for name in NAME_FILES:
            if (folder / name).is_file():
                return _read_names(folder / name)
    raise FastRCNNError(
        f"{root}: holds no data.yaml and no classes.txt, which name the classes; set `root` to the folder that does, "
        "or `annotations` to such a file"
    )


def text_of(path: Path) -> str:
    """A text file in UTF-8. Raises FastRCNNError for another, and one that cannot be read."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FastRCNNError(f"{path}: is not a text file in UTF-8; save it as one") from None


def _read_names(path: Path) -> Names:
    lines = [line.strip() for line in text_of(path).splitlines()]
    while lines and not lines[-1]:
        del lines[-1]
    return Names(path, dict(enumerate(lines)))


def _read_yaml(path: Path) -> Names | None:
    """None for a YAML file of another kind."""
    try:
        # All values as text: `names: [off, 007]` are class names, and not False and 7.
        tree = yaml.BaseLoader(text_of(path)).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise FastRCNNError(f"{path}: is not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(tree, dict) or "names" not in tree:
        return None
    by_number = _numbered(tree["names"], path)
    problems = []
    if tree.get("nc", str(len(by_number))) != str(len(by_number)):
        text = f"nc is {tree['nc']!r:.40}, and names has {len(by_number)}; the names are used"
        problems.append(Problem("names differ", path, None, text, "noted"))
    parts = {part: _texts(tree[part], path, part) for part in PARTS if tree.get(part)}
    folder = tree.get("path")
    keypoints = 1
    for number in _texts(tree.get("kpt_shape", ["0"]), path, "kpt_shape"):
        keypoints *= int(number) if number.isdecimal() and len(number) < 5 else 0
    return Names(
        path, by_number, parts, Path(folder) if isinstance(folder, str) and folder else None, keypoints, problems
    )


def _numbered(names: Any, path: Path) -> dict[int, str]:
    pairs = names if isinstance(names, dict) else dict(enumerate(names)) if isinstance(names, list) else {}
    wrong = [k for k, name in pairs.items() if not isinstance(name, str) or not (isinstance(k, int) or k.isdecimal())]
    if not pairs or wrong:
        what = f": {wrong[0]!r:.40} is none" if wrong else ""
        raise FastRCNNError(f"{path}: names must be a list of class names, or a mapping of numbers to names{what}")
    return {int(number): name.strip() for number, name in pairs.items()}


def _texts(value: Any, path: Path, key: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise FastRCNNError(f"{path}: {key} must be a folder, a list of pictures, or several of them")
    return values


# ---- pictures


def find_pictures(dataset: DataSetConfig, names: Names) -> tuple[list[tuple[str, Path]], list[Problem]]:
    """(id, path) of the pictures of the part, and remarks on where they were found.

    The id is the path below the part's folder; below `images`, or the root, for one of a list.
    Raises FastRCNNError when the part is not there, or is not named and there are several.
    """
    places, problems = _places(dataset, names)
    found: list[tuple[str, Path]] = []
    for place in places:
        if place.is_dir():
            below = sorted(filter(is_picture, files_below(place)), key=image_id)
            found += [(image_id(name), place / name) for name in below]
        else:
            found += _listed(place, Path(dataset.root))
    return found, problems


def _listed(listing: Path, root: Path) -> list[tuple[str, Path]]:
    pictures: Pictures | None = None  # listed only where a line does not say where its picture is
    found = []
    for line in filter(None, map(str.strip, text_of(listing).splitlines())):
        path = listing.parent / line
        if not path.is_file():
            pictures = pictures or Pictures(root)
            try:
                path = pictures.find(line)[1]
            except FastRCNNError:
                path = root / line.replace("\\", "/")
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        found.append((image_id(f"/{name}".rpartition("/images/")[2].lstrip("/")), path))
    return found


def _places(dataset: DataSetConfig, names: Names) -> tuple[list[Path], list[Problem]]:
    """The folders and lists of the parts that `split` names; without names the only ones, or all to choose from."""
    root, chosen = Path(dataset.root), dataset.split_names
    parts = dict(names.parts) or {part: [str(place)] for part in PARTS if (place := _folder_of(root, part))}
    for part in chosen:
        other = {"val": "valid", "valid": "val"}.get(part, part)
        place = _folder_of(root, part)
        parts[part] = parts.get(part) or parts.get(other) or ([str(place)] if place else [])
        if not parts[part]:
            known = ", ".join(part for part in parts if parts[part]) or "none"
            raise FastRCNNError(f"{root}: has no part {part}; its parts: {known}; check the split of the data set")
    labels_apart = dataset.annotations is not None and Path(dataset.annotations).is_dir()
    if not chosen and (labels_apart or not parts):
        return [root / "images" if (root / "images").is_dir() else root], []
    if dataset.split is None and len(set(map(tuple, parts.values()))) > 1:
        raise FastRCNNError(f"{names.file}: has the parts {', '.join(parts)}; set `split` of the data set to one")
    problems: list[Problem] = []
    entries = dict.fromkeys(entry for part in chosen or parts for entry in parts[part])
    return [_place(entry, root, names, problems) for entry in entries], problems


def _folder_of(root: Path, part: str) -> Path | None:
    """Where a part lies without a word in data.yaml."""
    places = (root / "images" / part, root / part / "images", root / f"{part}.txt", root / part)
    return next((place for place in places if place.exists()), None)


def _place(entry: str, root: Path, names: Names, problems: list[Problem]) -> Path:
    """The folder or list that data.yaml calls `entry`; if it was moved, the one with the longest equal end near it."""
    above = names.file.parent
    folder = above / names.folder if names.folder else above
    if (folder / entry).exists():
        return folder / entry
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for base in dict.fromkeys((above, root)):
            place = base.joinpath(*parts[start:])
            if place.exists():
                text = f"{folder / entry} is not there; {place} is taken"
                problems.append(Problem("moved", names.file, None, text, "noted"))
                return place
    raise FastRCNNError(f"{names.file}: {folder / entry} is not there, nor is {'/'.join(parts)} below it; correct it")


# ---- labels


def label_files(
    dataset: DataSetConfig, pictures: Sequence[tuple[str, Path]], names: Path
) -> tuple[list[Path | None], list[Path]]:
    """The label file of each (id, path), None where there is none; then the label files that belong to no picture.

    They are in `annotations`, if that is a folder; else in the folder with `labels` for the last `images` of its path,
    if there is one; else beside the pictures.
    """
    given = Path(dataset.annotations) if dataset.annotations and Path(dataset.annotations).is_dir() else None
    there: dict[Path, set[str]] = {}  # the label files of each folder
    labels: list[Path | None] = []
    for record_id, path in pictures:
        label = given / f"{record_id}.txt" if given else _label_folder(path.parent) / f"{path.stem}.txt"
        if label.parent not in there:
            there[label.parent] = _text_files(label.parent)
        labels.append(label if label.name in there[label.parent] else None)
    known = {label for label in labels if label} | {names}
    known |= {folder / name for folder in there for name in (*NAME_FILES, *(f"{part}.txt" for part in PARTS))}
    unused = [folder / name for folder, texts in there.items() for name in sorted(texts) if folder / name not in known]
    return labels, [path for path in unused if not path.name.lower().startswith("readme")]


@functools.lru_cache(maxsize=10_000)
def _label_folder(folder: Path) -> Path:
    parts = folder.parts
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:at], "labels")
        if labels.is_dir():
            return labels.joinpath(*parts[at + 1 :])
    return folder


def _text_files(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir() if path.suffix == ".txt" and path.name[0] != "."}
    except OSError:
        return set()


# ---- writing


def write_description(folder: Path, classes: Sequence[str], split: str) -> None:
    """Write data.yaml for the parts in images/, and `split`. Raises FastRCNNError as atomic_write does."""
    parts = {split} | {part for part in PARTS if (folder / "labels" / part).is_dir()}
    lines = [f"{part}: images/{part}" for part in sorted(parts)] + ["names:"]
    for number, name in enumerate(classes):  # quoted: off is a name, and not False
        quoted = yaml.safe_dump(name, default_style='"', allow_unicode=name.isprintable(), width=10**6)
        lines.append(f"  {number}: {quoted.strip()}")
    with atomic_write(folder / "data.yaml") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
