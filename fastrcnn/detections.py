"""What was found in an image: one type for it, and one layout on disk, detections.json.

Shapes: D detections in an image, K classes with background.
"""

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import ArrayLike

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write, read_bytes

if TYPE_CHECKING:
    import PIL.Image
    import supervision
    import torch

SHOWN = 20  # rows of the table in a notebook


def plain_name(name: str) -> str:
    """A class name as names are compared: without case and surrounding space.

    >>> plain_name(" Dog")
    'dog'
    """
    return name.strip().lower()


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What was found in one image; a detector gives the best first.

    >>> found = detector.detect("street.jpg")
    >>> for name, score, box in found.of_class("dog").above(0.8):
    ...     print(name, score, box)
    >>> best, large = found[0], found[found.boxes[:, 2] - found.boxes[:, 0] > 100]

    It holds no picture. A notebook shows it as a table, and what `plot` returns as a picture.

    Raises FastRCNNError for arrays of other shapes or types, numbers that are not finite, a class outside 1..K-1, and
    a box that ends before it starts.
    """

    boxes: Float32[np.ndarray, "D 4"]  # image pixels, half open
    classes: Int64[np.ndarray, "D"]  # in 1..K-1
    scores: Float32[np.ndarray, "D"]  # probabilities, as FastRCNN.probabilities gives them
    class_list: tuple[str, ...]  # the K - 1 names: class k is class_list[k - 1]

    def __post_init__(self) -> None:
        n = np.size(self.scores)
        for name, kind, shape in (
            ("boxes", "float32", (n, 4)),
            ("classes", "int64", (n,)),
            ("scores", "float32", (n,)),
        ):
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shape:
                raise FastRCNNError(
                    f"`{name}` is {array.dtype} {list(array.shape)}; with {n} scores it must be {kind} {list(shape)}"
                )
        faults = {
            "a score or box that is not finite": ~(np.isfinite(self.scores) & np.isfinite(self.boxes).all(axis=1)),
            f"a class outside 1..{len(self.class_list)}": (self.classes < 1) | (self.classes > len(self.class_list)),
            "a box that ends before it starts": (self.boxes[:, 2:] < self.boxes[:, :2]).any(axis=1),
        }
        for fault, rows in faults.items():
            if rows.any():
                raise FastRCNNError(f"detection {np.argmax(rows) + 1} has {fault}")

    @property
    def names(self) -> list[str]:
        """The D class names."""
        return [self.class_list[k - 1] for k in self.classes.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[str, float, Float32[np.ndarray, "4"]]]:
        """Rows of name, score and box."""
        return zip(self.names, self.scores.tolist(), self.boxes, strict=True)

    def __getitem__(self, rows: int | slice | ArrayLike) -> "Detections":
        """Those at an index, a slice, a mask [D] or an array of indices; see of_class and above for others.

        >>> first, last = found[0], found[-1]
        >>> sure = found[found.scores > 0.9]

        Raises IndexError for an index that is not there, FastRCNNError for a text.
        """
        if isinstance(rows, str):
            raise FastRCNNError(f"found[{rows!r}]: takes indices and masks; found.of_class({rows!r}) takes a class")
        chosen = rows if isinstance(rows, slice) else np.atleast_1d(np.asarray(rows))
        if not isinstance(chosen, slice) and not chosen.size:
            chosen = slice(0)  # an empty list says nothing of its type
        return Detections(self.boxes[chosen], self.classes[chosen], self.scores[chosen], self.class_list)

    def of_class(self, name: str) -> "Detections":
        """Those of one class. Raises FastRCNNError for a name that is not in class_list.

        >>> dogs = found.of_class("dog")
        """
        if name not in self.class_list:
            raise FastRCNNError(f"{name!r} is not a class; the classes are {', '.join(self.class_list)}")
        return self[self.classes == self.class_list.index(name) + 1]

    def above(self, score: float | Float32[np.ndarray, "K"]) -> "Detections":
        """Those that score at least `score`, or the one of its class of K.

        >>> sure = found.above(0.8)
        """
        return self[self.scores >= (np.asarray(score)[self.classes] if np.ndim(score) else score)]

    def in_classes(self, class_list: Sequence[str]) -> "Detections":
        """The same with the numbers of a list of the same classes in another order or case.

        >>> found.in_classes(["Horse", "Cat", "Dog"]).names == [name.title() for name in found.names]
        True

        Raises FastRCNNError for a list of other classes.
        """
        if tuple(class_list) == self.class_list:
            return self
        number = {plain_name(name): k for k, name in enumerate(class_list, start=1)}
        own = [plain_name(name) for name in self.class_list]
        if sorted(own) != sorted(number):
            raise FastRCNNError(
                f"the detections have the classes {', '.join(self.class_list)}, the annotations "
                f"{', '.join(class_list)}; score them with the class list they were made with"
            )
        renumber = np.array([0] + [number[name] for name in own], np.int64)
        return Detections(self.boxes, renumber[self.classes], self.scores, tuple(class_list))

    def __repr__(self) -> str:
        """Such as `Detections(3: 2 dog, 1 cat; scores 0.31 to 0.97)`."""
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).items())
        scores = f": {counts}; scores {self.scores.min():.2f} to {self.scores.max():.2f}" if len(self) else ""
        return f"Detections({len(self)}{scores})"

    def _repr_html_(self) -> str:
        """A table for notebooks, of the first 20."""
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{score:.3f}</td>"
            + "".join(f"<td>{x:.1f}</td>" for x in box)
            + "</tr>"
            for name, score, box in self[:SHOWN]
        ]
        more = f"<p>and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        head = "".join(f"<th>{title}</th>" for title in ("class", "score", "x1", "y1", "x2", "y2"))
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>{more}"

    def plot(
        self, image: "str | Path | PIL.Image.Image | np.ndarray | torch.Tensor", path: str | Path | None = None
    ) -> "PIL.Image.Image":
        """The image, in any form that a detector takes, with boxes, classes and scores; also as a file, if `path` names
        one.

        >>> picture = found.above(0.5).plot("street.jpg", "found.png")

        Small images are enlarged as by draw_detections. Raises FastRCNNError for what is no picture, as write_image
        does for the file, and for one that would take the image's place.
        """
        from PIL import Image

        from fastrcnn.drawing import draw_detections, write_image
        from fastrcnn.files import refuse_overwrite
        from fastrcnn.inputs import as_pixels

        if path is not None and isinstance(image, str | Path):
            refuse_overwrite([image], [Path(path)])
        drawn = draw_detections(as_pixels(image), self.boxes, self.names, self.scores)
        if path is not None:
            write_image(path, drawn)
        return Image.fromarray(drawn)

    def to_coco(self, image_id: int, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """The rows as COCO's results have them, with boxes (x, y, width, height); ids by class name, or 1..K-1.

        >>> results = found.to_coco(139, {"cat": 17, "dog": 18, "horse": 19})

        Raises FastRCNNError for a class without an id.
        """
        numbers = category_ids
        if numbers is None:
            numbers = {name: k for k, name in enumerate(self.class_list, start=1)}
        missing = sorted({*self.names} - {*numbers})
        if missing:
            raise FastRCNNError(f"category_ids has no number for {', '.join(missing)}")
        sizes = self.boxes[:, 2:].astype(np.float64) - self.boxes[:, :2]
        boxes = np.concatenate((self.boxes[:, :2], sizes), axis=1).tolist()
        return [
            {"image_id": image_id, "category_id": numbers[name], "bbox": box, "score": score}
            for name, box, score in zip(self.names, boxes, self.scores.tolist(), strict=True)
        ]

    def to_supervision(self) -> "supervision.Detections":
        """For the annotators and trackers of supervision: class_id counts class_list from 0, names are in `data`.

        >>> shown = found.to_supervision()  # doctest: +SKIP

        Raises FastRCNNError where supervision is not installed.
        """
        try:
            from supervision import Detections as Result
        except ImportError:
            raise FastRCNNError("to_supervision needs the library; pip install supervision") from None
        names: dict[str, Any] = {"class_name": np.array(self.names, dtype=str)}
        return Result(self.boxes.copy(), confidence=self.scores.copy(), class_id=self.classes - 1, data=names)

    def to_json(self) -> dict[str, list]:
        """Columns by name, with every digit: what from_json reads back is the same to the bit.

        >>> text = json.dumps(found.to_json())
        """
        return {"classes": self.names, "scores": self.scores.tolist(), "boxes": self.boxes.tolist()}

    @classmethod
    def from_json(cls, columns: Any, class_list: Sequence[str]) -> "Detections":
        """The inverse of to_json. Raises FastRCNNError for anything else.

        >>> same = Detections.from_json(found.to_json(), found.class_list)
        """
        number = {name: k for k, name in enumerate(class_list, start=1)}
        try:
            names, scores, boxes = columns["classes"], np.array(columns["scores"]), np.array(columns["boxes"])
            classes = np.array([number[name] for name in names], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as e:
            raise FastRCNNError(
                f"must have `classes` (names from the class list), `scores` and `boxes`, lists of one length "
                f"({type(e).__name__}: {e})"
            ) from None
        boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
        if scores.dtype.kind not in "if" or boxes.dtype.kind not in "if":
            raise FastRCNNError("`scores` and `boxes` must hold numbers only")
        if scores.shape != classes.shape or boxes.shape != (len(classes), 4):
            shapes = f"{list(scores.shape)} and {list(boxes.shape)}"
            raise FastRCNNError(f"`scores` and `boxes` must be [n] and [n, 4] for {len(classes)} classes, not {shapes}")
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is refused
            return cls(boxes.astype(np.float32), classes, scores.astype(np.float32), tuple(class_list))


@dataclass(frozen=True, eq=False)
class DetectedImage:
    """One image and what was found in it: an entry of detections.json.

    >>> entry = DetectedImage("street", found, "photos/street.jpg", 240, 180)
    """

    id: str
    found: Detections
    file: str | None = None  # as it was named; these three are None in files of older versions
    width: int | None = None  # image pixels, upright
    height: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry. from_json is the inverse.

        >>> text = json.dumps(DetectedImage("street", found).to_json())
        """
        about = {"id": self.id, "file": self.file, "width": self.width, "height": self.height}
        return about | self.found.to_json()

    @classmethod
    def from_json(cls, entry: Any, class_list: Sequence[str]) -> "DetectedImage":
        """The inverse of to_json. Raises FastRCNNError, naming the image, for anything else.

        >>> entry = DetectedImage.from_json(DetectedImage("street", found).to_json(), found.class_list)
        """
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise FastRCNNError(f"an image must have an `id`, a text, not {str(entry)[:50]}")
        file, width, height = (entry.get(name) for name in ("file", "width", "height"))
        try:
            if not isinstance(file, str | None) or not all(type(side) in (int, type(None)) for side in (width, height)):
                raise FastRCNNError("`file` must be a text, `width` and `height` whole numbers")
            return cls(entry["id"], Detections.from_json(entry, class_list), file, width, height)
        except FastRCNNError as e:
            raise FastRCNNError(f"image {entry['id']}: {e}") from None


