"""Ids that stay distinct when data sets have files of the same names."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastrcnn.annotations.folders import image_id
from fastrcnn.annotations.problems import Problem, duplicate_id_problem
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config_data import DataSetConfig


def distinct_ids(
    datasets: Sequence[DataSetConfig], sets: Sequence[Sequence[ImageRecord]]
) -> tuple[list[list[ImageRecord]], list[Problem]]:
    """The records of each data set, no id twice, and what was found.

    Where sets have different files under one id, the part in which their roots differ is put before their ids:
    d1/frame_0001 and d2/frame_0001. A file that is listed twice stays once, and is an error.
    """
    holders: dict[str, list[tuple[int, ImageRecord]]] = defaultdict(list)
    for i, records in enumerate(sets):
        for record in records:
            holders[record.id].append((i, record))
    clashes = [some for some in holders.values() if len(some) > 1 and len({r.path.resolve() for _, r in some}) > 1]
    prefixes = _prefixes([Path(d.root) for d in datasets], sorted({i for some in clashes for i, _ in some}))
    problems = []
    if prefixes:
        some = ", ".join(f"{prefix}{clashes[0][0][1].id}" for prefix in prefixes.values())
        text = f"{len(clashes)} names of its images are those of others; ids get the folder before them ({some})"
        problems.append(Problem("same names", Path(datasets[min(prefixes)].root), None, text, "noted"))
    seen: dict[str, ImageRecord] = {}
    distinct: list[list[ImageRecord]] = []
    for i, records in enumerate(sets):
        distinct.append([])
        for record in records:
            new = replace(record, id=prefixes[i] + record.id) if i in prefixes else record
            first = seen.setdefault(new.id, new)
            if first is new:
                distinct[i].append(new)
            else:
                problems.append(duplicate_id_problem(new.id, new.path, first.path))
    return distinct, problems


def _prefixes(roots: Sequence[Path], chosen: Sequence[int]) -> dict[int, str]:
    """The part in which the chosen roots differ, with a slash behind it: what they share at both ends is left out."""
    parts = {i: list(roots[i].resolve().parts) for i in chosen}
    if len({tuple(part) for part in parts.values()}) < 2:
        return {}
    for end in (0, -1):
        # A root that lies in another keeps one part.
        while min(map(len, parts.values())) > 1 and len({part[end] for part in parts.values()}) == 1:
            for part in parts.values():
                del part[end]
    return {i: image_id("/".join(part)) + "/" for i, part in parts.items()}
