"""Kills, full disks, folders that cannot be written, two runs at once, Ctrl-C: nothing that was finished is lost."""

import contextlib
import functools
import io
import json
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from soak import CHECKPOINT, finish, kill_and_resume, on_call, on_time, start

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors
from fastrcnn.model.weights import build, save_weights
from fastrcnn.train import step
from fastrcnn.train.checkpoint import checkpoints
from fastrcnn.train.loop import train


@pytest.fixture
def folder(tree, tmp_path):
    """A user's folder: run.yaml, whose output is `run`, and the weights of an untrained network."""
    tree["output"] = "run"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    config = configs.from_dict(tree)
    statistics = TargetStatistics(torch.zeros(6, 4), torch.ones(6, 4))
    save_weights(tmp_path / "model.safetensors", build(config), config, statistics)
    return tmp_path


def begin(tool, *args, cwd, changes=()):
    return start(tool, *args, cwd=cwd, log=cwd / f"{tool}.log", changes=changes)


def run(tool, *args, cwd, code=0, changes=()):
    """What a tool prints; it must end with this exit code, and an error must be one sentence."""
    found = finish(begin(tool, *args, cwd=cwd, changes=changes))
    text = (cwd / f"{tool}.log").read_text()
    assert found == code, text
    assert "Traceback" not in text and "Logging error" not in text, text
    return text


def wait_until(condition, process):
    end = time.monotonic() + 240
    while not condition():
        assert process.exitcode is None and time.monotonic() < end
        time.sleep(0.01)


def same_weights(a: Path, b: Path) -> bool:
    first, second = read_tensors(a)[0], read_tensors(b)[0]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- what is done to a tool's process before it starts


