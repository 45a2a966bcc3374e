"""Which image the key of a proposals file means: an id, or a file name or path that fits one image only."""

import math
from collections import defaultdict
from collections.abc import Sequence

from fastrcnn.annotations.folders import image_id
from fastrcnn.annotations.records import ImageRecord


def keys_to_ids(keys: Sequence[str], records: Sequence[ImageRecord]) -> list[str]:
    """The keys of a file, with the ids of `records` in place of those that mean one of them by another name.

    A key that is no id, such as a.jpg, images/a.jpg or C:\\photos\\a, means the image whose path has the most parts
    in common with it, from the end, or whose id it is but for suffix and slashes; where two fit equally, it
    stays as it is.
    """
    known = set(keys)
    wanted = defaultdict(list)
    for record in records:
        if record.id not in known:
            path = image_id(record.path.as_posix()).split("/")[::-1]
            wanted[path[0]].append((record.id, path))
    if not wanted:
        return list(keys)
    ids = {record.id for record in records}
    claims: dict[str, list[tuple[float, str]]] = defaultdict(list)  # by image: how well each key fits
    for key in keys:
        name = image_id(key.replace("\\", "/"))
        parts = name.split("/")[::-1]
        near = wanted[parts[0]] if key not in ids else []
        fits = [(math.inf if name == identity else _in_common(parts, path), identity) for identity, path in near]
        best = max(fits, default=(0, ""))
        if sum(fit == best[0] for fit, _ in fits) == 1:
            claims[best[1]].append((best[0], key))
    renamed = {}
    for identity, some in claims.items():
        best = max(some)
        if sum(fit == best[0] for fit, _ in some) == 1:
            renamed[best[1]] = identity
    return [renamed.get(key, key) for key in keys]


def _in_common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share, from their ends; both are given in reverse."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
