import cv2
import numpy as np
import oracles_search as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrcnn.proposals.grouping import group
from fastrcnn.proposals.segments import COLOURS, TEXTURES, pixel_bins, segments


def regions_of(seed, width, height, count):
    """Every segment somewhere; segments may lie in pieces."""
    rng = np.random.default_rng(seed)
    regions = rng.integers(0, count, (height, width), dtype=np.int32)
    regions.ravel()[rng.permutation(width * height)[:count]] = np.arange(count)
    return regions


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(3, 12), st.integers(3, 12), st.integers(1, 6), st.booleans())
def test_segments_are_those_of_the_loops(seed, width, height, count, textured):
    regions = regions_of(seed, width, height, count)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    bins = pixel_bins(image, textured)
    found, rows = segments(regions, bins), regions.tolist()
    assert found.sizes.tolist() == [sum(row.count(s) for row in rows) for s in range(count)]
    assert found.boxes.tolist() == [list(oracle.box(rows, s)) for s in range(count)]
    assert found.neighbours.tolist() == list(map(list, oracle.neighbours(rows)))
    colours = [[[v * COLOURS // 256 for v in row] for row in image[:, :, c].tolist()] for c in range(3)]
    assert found.histograms["Color"].tolist() == [oracle.shares(rows, colours, COLOURS, s) for s in range(count)]
    assert ("Texture" in found.histograms) == textured
    if textured:
        directions = []
        for plane in bins.textures.astype(int).tolist():
            directions.append([[v // TEXTURES for v in row] for row in plane])
            directions.append([[v % TEXTURES for v in row] for row in plane])
        expected = [oracle.shares(rows, directions, TEXTURES, s) for s in range(count)]
        assert found.histograms["Texture"].tolist() == expected


def opencv_boxes(image, cue):
    """The boxes of one graph segmentation, merged by one cue."""
    seg = cv2.ximgproc.segmentation
    search = seg.createSelectiveSearchSegmentation()
    search.addImage(image)
    search.addGraphSegmentation(seg.createGraphSegmentation(0.8, 150.0, 100))
    search.addStrategy(getattr(seg, f"createSelectiveSearchSegmentationStrategy{cue}")())
    return {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()}


@pytest.mark.parametrize("cue", ["Color", "Texture"])
@pytest.mark.parametrize(("width", "height"), [(160, 120), (300, 41), (37, 240)])
def test_histograms_are_those_of_opencv(cue, width, height):
    rng = np.random.default_rng(width)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2.5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    graph = cv2.ximgproc.segmentation.createGraphSegmentation(0.8, 150.0, 100)
    regions = graph.processImage(image)
    found = group(segments(regions, pixel_bins(image, True)), [cue], regions.size)
    assert {tuple(b) for b in found.tolist()} == opencv_boxes(image, cue)
    assert len(found) > 20


def test_a_picture_of_one_colour_has_one_bin():
    bins = pixel_bins(np.full((5, 7, 3), 200, dtype=np.uint8), True)
    assert (bins.colours == 200 * COLOURS // 256).all()
    assert (bins.textures[::4] == bins.textures[0, 0, 0]).all()
