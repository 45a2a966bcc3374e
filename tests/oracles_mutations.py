"""What damaged files look like, for the tests of every reader."""

import copy
import os
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzzing = settings(
    max_examples=int(os.environ.get("FASTRCNN_FUZZ", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


EXTREMES = [struct.pack("<i", n) for n in (0, -1, 2**31 - 1, -(2**31))]


@st.composite
def mutated(draw, seeds):
    """One of the files `seeds` (bytes): bytes changed, a number at its extreme, a piece cut out or doubled, no end."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(data)))
    if draw(st.booleans()):  # lengths and offsets at their extremes
        data[start : start + 4] = draw(st.sampled_from(EXTREMES))
    piece = slice(start, start + draw(st.integers(0, 64)))
    action = draw(st.sampled_from(["keep", "cut", "double", "end"]))
    if action == "cut":
        del data[piece]
    elif action == "double":
        data[start:start] = data[piece]
    elif action == "end":
        del data[start:]
    return bytes(data)


# What stands in a damaged or hostile file in place of a number, a name, a list or a mapping.
STRANGE = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "é",
    "${a}",
    "???",
]
STRANGE += [[], [0], [2**62, 2**62], [[1, 2], [3]], {}, {"a": 1}, "F8_E4M3", "F4", "C64", "BF16", "F64", "I64", "BOOL"]


@st.composite
def altered(draw, tree):
    """A copy of nested mappings and lists with one to three nodes replaced by something strange, or taken out."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        nodes = list(_nodes(tree))
        if not nodes:
            break
        parent, key = nodes[draw(st.integers(0, len(nodes) - 1))]
        if draw(st.integers(0, 7)) == 0:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
    return tree


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (parent, key) below a node."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _nodes(tree[key])