def die_alone():
    """SIGKILL to this process and to no other of its group."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_as_worker():
    if torch.utils.data.get_worker_info() is not None:
        die_alone()


def slow(name, seconds):
    """Every call of a function takes this much longer."""
    for number in range(1, 100):
        on_call(name, number, "before", act=functools.partial(time.sleep, seconds))


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def read_only(folder):
    """The system refuses to make files in a folder, as it does to a user who is not root."""

    def refusing(original, makes):
        def opened(path, how="r", *args, **kwargs):
            if makes(how) and not isinstance(path, int) and Path(os.fsdecode(path)).parent == folder:
                raise PermissionError(13, "Permission denied")
            return original(path, how, *args, **kwargs)

        return opened

    os.open = refusing(os.open, lambda flags: flags & os.O_CREAT)
    io.open = refusing(io.open, lambda mode: mode[0] in "wax")
    if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10: pathlib took io.open when it was imported
        pathlib._NormalAccessor.open = staticmethod(io.open)


# ---- SIGKILL


def test_a_run_killed_anywhere_and_resumed_has_the_weights_of_an_unbroken_one(tree, tmp_path):
    """`make soak` does this 50 times."""
    rename = functools.partial(on_call, "pathlib:Path.replace", 1, names=CHECKPOINT)
    kills = [
        ("before the rename of a checkpoint", functools.partial(rename, when="before")),
        ("after the rename of a checkpoint", functools.partial(rename, when="after")),
        ("at random", functools.partial(on_time, random.uniform(0, 3))),
    ]
    assert kill_and_resume(tree, tmp_path, kills, workers=(0, 1, 2)) >= 2


def test_a_run_whose_main_process_alone_was_killed_leaves_no_lock(folder):
    """Loader processes live on for seconds; they must not hold what the next run needs."""
    change = functools.partial(on_call, "fastrcnn.train.progress:save_checkpoint", 1, "after", act=die_alone)
    args = ("run.yaml", "data.workers=2")
    assert finish(begin("train", *args, cwd=folder, changes=[change])) == -signal.SIGKILL
    run("train", *args, "--resume", cwd=folder)
    run("train", "run.yaml", "output=unbroken", cwd=folder)
    assert same_weights(folder / "run/model.safetensors", folder / "unbroken/model.safetensors")


def test_a_loader_process_that_is_killed_is_an_error_and_no_loss(folder):
    """The system kills so for lack of memory. The main process reads 8 images for the start of fc6 and fc7 first."""
    change = functools.partial(on_call, "fastrcnn.data.loader:read_image", 8 + 10, "before", act=die_as_worker)
    found = run("train", "run.yaml", "data.workers=1", cwd=folder, code=1, changes=[change])
    assert "error: data.workers: DataLoader worker" in found and "data.workers=0" in found
    assert [p.name for p in checkpoints(folder / "run")] == ["checkpoint_00000003.safetensors"]
    run("train", "run.yaml", "--resume", cwd=folder)
    run("train", "run.yaml", "output=unbroken", cwd=folder)
    assert same_weights(folder / "run/model.safetensors", folder / "unbroken/model.safetensors")


def test_what_a_killed_save_left_over_is_removed(tree, tmp_path):
    config = configs.from_dict(tree)
    train(config)
    left = tmp_path / "run/.checkpoint_00000009.safetensors.abc.tmp"
    left.write_bytes(b"half")
    train(config, resume=True)
    assert not left.exists() and len(checkpoints(tmp_path / "run")) == 2


# ---- the disk


def test_a_full_disk_while_saving_a_checkpoint(folder):
    run("train", "run.yaml", "solver.max_iterations=3", cwd=folder)
    before = checkpoints(folder / "run")
    size = before[0].stat().st_size
    change = functools.partial(limit_file_size, size // 2)
    found = run("train", "run.yaml", "--resume", cwd=folder, code=1, changes=[change])
    assert "checkpoint_00000006.safetensors: cannot be written: File too large" in found
    assert checkpoints(folder / "run") == before and not [*(folder / "run").glob(".*.tmp")]
    run("train", "run.yaml", "--resume", cwd=folder)
    run("train", "run.yaml", "output=unbroken", cwd=folder)
    assert same_weights(folder / "run/model.safetensors", folder / "unbroken/model.safetensors")


WRITERS = [
    ("train", ["run.yaml", "output={}"]),
    ("test", ["run.yaml", "model.safetensors", "--output", "{}"]),
    ("detect", ["model.safetensors", "{images}", "--proposals", "{proposals}", "--output", "{}"]),
    ("compress", ["model.safetensors", "{}/small.safetensors", "--fc6", "4", "--fc7", "4"]),
    ("proposals", ["run.yaml", "data.train.0.proposals={}/p.safetensors", "data.test.0.proposals={}/p.safetensors"]),
]


@pytest.mark.parametrize(("tool", "args"), WRITERS, ids=[tool for tool, _ in WRITERS])
def test_an_output_folder_that_cannot_be_written(folder, shapes, tool, args):
    """Read-only, and below what is no folder at all: one sentence that names it, and nothing changed."""
    (folder / "file").write_text("")
    (folder / "locked").mkdir()
    for output, changes in (("file/out", []), ("locked", [functools.partial(read_only, folder / "locked")])):
        pictures = {"images": shapes / "JPEGImages", "proposals": shapes / "proposals.json"}
        absolute = str(folder / output)
        found = run(tool, *(a.format(absolute, **pictures) for a in args), cwd=folder, code=1, changes=changes)
        assert f"error: {absolute}" in found and "cannot be written" in found
    assert not [*(folder / "locked").iterdir()]


# ---- two at once


def test_two_runs_in_one_folder(folder):
    """The second is refused, the first goes on; a results folder is no other."""
    first = begin("train", "run.yaml", "data.workers=1", cwd=folder)
    wait_until((folder / "run/config.yaml").exists, first)
    os.killpg(first.pid, signal.SIGSTOP)
    shutil.copy(folder / "train.log", folder / "first.log")
    second = finish(start("train", "run.yaml", "--resume", cwd=folder, log=folder / "second.log"))
    os.killpg(first.pid, signal.SIGCONT)
    assert second == 1 and "the run is in use by another process" in (folder / "second.log").read_text()
    assert finish(first) == 0 and (folder / "run/model.safetensors").exists()


def test_two_evaluations_into_one_folder(folder):
    args = ("run.yaml", "model.safetensors", "--output", "results")
    first = begin("test", *args, cwd=folder, changes=[functools.partial(slow, DETECT, 0.2)])
    wait_until((folder / "results/detections.partial.jsonl").exists, first)
    os.killpg(first.pid, signal.SIGSTOP)
    second = finish(start("test", *args, cwd=folder, log=folder / "second.log"))
    os.killpg(first.pid, signal.SIGCONT)
    assert second == 1 and "the results folder is in use by another process" in (folder / "second.log").read_text()
    assert finish(first) == 0 and (folder / "results/results.json").exists()


def with_own_proposals(folder):
    return [f"data.{part}.0.proposals={folder}/own.safetensors" for part in ("train", "test")]


def test_two_runs_of_the_proposals_tool_on_one_file(folder):
    args = ("run.yaml", *with_own_proposals(folder), "data.limit=1")
    first = begin("proposals", *args, cwd=folder)
    wait_until(lambda: [*folder.glob("own.safetensors.*.partial")], first)
    os.killpg(first.pid, signal.SIGSTOP)
    second = finish(start("proposals", *args, cwd=folder, log=folder / "second.log"))
    os.killpg(first.pid, signal.SIGCONT)
    assert second == 1
    assert "the proposals file own.safetensors is in use by another process" in (folder / "second.log").read_text()
    assert finish(first) == 0 and "recall of" in (folder / "proposals.log").read_text()


# ---- Ctrl-C, as a terminal sends it: to all processes of the group

DETECT = "fastrcnn.detect.detector:Detector.detect"


def interrupt(tool, *args, cwd, when, changes=()):
    """Start a tool, press Ctrl-C as soon as `when` holds; returns what it printed."""
    process = begin(tool, *args, cwd=cwd, changes=changes)
    wait_until(when, process)
    os.killpg(process.pid, signal.SIGINT)
    code, text = finish(process), (cwd / f"{tool}.log").read_text()
    assert code == 130 and "Traceback" not in text, text
    return text


def test_ctrl_c_in_an_evaluation_keeps_the_images_done(folder):
    args = ("run.yaml", "model.safetensors", "--output")
    partial = folder / "results/detections.partial.jsonl"
    interrupt(
        "test",
        *args,
        "results",
        cwd=folder,
        changes=[functools.partial(slow, DETECT, 0.3)],
        when=lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 3,
    )
    done = partial.read_bytes().count(b"\n") - 1
    assert f"{done} of 4 images are done already" in run("test", *args, "results", cwd=folder)
    run("test", *args, "unbroken", cwd=folder)
    for name in ("detections.json", "results.json", "table.txt"):
        assert (folder / "results" / name).read_bytes() == (folder / "unbroken" / name).read_bytes()


def test_ctrl_c_while_checking_data(folder):
    log = folder / "check_data.log"
    change = functools.partial(slow, "fastrcnn.data.check_images:read_image", 0.2)
    interrupt("check_data", "run.yaml", cwd=folder, changes=[change], when=lambda: "images:" in log.read_text())


def test_ctrl_c_in_detection_keeps_the_pictures_drawn(folder, shapes):
    args = ("model.safetensors", shapes / "JPEGImages", "--proposals", shapes / "proposals.json", "--output", "found")
    drawn = folder / "found"
    change = functools.partial(slow, DETECT, 0.2)
    interrupt("detect", *args, cwd=folder, changes=[change], when=lambda: [*drawn.glob("*.jpg")])
    assert not [*drawn.glob(".*.tmp")]
    finished = {path.name for path in drawn.glob("*.jpg")}
    assert finished and finished < {path.name for path in (shapes / "JPEGImages").iterdir()}
    told = {Path(image["file"]).name for image in json.loads((drawn / "detections.json").read_text())["images"]}
    assert finished <= told and len(told - finished) <= 2  # the last may be told and not yet drawn


def running(folder):
    """How many processes have this working folder."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += (process / "cwd").readlink() == folder
    return count


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="counts processes under /proc")
def test_ctrl_c_while_proposals_processes_start(folder):
    """They take seconds to start, and a terminal sends Ctrl-C to them too."""
    args = ("run.yaml", *with_own_proposals(folder), "--processes", "2")
    journal = "own.safetensors.*.partial"
    # The tool and both processes, which import for a second before they work.
    started = lambda: [*folder.glob(journal)] and running(folder) >= 3  # noqa: E731
    interrupt("proposals", *args, cwd=folder, when=lambda: started() and not time.sleep(0.1))
    assert not (folder / "own.safetensors").exists()


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="counts processes under /proc")
@pytest.mark.parametrize("images", [0, 2])
def test_ctrl_c_while_processes_search_ahead_of_the_network(folder, shapes, images):
    """While they start, and once they have found something: none stays, none says a word, and the command resumes."""
    args = ("run.yaml", "model.safetensors", "data.test.0.proposals=null", "data.test.0.split=[train, test]")
    args += ("--output", "results")
    partial = folder / "results/detections.partial.jsonl"
    done = lambda: partial.read_bytes().count(b"\n") - 1 if partial.exists() else -1  # noqa: E731
    slowly = functools.partial(slow, DETECT, 0.2)
    text = interrupt(
        "test", *args, cwd=folder, when=lambda: done() >= images and running(folder) >= 2, changes=[slowly]
    )
    assert "searching for the proposals of 12 images while" in text
    end = time.monotonic() + 30
    while running(folder):
        assert time.monotonic() < end
        time.sleep(0.05)
    left = 12 - done()
    assert f"searching for the proposals of {left} images while" in run("test", *args, cwd=folder)


