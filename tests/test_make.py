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

from fastrcnn.annotations.records import ImageRecord
from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock
from fastrcnn.journal import Journal
from fastrcnn.proposals import make, unfinished
from fastrcnn.proposals.proposals import open_proposals
from fastrcnn.proposals.selective_search import selective_search
from fastrcnn.proposals.stored import read_stored
from fastrcnn.proposals.unfinished import Part, Unfinished

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

    search_one = make._search_one

    def counted(image_id, path, config):
        searched.append(image_id)
        return search_one(image_id, path, config)

    monkeypatch.setattr(make, "workers", workers)
    monkeypatch.setattr(make, "_search_one", counted)
    return searched


def journals(path):
    return list(path.parent.glob(f"{path.name}.*.partial"))


def read_journal(path):
    """The ids of the images in a journal of these settings."""
    key = {"proposals": CONFIG.model_dump(exclude={"dense"}) | {"max_per_image": 2000, "opencv": cv2.__version__}}
    return [made.id for made in Journal(path, key, unfinished._encode, unfinished._decode).items]


# ---- a data set


def test_file_holds_the_boxes_of_each_image_wherever_they_were_found(tmp_path, request):
    records = write_pictures(tmp_path, 6)
    path = tmp_path / "p.safetensors"
    make.make_proposals(records, path, CONFIG, processes=2)
    proposals = open_proposals(path, records, CONFIG)
    for i, record in enumerate(records):
        expected = selective_search(picture(i), record.id, CONFIG)
        assert proposals[record.id].tolist() == expected.tolist()
    assert not journals(path)
    request.getfixturevalue("in_threads")
    make.make_proposals(records, tmp_path / "other.safetensors", CONFIG)
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()


def test_grown_set_needs_the_new_images_only(tmp_path, in_threads, caplog):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 5)
    make.make_proposals(records[:3], path, CONFIG)
    make.make_proposals(records[1:], path, CONFIG)
    assert in_threads == [r.id for r in records]
    before = path.read_bytes()
    make.make_proposals(records, path, CONFIG)
    assert path.read_bytes() == before
    assert len(in_threads) == 5
    make.make_proposals(records, tmp_path / "new.safetensors", CONFIG)
    assert (tmp_path / "new.safetensors").read_bytes() == before


def test_changed_image_is_done_again(tmp_path, in_threads, caplog):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 3)
    make.make_proposals(records, path, CONFIG)
    shutil.copy(write_pictures(tmp_path, 1, first=9)[0].path, records[1].path)
    make.make_proposals(records, path, CONFIG)
    assert in_threads == ["000", "001", "002", "001"]
    assert "1 images have changed (first: 001)" in caplog.text
    proposals = open_proposals(path, records)
    assert proposals["001"].tolist() == selective_search(picture(9), "001", CONFIG).tolist()
    assert proposals["002"].tolist() == selective_search(picture(2), "002", CONFIG).tolist()


def test_file_of_other_settings_or_opencv_is_left_alone(tmp_path, in_threads, monkeypatch):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 3)
    make.make_proposals(records[:2], path, CONFIG)
    before = path.read_bytes()
    with pytest.raises(
        FastRCNNError, match="p.safetensors: was made with proposals.method = fast, the config says qual"
    ):
        make.make_proposals(records, path, ProposalsConfig(method="quality"))
    with pytest.raises(FastRCNNError, match="lacks 1 images and was made with max_per_image 2000 instead of 10"):
        make.make_proposals(records, path, ProposalsConfig(max_per_image=10))
    monkeypatch.setattr(cv2, "__version__", "99")
    make.make_proposals(records[:2], path, CONFIG)  # complete: nothing to mix
    with pytest.raises(FastRCNNError, match=r"lacks 1 images and was made with opencv .* instead of 99"):
        make.make_proposals(records, path, CONFIG)
    assert path.read_bytes() == before


