import numpy as np
import oracles_search as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrcnn.proposals.grouping import group
from fastrcnn.proposals.segments import pixel_bins, segments

CUES = ["Color", "Fill", "Texture", "Size"]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000),
    st.integers(3, 14),
    st.integers(3, 14),
    st.integers(1, 12),
    st.lists(st.sampled_from(CUES), min_size=1, max_size=4, unique=True),
)
def test_boxes_are_those_of_the_loops(seed, width, height, count, cues):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    places = rng.permutation(width * height)[:count]  # each pixel is of the segment whose place is nearest
    y, x = np.indices((height, width))
    apart = (y - places[:, None, None] // width) ** 2 + (x - places[:, None, None] % width) ** 2
    start = segments(apart.argmin(axis=0).astype(np.int32), pixel_bins(image, True))
    found = group(start, cues, width * height)
    expected = oracle.group(start.sizes, start.boxes, start.neighbours, start.histograms, cues, width * height)
    assert found.tolist() == list(map(list, expected))


def test_equals_are_taken_from_the_last_found():
    regions = np.repeat(np.arange(4, dtype=np.int32), 3)[None].repeat(3, axis=0)  # four equal columns
    start = segments(regions, pixel_bins(np.zeros((3, 12, 3), dtype=np.uint8), False))
    assert group(start, ["Color"], 36).tolist()[4:] == [[6, 0, 12, 3], [3, 0, 12, 3], [0, 0, 12, 3]]


@pytest.mark.parametrize("cues", [["Fill", "Size"], CUES])
def test_parts_that_do_not_touch_stay_apart(cues):
    regions = np.zeros((1, 6), dtype=np.int32)
    regions[0, 3:] = 1  # in the first row nobody looks
    start = segments(regions, pixel_bins(np.zeros((1, 6, 3), dtype=np.uint8), True))
    assert group(start, cues, 6).tolist() == [[0, 0, 3, 1], [3, 0, 6, 1]]