@pytest.mark.parametrize("wait", [0.1, 0.8])
def test_ctrl_c_while_spawned_loader_processes_start(folder, wait):
    """As on Windows and macOS: they import for a second or more, and leave no traceback. Training then resumes."""
    begun = folder / "begun"
    # The first loader reads a few images for the start of fc6 and fc7, in the main process.
    mark = functools.partial(on_call, "fastrcnn.data.loader:DataLoader.__iter__", 2, "after", act=begun.touch)
    spawn = functools.partial(multiprocessing.set_start_method, "spawn", force=True)
    longer = "solver.max_iterations=60"  # than the processes need to start
    args = ("run.yaml", "data.workers=2", longer)
    interrupt("train", *args, cwd=folder, when=lambda: begun.exists() and not time.sleep(wait), changes=[spawn, mark])
    run("train", *args, "--resume", cwd=folder, changes=[spawn])
    run("train", "run.yaml", "output=unbroken", longer, cwd=folder)
    assert same_weights(folder / "run/model.safetensors", folder / "unbroken/model.safetensors")


def test_ctrl_c_while_features_are_computed_keeps_those_that_are_finished(folder, tree):
    cached = {**tree, "cache_features": True, "feature_cache": "features", "output": "cached"}
    (folder / "cached.yaml").write_text(yaml.safe_dump(cached))
    change = functools.partial(slow, "fastrcnn.model.fast_rcnn:FastRCNN.frozen_features", 0.2)
    stored = lambda: [*(folder / "features").rglob("*.safetensors")]  # noqa: E731
    interrupt("train", "cached.yaml", cwd=folder, changes=[change], when=lambda: len(stored()) >= 3)
    before = {path: path.stat().st_mtime_ns for path in stored()}
    assert 3 <= len(before) < 16 and not [*(folder / "features").rglob("*.tmp")]
    run("train", "cached.yaml", cwd=folder)  # no run was begun: the same command goes on
    assert len(stored()) == 16 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    run("train", "run.yaml", cwd=folder)
    assert same_weights(folder / "cached/model.safetensors", folder / "run/model.safetensors")