def test_unfinished_work_is_kept_for_its_own_settings(tmp_path, in_threads, monkeypatch):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 3)
    for config in (CONFIG, ProposalsConfig(max_per_image=5)):
        with monkeypatch.context() as full, pytest.raises(FastRCNNError):
            fail_at(full, "fsync", 2)
            make.make_proposals(records, path, config)
    assert len(journals(path)) == 2
    in_threads.clear()
    make.make_proposals(records, path, CONFIG)
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
            make.make_proposals(records, path, CONFIG)
    assert not path.exists()
    finished = read_journal(journals(path)[0])
    assert len(finished) == min(call, 4)  # what was written before the failing fsync is whole, too
    in_threads.clear()
    make.make_proposals(records, path, CONFIG)
    assert in_threads == [r.id for r in records if r.id not in finished]
    assert set(open_proposals(path, records)) == {r.id for r in records}


def test_a_journal_line_gives_the_image_back(tmp_path):
    boxes = np.arange(8, dtype=np.int32).reshape(2, 4)
    images = (
        make.SearchedImage("i\udce9", bytes(range(16)), (9, 8), boxes),
        make.SearchedImage("", bytes(16), (1, 1), boxes[:0]),
    )
    for made in images:
        (tmp_path / "j").unlink(missing_ok=True)
        with Journal(tmp_path / "j", {}, unfinished._encode, unfinished._decode) as journal:
            journal.append(made)
        (read,) = Journal(tmp_path / "j", {}, unfinished._encode, unfinished._decode).items
        assert (read.id, read.digest, read.size) == (made.id, made.digest, made.size)
        assert read.boxes.dtype == np.int16 and read.boxes.tolist() == made.boxes.tolist()


