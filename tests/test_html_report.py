"""report.html: its numbers, its structure, and that any result gives a page."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import CONTRASTS, faults
from PIL import Image
from test_page import NASTY
from test_rows import record

from fastrcnn import config as configs
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.drawing import write_image
from fastrcnn.evaluate import html_report, voc
from fastrcnn.evaluate.analysis import analyse, most_confident_errors
from fastrcnn.evaluate.html_report import Drawn, legend, thumbnail, write_report
from fastrcnn.evaluate.report_sections import Evaluated
from fastrcnn.evaluate.rows import DetectionRows, ObjectRows
from fastrcnn.proposals.recall import proposal_recall

CLASSES = [*NASTY[:8], *"dog car absent".split()]


def evaluated(
    folder, classes=CLASSES, images=6, found=200, objects=60, covered=True, metric="11point", pictures=True
) -> Evaluated:
    """Boxes around the objects of grey pictures, some of another class; the last class has no objects."""
    rng = np.random.default_rng(0)
    k = len(classes)
    for i in range(images * pictures):
        write_image(folder / f"{i}.jpg", np.full((400, 400, 3), 120, np.uint8))
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
    records = [made_record(folder, i, truth) for i in range(images)]
    recall = proposal_recall((record, record.boxes) for record in records) if covered else None
    found = analyse(rows, truth, classes, images, metric)
    return Evaluated(config, Path("runs/<run>/model.safetensors"), records, rows, truth, result, found, recall)


def made_record(folder, index, truth):
    own = truth.images == index
    about = (truth.boxes[own], truth.classes[own], truth.difficult[own])
    return ImageRecord(f"{index:06d}", folder / f"{index}.jpg", 400, 400, *about, None)


def written(folder, done) -> str:
    write_report(folder / "report.html", done)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", ["11point", "area"])
def test_a_report_says_the_scores(tmp_path, metric):
    done = evaluated(tmp_path, metric=metric)
    page = written(tmp_path, done)
    assert not faults(page)
    assert f"mAP {done.result.mean_ap:.4f}" in page
    assert "<script>alert" not in page
    for ap, best in zip(done.result.ap[1:-1], done.analysis.thresholds.best[1:-1], strict=True):
        assert f">{ap:.4f}</td>" in page and f">{best.score:.3f}</td>" in page
    assert page.count('id="pr-') == 2 * (len(CLASSES) - 1), "a class without objects has no panel"
    assert page.count("<circle") > 11 * (len(CLASSES) - 1) or metric == "area"
    for kind, cost in zip(done.analysis.errors.kinds, done.analysis.errors.map_cost, strict=True):
        assert f">{kind}</bdi>" in page and f">{cost:.4f}</td>" in page
    assert page.count("<td") > len(CLASSES) ** 2, "a confusion matrix"


@pytest.mark.parametrize("empty", [{"images": 0, "objects": 0}, {"objects": 0}, {"found": 0}, {"covered": False}])
def test_any_result_gives_a_page(tmp_path, empty):
    page = written(tmp_path, evaluated(tmp_path, **empty))
    assert not faults(page)
    assert ">nan<" not in page and ">nan%<" not in page


def test_many_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "SHOWN", 1)
    names = [f"class {i} of many" for i in range(365)]
    page = written(tmp_path, evaluated(tmp_path, names, images=50, found=4000, objects=1000, pictures=False))
    assert not faults(page)
    assert len(page) < 5e6
    assert 'class="matrix"' not in page and "The largest confusions" in page


def test_pictures_are_small_and_one_that_vanished_says_so(tmp_path):
    done = evaluated(tmp_path, classes=["dog", "cat"], images=2, objects=4, found=30)
    done.records[0].path.unlink()
    page = written(tmp_path, done)
    assert not faults(page)
    assert f"{done.records[0].path}: no such image" in page
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="Picture 000001: ([^"]+)"', page)
    assert sources and all(" 0." in alt and "(object)" in alt for _, alt in sources)
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0][0])))
    assert picture.size == (320, 320)
    d = most_confident_errors(done.analysis.errors, done.analysis.matching, 1)[0]
    assert f"> {done.detections.scores[d]:.3f}, " in page, "the most confident error"


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_in_a_browser(browser, tmp_path, width, dark):
    write_report(tmp_path / "report.html", evaluated(tmp_path))
    browser.open(tmp_path / "report.html", width, dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert not browser.problems()
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = browser.evaluate(CONTRASTS)
    assert contrasts[0][1] >= 4.5, contrasts[:3]
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    browser.evaluate("[...document.querySelectorAll('th button')].find(b => b.textContent == 'AP').click()")
    shown = browser.evaluate("[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[4].textContent)")
    assert shown[-1] == "\N{EN DASH}", "the class without objects is last"
    assert len(shown) == len(CLASSES) and shown[:-1] == sorted(shown[:-1], reverse=True)


def drawn(tmp_path, *boxes):
    write_image(tmp_path / "a.png", np.zeros((80, 100, 3), np.uint8))
    made = thumbnail(replace(record("a"), path=tmp_path / "a.png"), [Drawn(*one) for one in boxes], "found")
    return made.findall("div/svg/rect"), made.findall("div/svg/text"), made.find("div/img").get("alt")


def test_each_box_is_drawn_and_labels_that_would_cover_others_are_not(tmp_path):
    box, far = np.array([10, 10, 40, 40]), np.array([60, 50, 90, 70.4])
    boxes = [("wrong", "dog", box), ("right", "cat", box + 1), ("object", "cat", box), ("object", "<" * 99, far)]
    rects, texts, alt = drawn(tmp_path, *boxes)
    assert [rect.get("class") for rect in rects[1::2]] == ["object", "object", "right", "wrong"], "the first on top"
    assert {key: rects[1].get(key) for key in ("x", "y", "width", "height")} == {
        "x": "60", "y": "50", "width": "30", "height": "20"
    }  # fmt: skip
    assert [text.text for text in texts] == ["\N{BALLOT X} dog", "cat", "<" * 23 + "\N{HORIZONTAL ELLIPSIS}"]
    assert [text.get("text-anchor") for text in texts] == ["start", "start", "end"]
    assert "dog (wrong), cat (right), cat (object), <<" in alt


def test_a_box_that_ends_before_it_starts_has_no_size(tmp_path):
    rects, _, _ = drawn(tmp_path, ("wrong", "dog", np.array([40, 30, 20, 10])))
    assert {(rect.get("width"), rect.get("height")) for rect in rects} == {("0", "0")}


def test_a_picture_without_boxes(tmp_path):
    rects, texts, alt = drawn(tmp_path)
    assert not rects and not texts and "nothing to find" in alt


def test_the_legend_names_every_kind():
    said = "".join(legend().itertext())
    assert "annotated" in said and "right" in said and "wrong" in said and "difficult" in said