def test_ctrl_c_while_compressing_leaves_no_half_file(folder):
    change = functools.partial(slow, "fastrcnn.model.svd:truncated_svd", 1.0)
    args = ("model.safetensors", "small.safetensors", "--fc6", "8", "--fc7", "8")
    mark = functools.partial(on_call, "fastrcnn.compress:load_model", 1, "before", act=(folder / "begun").touch)
    interrupt("compress", *args, cwd=folder, changes=[change, mark], when=(folder / "begun").exists)
    assert not [*folder.glob("*small*")]


@pytest.mark.parametrize(
    ("tool", "args", "sign"),
    [("demo", (), "data/shapes/JPEGImages/*.jpg"), ("bench", ("evaluate",), "bench.log")],
)
def test_ctrl_c_in_the_demo_and_the_bench(tmp_path, tool, args, sign):
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(Path(__file__).parent.parent / name)
    interrupt(tool, *args, cwd=tmp_path, when=lambda: [*tmp_path.glob(sign)] and not time.sleep(1))


# ---- no silent wrongness


@pytest.mark.parametrize(("on_bad_box", "outcome"), [("clip", "clipped"), ("skip", "skipped")])
def test_bad_boxes_that_were_mended_are_listed_at_the_end_of_the_run(
    tree, shapes, tmp_path, caplog, on_bad_box, outcome
):
    own = tmp_path / "own"
    shutil.copytree(shapes, own)
    bad = sorted((own / "Annotations").iterdir())[0]
    text = bad.read_text()
    first = text[text.index("<xmin>") : text.index("</xmin>")]
    bad.write_text(text.replace(first, "<xmin>-5", 1))
    tree["data"]["train"][0] |= {"root": str(own), "proposals": str(own / "proposals.json")}
    tree["solver"]["max_iterations"] = 1
    with pytest.raises(FastRCNNError, match=rf"{bad.name}: object 1: its box \(-5, .*on_bad_box: clip or skip"):
        train(configs.from_dict(tree))

    tree["data"]["on_bad_box"] = on_bad_box
    with caplog.at_level(logging.INFO):
        train(configs.from_dict(tree | {"output": str(tmp_path / on_bad_box)}))
    lines = (tmp_path / on_bad_box / "log.txt").read_text().splitlines()
    assert any(f"{outcome}: {bad}: object 1: its box (-5, " in line for line in lines[-2:])

    caplog.clear()
    tree |= {"output": str(tmp_path / "stopped"), "train": {"eval_every": 1}}
    with pytest.raises(ZeroDivisionError):
        train(configs.from_dict(tree), evaluate=lambda *_: 1 / 0)
    assert f"{outcome}: {bad}: object 1: its box (-5, " in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_too_full_for_the_log_ends_the_log_only(tree, tmp_path, caplog, capfd):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").symlink_to("/dev/full")
    assert train(configs.from_dict(tree)).exists()
    assert "log.txt: cannot be written any more" in caplog.text and "Traceback" not in capfd.readouterr().err


