"""report.html: its numbers, its structure, and that any result gives a page."""

from pathlib import Path

import numpy as np
import pytest
from pages import CONTRASTS, faults
from test_page import NASTY

from fastrcnn import config as configs
from fastrcnn.evaluate import voc
from fastrcnn.evaluate.html_report import Evaluated, write_report
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.proposals.recall import proposal_recall

CLASSES = [*NASTY[:8], *"dog car absent".split()]


def evaluated(classes=CLASSES, images=6, found=200, objects=60, seed=0, covered=True, metric="11point") -> Evaluated:
    """Boxes around the objects of pictures, and elsewhere; the last class has no objects."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    corners = rng.uniform(0, 200, (objects, 2))
    boxes = np.hstack((corners, corners + rng.uniform(20, 200, (objects, 2)))).astype(np.float32)
    picture = np.sort(rng.integers(0, max(images, 1), objects))
    truth = ObjectRows(picture, rng.integers(1, max(k, 2), objects), boxes, rng.random(objects) < 0.1)
    of = rng.integers(0, max(objects, 1), found if objects else 0)
    shaken = (boxes[of] + rng.normal(0, 8, (len(of), 4))).astype(np.float32)
    confused = np.where(rng.random(len(of)) < 0.7, truth.classes[of], rng.integers(1, k + 1, len(of)))
    rows = DetectionRows(picture[of], confused, rng.random(len(of)).astype(np.float32), shaken)
    config = configs.from_dict({"classes": classes, "data": {"test": [{"root": "<root>", "split": "test"}]}})
    result = voc.evaluate(rows, truth, k + 1, metric=metric)
    records = [made_record(i, truth) for i in range(images)]
    recall = proposal_recall((record, record.boxes) for record in records) if covered else None
    return Evaluated(config, Path("runs/<run>/model.safetensors"), records, rows, truth, result, recall)


def made_record(index, truth):
    from fastrcnn.annotations.records import ImageRecord

    own = truth.images == index
    return ImageRecord(
        f"{index:06d}", Path(f"{index}.jpg"), 400, 400, truth.boxes[own], truth.classes[own], truth.difficult[own], None
    )


def written(folder, done) -> str:
    write_report(folder / "report.html", done)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", ["11point", "area"])
def test_a_report_says_the_scores(tmp_path, metric):
    done = evaluated(metric=metric)
    page = written(tmp_path, done)
    assert not faults(page)
    assert f"mAP {done.result.mean_ap:.4f}" in page
    assert "<script>alert" not in page
    for ap in done.result.ap[1:-1]:
        assert f">{ap:.4f}</td>" in page
    assert page.count('id="pr-') == 2 * (len(CLASSES) - 1), "a class without objects has no panel"
    assert page.count("<circle") == (11 * (len(CLASSES) - 1) if metric == "11point" else 0)


@pytest.mark.parametrize("empty", [{"images": 0, "objects": 0}, {"objects": 0}, {"found": 0}, {"covered": False}, {}])
def test_any_result_gives_a_page(tmp_path, empty):
    page = written(tmp_path, evaluated(**empty))
    assert not faults(page)
    assert ">nan<" not in page


def test_many_classes(tmp_path):
    names = [f"class {i} of many" for i in range(365)]
    page = written(tmp_path, evaluated(names, images=50, found=4000, objects=1000))
    assert not faults(page)
    assert len(page) < 3e6
    assert "<details>" in page


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_in_a_browser(browser, tmp_path, width, dark):
    write_report(tmp_path / "report.html", evaluated())
    browser.open(tmp_path / "report.html", width, dark)
    assert not browser.problems()
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = browser.evaluate(CONTRASTS)
    assert contrasts[0][1] >= 4.5, contrasts[:3]
    browser.evaluate("[...document.querySelectorAll('th button')].find(b => b.textContent == 'AP').click()")
    shown = browser.evaluate("[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[4].textContent)")
    assert shown[-1] == "\N{EN DASH}", "the class without objects is last"
    assert len(shown) == len(CLASSES) and shown[:-1] == sorted(shown[:-1], reverse=True)
