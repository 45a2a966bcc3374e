"""What the labels of a part of the data tell without opening a file again.

Findings that are errors would make training or a score meaningless; the others are worth a look.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastrcnn.annotations.problems import Outcome, Problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import Config

SHOWN = 5  # names or kinds in one message


def label_findings(
    part: str, records: Sequence[ImageRecord], problems: Sequence[Problem], config: Config
) -> list[Problem]:
    """What is wrong with the labels of all records of a part, and what will give little.

    `problems` are those of reading the records: what they explain is not found a second time.
    """
    if not records or (part == "test" and not any(record.annotation for record in records)):
        return []  # nothing will be learned or scored
    nothing = nothing_labelled(part, records, problems, config.classes)
    if nothing is not None:
        return [nothing]
    return [
        *not_pixels(records),
        *crowded(records, config.test.max_detections),
        *other_origin(part, records, config.data.xml_origin),
        *other_names(part, records),
        *contradictions(records, config.classes),
        *_without_objects(records),
        *_absent_classes(part, records, problems, config.classes),
    ]


def nothing_labelled(
    part: str, records: Sequence[ImageRecord], problems: Sequence[Problem], classes: Sequence[str]
) -> Problem | None:
    """The error that no record holds an object of any class, and its likely cause.

    A test set without any annotation is none: its images are detected on and not scored. Nor are objects that are all
    refused as errors, which are found already.
    """
    annotated = sum(record.annotation is not None for record in records)
    if any(len(record.boxes) for record in records) or (part == "test" and not annotated):
        return None
    left_out: Counter[tuple[str, Outcome]] = Counter(
        (p.kind, p.outcome) for p in problems if p.outcome in ("error", "skipped", "ignored")
    )
    if left_out and all(outcome == "error" for _, outcome in left_out):
        return None
    text = (
        f"holds no object of any class in its {len(records)} images: {_cause(annotated, left_out, problems, classes)}"
    )
    return Problem("no objects at all", Path(f"data.{part}"), None, text)


def _cause(
    annotated: int, left_out: Counter[tuple[str, Outcome]], problems: Sequence[Problem], classes: Sequence[str]
) -> str:
    """Why no object is left, as far as reading the annotations tells."""
    if not annotated:
        return "none has an annotation; check the root, `annotations` and `format` of the data set"
    names = names_outside(problems)
    if names:
        name = names.most_common(1)[0][0]
        near = difflib.get_close_matches(name.lower(), [c.lower() for c in classes], n=1, cutoff=0)[0]
        return (
            f"its files name {shown_names(names)}, which are not in classes (nearest to {name!r}: {near!r}); write the "
            "names of the files into classes"
        )
    if left_out:
        kinds = ", ".join(f"{count} {outcome} ({kind})" for (kind, outcome), count in left_out.most_common(SHOWN))
        return f"all were left out: {kinds}; tools/check_data.py lists them"
    return f"the annotations of {annotated} images hold none; look at one, and at `annotations` of the data set"


def names_outside(problems: Iterable[Problem]) -> Counter[str]:
    """The class names in the files that are not in classes, with the number of their objects."""
    return Counter(p.class_name for p in problems if p.class_name is not None and p.kind == "unknown class")


def shown_names(names: Counter[str]) -> str:
    """The most frequent names with their counts, in one line."""
    text = ", ".join(f"{name!r} {count} times" for name, count in names.most_common(SHOWN))
    return text + (f" and {len(names) - SHOWN} more names" if len(names) > SHOWN else "")


def crowded(records: Iterable[ImageRecord], max_detections: int) -> list[Problem]:
    """Images with more objects than detections are kept of one."""
    found = []
    for record in records:
        if len(record.boxes) > max_detections:
            text = f"image {record.id} has {len(record.boxes)} objects, and test.max_detections keeps {max_detections} "
            text += "detections of an image: the others cannot be found; raise it"
            found.append(Problem("more objects than detections", record.annotation or record.path, None, text, "noted"))
    return found


def not_pixels(records: Iterable[ImageRecord]) -> list[Problem]:
    """Annotations, by their folder, all of whose boxes lie within the first pixel of larger images."""
    reach: dict[Path, float] = defaultdict(float)
    count: Counter[Path] = Counter()
    for record in records:
        if record.annotation is not None and len(record.boxes) and min(record.width, record.height) > 1:
            folder = record.annotation.parent
            reach[folder] = max(reach[folder], float(record.boxes.max()))
            count[folder] += len(record.boxes)
    text = "all {} boxes lie within 0 and 1, so they cannot be pixels but fractions of the image; export pixels"
    return [
        Problem("boxes not in pixels", folder, None, text.format(count[folder]))
        for folder, furthest in reach.items()
        if furthest <= 1
    ]


def contradictions(records: Iterable[ImageRecord], classes: Sequence[str]) -> list[Problem]:
    """Objects that are in an image twice, and boxes with two classes.

    A RoI takes the label of the first of the objects that it overlaps most: the second never gets its own.
    """
    found = []
    for record in records:
        first: dict[tuple[float, ...], int] = {}
        for box, number in zip(map(tuple, record.boxes.tolist()), record.classes.tolist(), strict=True):
            before = first.get(box)
            if before is None:
                first[box] = number
                continue
            where = f"image {record.id}, box {' '.join(f'{side:g}' for side in box)}"
            if before == number:
                kind, text = "object twice", f"the same {classes[number - 1]!r} is there twice; remove one of them"
            else:
                kind = "box of two classes"
                text = f"is {classes[before - 1]!r} and {classes[number - 1]!r}: the second never gets its label"
            found.append(Problem(kind, record.annotation or record.path, where, text, "noted"))
    return found


def other_origin(part: str, records: Iterable[ImageRecord], origin: int) -> list[Problem]:
    """A remark if XML files show that their first pixel is not data.xml_origin."""
    stated = [record.stated for record in records if record.stated is not None]
    against = [[how for number, how in one.origins if number != origin] for one in stated]
    ways = Counter(how for some in against for how in some)
    if not ways:
        return []
    how = ", ".join(f"{count} {how}" for how, count in ways.most_common())
    text = (
        f"data.xml_origin is {origin}, but {sum(map(bool, against))} of its {len(stated)} XML files show {1 - origin}: "
        f"{how}; set data.xml_origin: {1 - origin}, or see data/README.md on tools"
    )
    return [Problem("xml_origin contradicted", Path(f"data.{part}"), None, text, "noted")]


def other_names(part: str, records: Sequence[ImageRecord]) -> list[Problem]:
    """XML files whose <filename> is that of another picture of the set; names of pictures elsewhere are but stale."""
    named = {record.path.stem: record.path for record in records}
    wrong = []
    for record in records:
        name = record.stated.name.replace("\\", "/").rpartition("/")[2] if record.stated else ""
        other = named.get(Path(name).stem)
        if other is not None and Path(name).stem != record.path.stem and other.name == name:
            wrong.append((record, other))
    claims = Counter(other for _, other in wrong)
    wrong = [(record, other) for record, other in wrong if claims[other] <= SHOWN]  # more: a copied template
    text = "its <filename> is {}, another picture of the set: whose are the boxes?"
    found = [
        Problem("name of another picture", record.annotation or record.path, None, text.format(other.name), "noted")
        for record, other in wrong
    ]
    if len(found) <= SHOWN:
        return found
    many = f"{len(found)} XML files have the <filename> of another picture of the set, the first is {found[0].file}"
    text = f"{many} ({wrong[0][1].name}); were pictures or XML files renamed? Look at --pictures"
    return [Problem("name of another picture", Path(f"data.{part}"), None, text, "noted")]


def _without_objects(records: Iterable[ImageRecord]) -> list[Problem]:
    """Images without objects, but not those whose boxes were refused, which is found already."""
    text = "has no objects of these classes; data.drop_empty: true leaves such images out of training"
    return [
        Problem("no objects", record.annotation, None, text, "noted")
        for record in records
        if len(record.boxes) == 0 and record.annotation is not None and not record.refused
    ]


def _absent_classes(
    part: str, records: Iterable[ImageRecord], problems: Sequence[Problem], classes: Sequence[str]
) -> Iterator[Problem]:
    """Classes without objects, unless objects were refused as errors: fixed, they may be of these."""
    present = {number for record in records for number in record.classes.tolist()}
    names = names_outside(problems)
    others = f"; the files also name {shown_names(names)}" if names else ""
    hint = f"check how the annotations spell it{others}, or leave it out of classes"
    for number, name in enumerate(classes, start=1):
        if number not in present and not any(p.outcome == "error" for p in problems):
            text = f"holds no object of class {name!r}; {hint}"
            yield Problem("class without objects", Path(f"data.{part}"), None, text, "noted")