def test_training_itself_does_the_cheap_part_of_check_data(tree, caplog):
    tree["classes"].append("zebra")
    tree["solver"]["max_iterations"] = 1
    train(configs.from_dict(tree))
    assert "holds no object of class 'zebra'" in caplog.text


def test_training_refuses_proposals_made_from_images_of_another_size(tree, shapes, tmp_path):
    from test_proposals import stored, write_stored

    from fastrcnn.data.image_set import open_data

    images = open_data(tree_config(tree).data.train, tree_config(tree))
    records = images.records
    sizes = [[r.width, r.height] for r in records]
    sizes[2] = [sizes[2][0] // 2, sizes[2][1] // 2]
    path = tmp_path / "own.safetensors"
    write_stored(path, stored(images.ids, [boxes for _, boxes in images], sizes))
    tree["data"]["train"][0]["proposals"] = str(path)
    with pytest.raises(FastRCNNError, match=f"own.safetensors: image {records[2].id}: proposals were made from"):
        train(tree_config(tree))


def tree_config(tree):
    return configs.from_dict(tree)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(tree, tmp_path, monkeypatch):
    def poisoned(model):
        model.fc6.weight.grad[0, 0] = float("inf")
        return original(model)

    original = step.gradient_norm
    monkeypatch.setattr(step, "gradient_norm", poisoned)
    before = build(tree_config(tree)).fc7.weight.clone()
    seen = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: seen.append(before))
    with pytest.raises(FastRCNNError, match=r"iteration 0: gradient_norm is (inf|nan) on images \d+, \d+"):
        train(tree_config(tree))
    assert not seen


def test_evaluation_warns_of_a_class_without_objects(folder, tree):
    """AP is NaN, stands in no mean, and the table says so."""
    tree["classes"].append("zebra")
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config = configs.from_dict(tree)
    statistics = TargetStatistics(torch.zeros(7, 4), torch.ones(7, 4))
    save_weights(folder / "model.safetensors", build(config), config, statistics)
    text = run("test", "run.yaml", "model.safetensors", "--output", "results", cwd=folder)
    assert "no objects to find of" in text and "left out of the mean, having no objects:" in text
    numbers = json.loads((folder / "results/results.json").read_text())
    assert numbers["ap"]["zebra"] is None and sys.float_info.min <= numbers["map"] + 1


def test_saved_detections_of_another_class_list_are_refused(folder):
    run("test", "run.yaml", "model.safetensors", "--output", "results", cwd=folder)
    saved = folder / "results/detections.json"
    saved.write_text(saved.read_text().replace("disc", "ring"))
    found = run("test", "run.yaml", saved, "--output", "again", cwd=folder, code=1)
    assert "error: the detections have the classes ring, " in found
