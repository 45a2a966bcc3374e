import contextlib
import errno
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig, to_dict
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock
from fastrcnn.journal import Journal
from fastrcnn.proposals import selective_search as ss
from fastrcnn.proposals.stored import open_proposals

CONFIG = ProposalsConfig()
TOOL = Path(__file__).parent.parent / "tools" / "proposals.py"


def picture(seed, width=60, height=40):
    """Coloured boxes on noise: RGB uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for _ in range(6):
        x, y = rng.integers(0, width - 8), rng.integers(0, height - 8)
        image[y : y + rng.integers(6, 30), x : x + rng.integers(6, 30)] += rng.integers(0, 190, 3, dtype=np.uint8)
    return image


def write_pictures(folder, count, first=0, **size):
    records = []
    for i in range(first, first + count):
        path = folder / f"{i:03}.png"
        image = picture(i, **size)
        cv2.imwrite(str(path), image[:, :, ::-1])
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        records.append(ImageRecord(path.stem, path, image.shape[1], image.shape[0], *nothing, None))
    return records


@pytest.fixture
def in_threads(monkeypatch):
    """Run the search in this process, where it can be counted; returns the ids searched."""
    searched = []

    @contextlib.contextmanager
    def workers(processes):
        with ThreadPoolExecutor(1) as pool:
            yield pool

    search_one = ss._search_one

    def counted(image_id, path, config):
        searched.append(image_id)
        return search_one(image_id, path, config)

    monkeypatch.setattr(ss, "workers", workers)
    monkeypatch.setattr(ss, "_search_one", counted)
    return searched


def journals(path):
    return list(path.parent.glob(f"{path.name}.*.partial"))


def read_journal(path):
    """The ids of the images in a journal of these settings."""
    key = {"proposals": to_dict(CONFIG) | {"opencv": cv2.__version__}}
    return [made.id for made in Journal(path, key, ss._encode, ss._decode).items]


# ---- one image


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 1000),
    st.integers(1, 80),
    st.integers(1, 60),
    st.integers(1, 100),
    st.integers(1, 20),
    st.sampled_from([7, 31, 500]),
)
def test_boxes_are_distinct_and_inside_and_large_enough(seed, width, height, max_per_image, min_size, long_side):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = ss.selective_search(
        image, "x", ProposalsConfig(max_per_image=max_per_image, min_size=min_size, long_side=long_side)
    )
    x1, y1, x2, y2 = boxes.T
    assert boxes.dtype == np.float32
    assert boxes.shape[0] <= max_per_image
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)).all()
    assert ((x2 - x1 >= min_size) & (y2 - y1 >= min_size)).all()
    assert len({tuple(b) for b in boxes}) == len(boxes)
    if min(width, height) >= min_size and max_per_image == 100:
        assert [0, 0, width, height] in boxes.tolist()


@pytest.mark.parametrize("method", ["fast", "quality"])
def test_the_boxes_are_those_of_opencv(method):
    image = picture(1)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[method]()
    expected = {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist() if w >= 2 and h >= 2}
    boxes = ss.selective_search(image, "x", ProposalsConfig(method=method, max_per_image=10**6))
    assert {tuple(b) for b in boxes.tolist()} == expected
    assert len(expected) > 10


def test_order_does_not_depend_on_chance_and_the_limit_keeps_the_first():
    image = picture(2)
    runs = [
        ss.selective_search(image, "x", ProposalsConfig(max_per_image=10**6)) for _ in range(3)
    ]  # C's rand() goes on in between
    assert runs[0].tolist() == runs[1].tolist() == runs[2].tolist()
    assert ss.selective_search(image, "x", ProposalsConfig(max_per_image=7)).tolist() == runs[0][:7].tolist()


def test_a_large_image_is_searched_at_the_long_side():
    image = picture(2)
    enlarged = image.repeat(3, axis=0).repeat(3, axis=1)
    config = ProposalsConfig(max_per_image=10**6, min_size=1, long_side=max(image.shape))
    assert ss.selective_search(enlarged, "x", config).tolist() == (3 * ss.selective_search(image, "x", config)).tolist()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2), unique=True, min_size=2, max_size=20), st.randoms())
def test_rank_depends_on_the_set_and_the_id_only(corners, chance):
    boxes = [[x, y, x + y + 1, 2 * x + y + 1] for x, y in corners]
    shuffled = chance.sample(boxes, len(boxes))
    ranked = ss._rank(np.array(boxes, dtype=np.float32), "some id").tolist()
    assert ranked == ss._rank(np.array(shuffled, dtype=np.float32), "some id").tolist()
    assert sorted(ranked) == sorted(map(list, boxes))


def test_rank_is_pinned_across_versions_and_leans_to_large_boxes():
    side = np.repeat([4.0, 100.0], 500)
    left = np.arange(1000.0)
    boxes = np.stack((left, left, left + side, left + side), axis=1).astype(np.float32)
    ranked = ss._rank(boxes, "000012")
    large = ranked[:, 2] - ranked[:, 0] == 100
    assert large[:100].mean() > 0.75  # weights 1/10 to 1/2: five of six while both last
    assert not large[:100].all()
    assert ranked[:3].tolist() == PINNED
    assert ranked[:3].tolist() != ss._rank(boxes, "000013")[:3].tolist()


PINNED = [[686.0, 686.0, 786.0, 786.0], [787.0, 787.0, 887.0, 887.0], [725.0, 725.0, 825.0, 825.0]]


# ---- a data set


def test_file_holds_the_boxes_of_each_image_wherever_they_were_found(tmp_path, request):
    records = write_pictures(tmp_path, 6)
    path = tmp_path / "p.safetensors"
    ss.make_proposals(records, path, CONFIG, processes=2)
    proposals = open_proposals(path, records, CONFIG)
    for i, record in enumerate(records):
        expected = ss.selective_search(picture(i), record.id, CONFIG)
        assert proposals[record.id].tolist() == expected.tolist()
    assert not journals(path)
    request.getfixturevalue("in_threads")
    ss.make_proposals(records, tmp_path / "other.safetensors", CONFIG)
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()


def test_grown_set_needs_the_new_images_only(tmp_path, in_threads, caplog):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 5)
    ss.make_proposals(records[:3], path, CONFIG)
    ss.make_proposals(records[1:], path, CONFIG)
    assert in_threads == [r.id for r in records]
    before = path.read_bytes()
    ss.make_proposals(records, path, CONFIG)
    assert path.read_bytes() == before
    assert len(in_threads) == 5
    ss.make_proposals(records, tmp_path / "new.safetensors", CONFIG)
    assert (tmp_path / "new.safetensors").read_bytes() == before


def test_changed_image_is_done_again(tmp_path, in_threads, caplog):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 3)
    ss.make_proposals(records, path, CONFIG)
    shutil.copy(write_pictures(tmp_path, 1, first=9)[0].path, records[1].path)
    ss.make_proposals(records, path, CONFIG)
    assert in_threads == ["000", "001", "002", "001"]
    assert "1 images have changed (first: 001)" in caplog.text
    proposals = open_proposals(path, records)
    assert proposals["001"].tolist() == ss.selective_search(picture(9), "001", CONFIG).tolist()
    assert proposals["002"].tolist() == ss.selective_search(picture(2), "002", CONFIG).tolist()


def test_file_of_other_settings_or_opencv_is_left_alone(tmp_path, in_threads, monkeypatch):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 3)
    ss.make_proposals(records[:2], path, CONFIG)
    before = path.read_bytes()
    with pytest.raises(
        FastRCNNError, match="p.safetensors: was made with proposals.method = fast, the config says qual"
    ):
        ss.make_proposals(records, path, ProposalsConfig(method="quality"))
    with pytest.raises(FastRCNNError, match="lacks 1 images and was made with max_per_image 2000 instead of 10"):
        ss.make_proposals(records, path, ProposalsConfig(max_per_image=10))
    monkeypatch.setattr(cv2, "__version__", "99")
    ss.make_proposals(records[:2], path, CONFIG)  # complete: nothing to mix
    with pytest.raises(FastRCNNError, match=r"lacks 1 images and was made with opencv .* instead of 99"):
        ss.make_proposals(records, path, CONFIG)
    assert path.read_bytes() == before


def test_unfinished_work_is_kept_for_its_own_settings(tmp_path, in_threads, monkeypatch):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 3)
    for config in (CONFIG, ProposalsConfig(max_per_image=5)):
        with monkeypatch.context() as full, pytest.raises(FastRCNNError):
            fail_at(full, "fsync", 2)
            ss.make_proposals(records, path, config)
    assert len(journals(path)) == 2
    in_threads.clear()
    ss.make_proposals(records, path, CONFIG)
    assert len(in_threads) == 1
    assert len(journals(path)) == 1


def fail_at(monkeypatch, name, call, error=errno.ENOSPC):
    """The disk is full at the call of os.<name> with this number."""
    real, calls = getattr(os, name), []

    def failing(*args):
        calls.append(args)
        if len(calls) >= call:
            raise OSError(error, os.strerror(error))
        return real(*args)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("call", [1, 3, 5])  # the journal's first and third image; the finished file
def test_full_disk_keeps_what_was_finished(tmp_path, in_threads, monkeypatch, call):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 4)
    with monkeypatch.context() as full:
        fail_at(full, "fsync", call)
        with pytest.raises(FastRCNNError, match=r"p.safetensors.*cannot be written: No space left.*free space"):
            ss.make_proposals(records, path, CONFIG)
    assert not path.exists()
    finished = read_journal(journals(path)[0])
    assert len(finished) == min(call, 4)  # what was written before the failing fsync is whole, too
    in_threads.clear()
    ss.make_proposals(records, path, CONFIG)
    assert in_threads == [r.id for r in records if r.id not in finished]
    assert set(open_proposals(path, records)) == {r.id for r in records}


def test_a_journal_line_gives_the_image_back(tmp_path):
    boxes = np.arange(8, dtype=np.int32).reshape(2, 4)
    for made in (ss.Made("i\udce9", bytes(range(16)), (9, 8), boxes), ss.Made("", bytes(16), (1, 1), boxes[:0])):
        (tmp_path / "j").unlink(missing_ok=True)
        with ss._open_journal(tmp_path / "j", {}) as journal:
            journal.append(made)
        (read,) = ss._open_journal(tmp_path / "j", {}).items
        assert (read.id, read.digest, read.size) == (made.id, made.digest, made.size)
        assert read.boxes.dtype == np.int32 and read.boxes.tolist() == made.boxes.tolist()


def test_unreadable_image_does_not_stop_the_others(tmp_path, in_threads):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 4)
    good = records[1].path.read_bytes()
    records[1].path.write_bytes(good[: len(good) // 2])
    records[2].path.rename(tmp_path / "gone.png")
    with pytest.raises(FastRCNNError, match=r"00[12].png: .*\(2 of 4 images failed, the others are kept"):
        ss.make_proposals(records, path, CONFIG)
    records[1].path.write_bytes(good)
    (tmp_path / "gone.png").rename(records[2].path)
    in_threads.clear()
    ss.make_proposals(records, path, CONFIG)
    assert in_threads == ["001", "002"]


def test_ids_that_stand_for_two_images_are_refused(tmp_path, in_threads):
    for name in "ab":
        (tmp_path / name).mkdir()
    records = write_pictures(tmp_path / "a", 1)
    ss.make_proposals(records + records, tmp_path / "p.safetensors", CONFIG)  # the same image in two sets
    assert in_threads == ["000"]
    with pytest.raises(FastRCNNError, match=r"image id 000 stands for .*a/000.png and for .*b/000.png"):
        ss.make_proposals(records + write_pictures(tmp_path / "b", 1), tmp_path / "p.safetensors", CONFIG)


def test_bad_arguments(tmp_path):
    with pytest.raises(FastRCNNError, match=r"p.npz: .*\.safetensors"):
        ss.make_proposals([], tmp_path / "p.npz", CONFIG)
    with pytest.raises(FastRCNNError, match="processes is 0"):
        ss.make_proposals([], tmp_path / "p.safetensors", CONFIG, processes=0)


def test_second_run_on_the_same_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 1)
    with (
        lock(tmp_path / ".p.safetensors.lock", "the proposals file"),
        pytest.raises(FastRCNNError, match="the proposals file p.safetensors is in use by another process"),
    ):
        ss.make_proposals(records, path, CONFIG)
    assert not path.exists()


# ---- the tool


def write_data_set(folder, count, width, height):
    """Each image has one object, as large as itself."""
    records = write_pictures(folder, count, width=width, height=height)
    for record in records:
        box = f"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{width}</xmax><ymax>{height}</ymax></bndbox>"
        xml = f"<annotation><object><name>box</name>{box}</object></annotation>"
        record.path.with_suffix(".xml").write_text(xml)
    return records


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def group_is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_tool_goes_on_after_a_kill_and_after_ctrl_c(tmp_path, in_threads, caplog):
    (tmp_path / "images").mkdir()
    records = write_data_set(tmp_path / "images", 24, width=300, height=225)
    path = tmp_path / "p.safetensors"
    config = tmp_path / "c.yaml"
    config.write_text(
        f"classes: [box]\ndata:\n  train: [&set {{format: folder, root: {tmp_path}/images, proposals: {path}}}]\n"
        "  test: [*set]\n"
    )

    def start(processes):
        command = [sys.executable, str(TOOL), str(config), "--processes", str(processes)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def images_in_journal():
        return len(read_journal(journals(path)[0])) if journals(path) else 0

    process = start(2)
    wait_until(lambda: images_in_journal() >= 2, process)
    process.kill()
    process.communicate()
    first = images_in_journal()
    end = time.monotonic() + 60
    while not group_is_gone(process.pid):  # the workers go too
        assert time.monotonic() < end
        time.sleep(0.05)

    process = start(1)
    wait_until(lambda: images_in_journal() >= first + 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    message = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert f"{first} of 24 images are finished already" in message
    assert "Traceback" not in message
    assert not path.exists()

    second = images_in_journal()
    assert second >= first + 2
    caplog.set_level(logging.INFO)
    ss.make_proposals(records, path, CONFIG)
    assert len(in_threads) == 24 - second
    ss.make_proposals(records, tmp_path / "unbroken.safetensors", CONFIG)
    assert path.read_bytes() == (tmp_path / "unbroken.safetensors").read_bytes()


def test_tool_prints_recall_of_each_set(tmp_path, in_threads, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    write_data_set(tmp_path / "images", 3, width=60, height=40)
    own = tmp_path / "own.json"
    meta = {"format": "xywh", "origin": 0, "end": "exclusive"}
    own.write_text(json.dumps({"meta": meta, "proposals": {f"{i:03}": [[0, 0, 36, 40]] for i in range(3)}}))
    common = f"format: folder, root: {tmp_path}/images, proposals: {tmp_path}"
    config = tmp_path / "c.yaml"
    config.write_text(
        f"classes: [box]\ndata:\n  train: [&set {{{common}/p.safetensors}}]\n  test: [*set, {{{common}/own.json}}]\n"
    )
    monkeypatch.syspath_prepend(TOOL.parent)
    monkeypatch.setattr(sys, "argv", ["proposals.py", str(config), "--limit", "2", "--processes", "1"])
    runpy.run_path(str(TOOL))["main"]()
    assert in_threads == ["000", "001"]
    lines = capsys.readouterr().out.splitlines()
    covered = "recall of 2 objects 1.000 at IoU 0.5, 1.000 at IoU 0.7 (0 difficult ones left out)"
    for line, key in zip(lines, ("data.train.0", "data.test.0"), strict=False):
        assert line.startswith(f"{key} ({tmp_path}/images): {tmp_path}/p.safetensors: ")
        assert line.endswith(f" boxes an image in 2 images; {covered}")
    assert lines[2].endswith(
        "own.json: 1 boxes an image in 3 images; recall of 3 objects 1.000 at IoU 0.5, 0.000 at IoU 0.7 "
        "(0 difficult ones left out)"
    )
    config.write_text("classes: [box]\ndata: {train: [{format: folder, root: x}], test: []}\n")
    with pytest.raises(FastRCNNError, match=r"c.yaml: data.train.0.proposals is not set"):
        runpy.run_path(str(TOOL))["main"]()