def test_unreadable_image_does_not_stop_the_others(tmp_path, in_threads):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 4)
    good = records[1].path.read_bytes()
    records[1].path.write_bytes(good[: len(good) // 2])
    records[2].path.rename(tmp_path / "gone.png")
    with pytest.raises(FastRCNNError, match=r"00[12].png: .*\(2 of 4 images failed, the others are kept"):
        make.make_proposals(records, path, CONFIG)
    records[1].path.write_bytes(good)
    (tmp_path / "gone.png").rename(records[2].path)
    in_threads.clear()
    make.make_proposals(records, path, CONFIG)
    assert in_threads == ["001", "002"]


def test_ids_that_stand_for_two_images_are_refused(tmp_path, in_threads):
    for name in "ab":
        (tmp_path / name).mkdir()
    records = write_pictures(tmp_path / "a", 1)
    make.make_proposals(records + records, tmp_path / "p.safetensors", CONFIG)  # the same image in two sets
    assert in_threads == ["000"]
    with pytest.raises(FastRCNNError, match=r"image id 000 stands for .*a/000.png and for .*b/000.png"):
        make.make_proposals(records + write_pictures(tmp_path / "b", 1), tmp_path / "p.safetensors", CONFIG)


def test_bad_arguments(tmp_path):
    with pytest.raises(FastRCNNError, match=r"p.npz: .*\.safetensors"):
        make.make_proposals([], tmp_path / "p.npz", CONFIG)
    with pytest.raises(FastRCNNError, match="processes is 0"):
        make.make_proposals([], tmp_path / "p.safetensors", CONFIG, processes=0)


def test_second_run_on_the_same_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    records = write_pictures(tmp_path, 1)
    with (
        lock(tmp_path / ".p.safetensors.lock", "the proposals file"),
        pytest.raises(FastRCNNError, match="the proposals file p.safetensors is in use by another process"),
    ):
        make.make_proposals(records, path, CONFIG)
    assert not path.exists()


# ---- parts


def parts_of(total):
    return [Part(number, total) for number in range(1, total + 1)]


@pytest.mark.parametrize("lost", [(), (2,), (1, 3)])
def test_joined_parts_are_the_file_of_one_run(tmp_path, in_threads, lost):
    records = write_pictures(tmp_path, 5)
    path, whole = tmp_path / "p.safetensors", tmp_path / "whole.safetensors"
    for part in reversed(parts_of(3)):
        if part.number not in lost:
            images, searched = make.make_part(records, path, CONFIG, part)
            assert images == searched == len(range(part.number - 1, 5, 3))
    assert len(journals(path)) == 3 - len(lost) and not path.exists()
    done = list(in_threads)
    make.make_proposals(records, path, CONFIG)
    assert sorted(in_threads) == [r.id for r in records] and in_threads[: len(done)] == done
    make.make_proposals(records, whole, CONFIG)
    assert path.read_bytes() == whole.read_bytes()
    assert {p.name for p in tmp_path.glob("*p.safetensors*")} == {path.name, f".{path.name}.lock"}


def test_a_killed_part_resumes_and_another_number_of_parts_takes_over(tmp_path, in_threads, monkeypatch):
    records = write_pictures(tmp_path, 8)
    path = tmp_path / "p.safetensors"
    with monkeypatch.context() as full, pytest.raises(FastRCNNError, match="cannot be written"):
        fail_at(full, "fsync", 2)
        make.make_part(records, path, CONFIG, Part(1, 2))
    in_threads.clear()
    assert make.make_part(records, path, CONFIG, Part(1, 2)) == (4, 2)  # of 0, 2, 4, 6
    assert make.make_part(records, path, CONFIG, Part(1, 2)) == (4, 0)
    for part, searched in zip(parts_of(3), (1, 2, 1), strict=True):  # of 0, 3, 6; of 1, 4, 7; of 2, 5
        assert make.make_part(records, path, CONFIG, part)[1] == searched
    make.make_proposals(records, path, CONFIG)
    assert in_threads == ["004", "006", "003", "001", "007", "005"]
    make.make_proposals(records, tmp_path / "whole.safetensors", CONFIG)
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_parts_go_on_from_a_finished_file_and_an_unfinished_run(tmp_path, in_threads, monkeypatch):
    records = write_pictures(tmp_path, 6)
    path = tmp_path / "p.safetensors"
    make.make_proposals(records[:2], path, CONFIG)
    with monkeypatch.context() as full, pytest.raises(FastRCNNError):
        fail_at(full, "fsync", 1)
        make.make_proposals(records, path, CONFIG)  # which finishes one
    shutil.copy(write_pictures(tmp_path, 1, first=9)[0].path, records[1].path)
    assert [make.make_part(records, path, CONFIG, part) for part in parts_of(2)] == [(3, 1), (3, 3)]
    assert len(read_stored(path).ids) == 2  # as it was
    in_threads.clear()
    make.make_proposals(records, path, CONFIG)
    assert not in_threads and len(read_stored(path).ids) == 6
    with pytest.raises(FastRCNNError, match="made with proposals.method = fast, the config says quality"):
        make.make_part(records, path, ProposalsConfig(method="quality"), Part(1, 2))


def test_parts_of_other_settings_are_told_of_and_stay(tmp_path, in_threads, caplog):
    records = write_pictures(tmp_path, 4)
    path = tmp_path / "p.safetensors"
    for part in parts_of(2):
        make.make_part(records, path, ProposalsConfig(max_per_image=5), part)
    theirs = journals(path)
    assert not caplog.records
    make.make_proposals(records, path, CONFIG)
    (said,) = caplog.messages
    assert "partial: unfinished work with max_per_image 5 instead of 2000 is not used; start with its settings" in said
    assert all(journal.match(said.split(": ")[0]) for journal in theirs)
    assert len(in_threads) == 8 and sorted(journals(path)) == sorted(theirs)
    theirs[0].write_bytes(b"[1, cut")
    make.make_proposals(records + write_pictures(tmp_path, 1, first=9), path, CONFIG)
    assert "partial: unfinished work with other settings is not used" in caplog.text


def test_parts_of_another_opencv_do_not_get_into_a_file(tmp_path, in_threads, monkeypatch):
    records = write_pictures(tmp_path, 3)
    path = tmp_path / "p.safetensors"
    with monkeypatch.context() as other:
        other.setattr(cv2, "__version__", "99")
        make.make_part(records, path, CONFIG, Part(1, 1))
    make.make_proposals(records[:2], path, CONFIG)
    before = path.read_bytes()
    monkeypatch.setattr(cv2, "__version__", "99")
    with pytest.raises(FastRCNNError, match=r"lacks 1 images and was made with opencv .* instead of 99"):
        make.make_proposals(records, path, CONFIG)
    make.make_proposals(records[:2], path, CONFIG)
    assert make.make_part(records[:2], path, CONFIG, Part(1, 2)) == (1, 0)
    assert path.read_bytes() == before and len(journals(path)) == 1


def test_a_part_at_work_is_left_alone(tmp_path, in_threads):
    records = write_pictures(tmp_path, 3)
    path = tmp_path / "p.safetensors"
    make.make_part(records, path, CONFIG, Part(2, 3))
    with Unfinished(path, CONFIG).lock(Part(2, 3)):
        busy = "part 2/3 of the proposals file p.safetensors is in use by another process"
        with pytest.raises(FastRCNNError, match=busy):
            make.make_part(records, path, CONFIG, Part(2, 3))
        with pytest.raises(FastRCNNError, match=busy):
            make.make_proposals(records, path, CONFIG)
        make.make_part(records, path, CONFIG, Part(1, 3))
    make.make_proposals(records, path, CONFIG)
    assert in_threads == ["001", "000", "002"]


def test_a_part_keeps_its_other_images_when_one_cannot_be_read(tmp_path, in_threads):
    records = write_pictures(tmp_path, 4)
    records[2].path.write_bytes(b"")
    with pytest.raises(make.ImagesFailedError, match=r"002.png: .*\(1 of 2 images failed, the others are kept"):
        make.make_part(records, tmp_path / "p.safetensors", CONFIG, Part(1, 2))
    assert len(Unfinished(tmp_path / "p.safetensors", CONFIG).journal(Part(1, 2)).items) == 1


@pytest.mark.parametrize("text", ["9/8", "0/8", "3/0", "x", "", "1/", "-1/8", "1/8/2", "1.0/2", "1/" + 5000 * "9"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(FastRCNNError, match="is none; of 8 parts, the first is 1/8 and the last 8/8"):
        Part.parse(text)


def test_parts_have_each_image_once():
    for total in (1, 3, 8):
        shares = [Part.parse(f"{number}/{total}").of(range(7)) for number in range(1, total + 1)]
        assert sorted(i for share in shares for i in share) == list(range(7))


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
    make.make_proposals(records, path, CONFIG)
    assert len(in_threads) == 24 - second
    make.make_proposals(records, tmp_path / "unbroken.safetensors", CONFIG)
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
    monkeypatch.setattr(sys, "argv", ["proposals.py", str(config), "data.limit=2", "--processes", "1"])
    runpy.run_path(str(TOOL))["main"]()
    assert in_threads == ["000", "001"]
    lines = capsys.readouterr().out.splitlines()
    covered = "recall of 2 objects 1.000 at IoU 0.5, 1.000 at IoU 0.7, average recall 1.000 (0 difficult ones left out)"
    for line, key in zip(lines, ("data.train.0", "data.test.0"), strict=False):
        assert line.startswith(f"{key} ({tmp_path}/images): {tmp_path}/p.safetensors: ")
        assert line.endswith(f" boxes an image in 2 images; {covered}")
    assert lines[2].endswith(
        "own.json: 1 boxes an image in 2 images; recall of 2 objects 1.000 at IoU 0.5, 0.000 at IoU 0.7, "
        "average recall 0.200 (0 difficult ones left out)"
    )
    config.write_text("classes: [box]\ndata: {train: [{format: folder, root: x}], test: []}\n")
    with pytest.raises(FastRCNNError, match=r"data.train.0.proposals is not set"):
        runpy.run_path(str(TOOL))["main"]()


def test_tool_makes_one_part_and_says_how_to_join(tmp_path, in_threads, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    write_data_set(tmp_path / "images", 3, width=60, height=40)
    config = tmp_path / "c.yaml"
    data = f"[{{format: folder, root: {tmp_path}/images, proposals: {tmp_path}/p.safetensors}}]"
    config.write_text(f"classes: [box]\ndata: {{train: {data}, test: {data}}}\n")
    monkeypatch.syspath_prepend(TOOL.parent)
    command = ["proposals.py", str(config), "data.workers=0", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--part", "1/2"])
    main = runpy.run_path(str(TOOL))["main"]
    main()
    assert in_threads == ["000", "002"]
    done, join, again = capsys.readouterr().out.splitlines()
    assert done == f"{tmp_path}/p.safetensors: part 1/2 is done: 2 images, 2 of them searched now"
    assert join.startswith("when all 2 parts are done, join them")
    assert again.endswith(f"proposals.py {config} data.workers=0")
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert in_threads == ["000", "002", "001"] and capsys.readouterr().out.count("in 3 images") == 2
    monkeypatch.setattr(sys, "argv", [*command, "--part", "3/2"])
    with pytest.raises(FastRCNNError, match="part 3/2: is none"):
        main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main()
    assert "--part: torchrun makes the parts itself" in capsys.readouterr().err