# ---- the file

FORMAT = {"content": "fastrcnn detections", "boxes": "xyxy", "origin": 0, "end": "exclusive", "unit": "image pixels"}


def write_detections(path: str | Path, class_list: Sequence[str], images: Iterable[DetectedImage]) -> None:
    """Save detections as JSON: a header with the meaning of the boxes, the class list, then one line per image.

    >>> write_detections("detections.json", found.class_list, [DetectedImage("street", found)])

    Raises FastRCNNError as atomic_write does.
    """
    with atomic_write(path) as file:
        header = f'"format": {json.dumps(FORMAT)},\n"classes": {json.dumps(list(class_list))},\n"images": [\n'
        file.write(("{\n" + header).encode())
        for index, image in enumerate(images):
            file.write((",\n" * (index > 0) + json.dumps(image.to_json())).encode())
        file.write(b"\n]\n}\n")


def read_detections(path: str | Path) -> tuple[list[str], list[DetectedImage]]:
    """The class list and the images of a file that write_detections wrote, or an older version of tools/test.py.

    >>> class_list, images = read_detections("detections.json")

    Raises FastRCNNError, naming file and image, for anything else.
    """
    remedy = "give the detections.json of tools/detect.py or tools/test.py, or make it again"
    try:
        tree = json.loads(read_bytes(path, remedy))
    except (ValueError, RecursionError) as e:
        raise FastRCNNError(f"{path}: is not whole JSON ({e}); {remedy}") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise FastRCNNError(f"{path}: has no header `format` of {json.dumps(FORMAT)}; {remedy}")
    class_list, images = tree.get("classes"), tree.get("images")
    if not isinstance(class_list, list) or not all(isinstance(name, str) for name in class_list) or not class_list:
        raise FastRCNNError(f"{path}: `classes` must be the list of class names; {remedy}")
    if len({plain_name(name) for name in class_list}) < len(class_list):
        raise FastRCNNError(f"{path}: a name in `classes` is listed twice; class names are compared without case")
    if isinstance(images, dict) and all(isinstance(entry, dict) for entry in images.values()):  # an older version
        images = [{**entry, "id": image_id} for image_id, entry in images.items()]
    if not isinstance(images, list):
        raise FastRCNNError(f"{path}: `images` must be a list with one entry per image; {remedy}")
    try:
        return class_list, [DetectedImage.from_json(entry, class_list) for entry in images]
    except FastRCNNError as e:
        raise FastRCNNError(f"{path}: {e}; {remedy}") from None
