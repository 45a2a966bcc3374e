"""What damaged files look like, for the tests of every reader."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzzing = settings(
    max_examples=int(os.environ.get("FASTRCNN_FUZZ", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def mutated(draw, seeds):
    """One of the files `seeds` (bytes) with some bytes changed, a piece cut out, doubled, or the end missing."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(data)))
    piece = slice(start, start + draw(st.integers(0, 64)))
    action = draw(st.sampled_from(["keep", "cut", "double", "end"]))
    if action == "cut":
        del data[piece]
    elif action == "double":
        data[start:start] = data[piece]
    elif action == "end":
        del data[start:]
    return bytes(data)
