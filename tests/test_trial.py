from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrcnn.annotations.records import make_record
from fastrcnn.config import ProposalsConfig
from fastrcnn.data.check_report import trials_text
from fastrcnn.proposals.recall import proposal_recall
from fastrcnn.proposals.trial import is_low, try_settings


def record(path, size, *boxes, difficult=False):
    objects = [(np.array(box, np.float32), 1, difficult) for box in boxes]
    return make_record(path.stem, path, *size, objects, path.with_suffix(".xml"))


def recall(covered, missed, side):
    """Of objects of this side: `covered` ones that are proposals too, and `missed` ones."""
    boxes = [[100 * i, 0, 100 * i + side, side] for i in range(covered + missed)]
    return proposal_recall([(record(Path("a.jpg"), (5000, 500), *boxes), np.array(boxes[:covered]).reshape(-1, 4))])


@pytest.mark.parametrize(("covered", "missed", "low"), [(6, 4, False), (5, 4, True), (0, 3, True), (3, 0, False)])
@pytest.mark.parametrize("side", [10, 90])
def test_recall_below_the_limit_is_low(covered, missed, low, side):
    assert is_low(recall(covered, missed, side)) == low


def test_no_objects_and_few_small_ones_are_not_low():
    assert not is_low(recall(0, 0, 10))
    large, small = [[0, 0, 200, 200]] * 9, [[0, 300, 9, 309]]
    few = proposal_recall([(record(Path("a.jpg"), (500, 500), *large, *small), np.array(large))])
    assert not is_low(few)


@pytest.fixture
def marked(tmp_path):
    """Four pictures with a mark each; that of the last is difficult."""
    records = []
    for i in range(4):
        Image.new("RGB", (80, 60), (20, 160, 30)).save(tmp_path / f"{i}.png")
        records.append(record(tmp_path / f"{i}.png", (80, 60), (10, 10, 20, 20), difficult=i == 3))
    return records


def search(image, image_id, config):
    """The mark with a large copy of the picture; else the whole picture."""
    boxes = [[0, 0, 80, 60]] + [[10, 10, 20, 20]] * (config.long_side >= 40)
    return np.array(boxes * (2 if config.method == "quality" else 1), np.float32)


def test_other_settings_are_tried_on_pictures_with_objects(marked, monkeypatch):
    monkeypatch.setattr("fastrcnn.proposals.trial.find_proposals", search)
    config = ProposalsConfig(long_side=20)
    trials = try_settings(marked, config, processes=1)
    assert [(t.settings, t.recall.overall()[0], t.boxes) for t in trials] == [
        ({}, 0, 1),
        ({"method": "quality"}, 0, 2),
        ({"long_side": 40}, 1, 2),
    ]
    assert all(t.images == 3 and t.seconds > 0 for t in trials)
    lines = trials_text(trials, config).splitlines()
    assert lines[0] == "tried on 3 objects in 3 of your pictures:"
    assert lines[1].startswith(
        "    as configured (method fast, long_side 20): recall 0.000 at IoU 0.5, 0.000 at IoU 0.7;"
    )
    assert lines[3].startswith("    proposals.long_side=40: recall 1.000 at IoU 0.5, 1.000 at IoU 0.7; 2 boxes and ")


def test_what_cannot_be_tried_is_not(marked):
    assert [t.settings for t in try_settings(marked, ProposalsConfig(method="quality"), 1, processes=1)] == [{}]
    assert try_settings(marked[3:], ProposalsConfig(), processes=1) == []
    assert "no picture has objects" in trials_text([], ProposalsConfig())


def test_processes_try_what_one_tries(marked):
    one, two = (try_settings(marked, ProposalsConfig(), 2, processes=n) for n in (1, 2))
    assert [t.settings for t in one] == [t.settings for t in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.recall.best_iou, b.recall.best_iou)
