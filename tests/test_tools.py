"""Every tool as its user runs it, end to end on a small made set."""

import json
import os
import platform
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fastrcnn import config_files
from fastrcnn.data.shapes import CLASSES, make_shapes
from fastrcnn.evaluate import detect_set
from fastrcnn.files import read_tensors
from fastrcnn.journal import Journal

REPO = Path(__file__).parent.parent
TOOLS = (
    "proposals",
    "check_data",
    "train",
    "test",
    "svms",
    "compress",
    "summary",
    "detect",
    "export",
    "compare",
    "convert",
    "import_weights",
    "configs",
    "paper",
    "bench",
    "demo",
)


def run(tool, *args, cwd, code=0):
    command = [sys.executable, str(REPO / "tools" / f"{tool}.py"), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-3000:]
    if code:
        assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A user's folder: a made set, a configuration, proposals found and a short training done."""
    folder = tmp_path_factory.mktemp("user")
    make_shapes(folder / "data", train=6, test=3, seed=11)

    def dataset(split):
        return {"root": "data", "split": split, "proposals": "data/proposals.safetensors"}

    tree = {
        "classes": list(CLASSES),
        "data": {"train": [dataset("train")], "test": [dataset("test")]},
        "image": {"train_short_side": [96], "test_short_side": [96]},
        "model": {"backbone": "tiny", "weights": "", "freeze_up_to": "", "fc_width": 32, "dropout": 0.0},
        "solver": {"lr": 0.01, "max_iterations": 6},
        "train": {"log_every": 2},
        "output": "runs/small",
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    found = run("proposals", "small.yaml", cwd=folder).stdout
    assert found.count("recall of") == 2 and "at IoU 0.5" in found and "at IoU 0.7" in found
    run("train", "small.yaml", "--eval-every", "3", cwd=folder)
    return folder


def test_help_needs_no_torch(tmp_path):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(REPO / "tools")!r})
for tool in {TOOLS}:
    sys.argv = [tool, "--help"]
    try:
        runpy.run_path({str(REPO / "tools")!r} + f"/{{tool}}.py", run_name="__main__")
    except SystemExit as e:
        assert not e.code, tool
    assert "torch" not in sys.modules and "cv2" not in sys.modules, tool
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("usage:") == len(TOOLS), done.stderr


def test_training_leaves_a_run_folder(workspace):
    folder = workspace / "runs/small"
    assert {"config.yaml", "log.txt", "metrics.jsonl", "losses.png", "model.safetensors"} <= {
        p.name for p in folder.iterdir()
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "map" in line] == [3, 6]
    best = next(line for line in reversed(lines) if "map" in line)["best_iteration"]
    assert read_tensors(folder / "best.safetensors")[1]["training"]["iteration"] == best
    assert {"results.json", "detections.json"} <= {p.name for p in (folder / "evaluation").iterdir()}
    again = run("train", "small.yaml", cwd=workspace, code=1)
    assert "runs/small: holds a run already; add --resume" in again.stderr
    longer = run("train", "small.yaml", "--resume", "solver.max_iterations=8", cwd=workspace)
    assert "resuming from iteration 6" in longer.stderr


def test_evaluation_and_scoring_again(workspace):
    found = run("test", "small.yaml", "runs/small/model.safetensors", "--coco", cwd=workspace).stdout
    assert all(name in found for name in (*CLASSES, "mean of", "COCO: AP"))
    results = workspace / "runs/small/results"
    numbers = json.loads((results / "results.json").read_text())
    assert set(numbers["ap"]) == set(CLASSES) and (results / "precision_recall.png").exists()
    assert {p.name for p in (results / "voc").iterdir()} == {f"comp4_det_test_{name}.txt" for name in CLASSES}
    again = run("test", "small.yaml", results / "detections.json", "--output", "again", "--coco", cwd=workspace).stdout
    assert again == found
    rescored = json.loads((workspace / "again/results.json").read_text())
    assert numbers.pop("detections") == "detections.json" and Path(rescored.pop("detections")).exists()
    assert rescored == numbers and numbers["trained"]["solver"]["max_iterations"] in (6, 8)
    compared = run("compare", "runs/small", "again", "--html", "pages/a.html", cwd=workspace).stdout
    assert "B and A are equal" in compared and (workspace / "pages/a.html").exists()


def test_evaluation_goes_on_after_a_kill(workspace, monkeypatch):
    """Two images done, the second's line cut: the first is taken over, the result is the same."""
    weights = "runs/small/model.safetensors"
    run("test", "small.yaml", weights, "--output", "whole", cwd=workspace)
    monkeypatch.chdir(workspace)  # paths in the configuration are relative
    config = config_files.load("small.yaml")
    seen = detect_set.Pass(with_recall=False)
    images = seen.open(config)
    key = detect_set.detection_key(config, Path(weights), seen.digest)
    marker = {"id": images.ids[0], "classes": [CLASSES[0]], "scores": [0.5], "boxes": [[1, 2, 30, 40]]}
    partial = workspace / "killed/detections.partial.jsonl"
    with Journal(partial, key, list, list) as journal:
        journal.append([marker, None, None])
        journal.append([marker, None, None])
    partial.write_bytes(partial.read_bytes()[:-30])
    done = run("test", "small.yaml", weights, "--output", "killed", cwd=workspace)
    assert "1 of 3 images are done already" in done.stderr and not partial.exists()
    whole, killed = (json.loads((workspace / d / "detections.json").read_text())["images"] for d in ("whole", "killed"))
    assert killed[0]["scores"] == [0.5] and killed[0]["id"] == whole[0]["id"] == images.ids[0]
    assert killed[1:] == whole[1:]


def test_detection_and_compression(workspace):
    done = run("compress", "runs/small/model.safetensors", "small.safetensors", "--fc6", 8, "--fc7", 4, cwd=workspace)
    assert "GFLOP at 2000 RoIs" in done.stdout and "wrote small.safetensors" in done.stdout
    table = run("summary", "small.safetensors", "--rois", 100, cwd=workspace).stdout
    assert "with SVD" in table and "conv3_2 128 x 12 x 16 8 3 51 147,584" in " ".join(table.split())
    table = run("summary", "small.yaml", "model.pool_size=4", "--rois", 100, cwd=workspace).stdout
    assert "conv3_2" in table and "with SVD" not in table
    (workspace / "pictures").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)).save(
        workspace / "pictures/grey.png"
    )
    first = sorted((workspace / "data/JPEGImages").iterdir())[0]
    (workspace / "pictures/broken.jpg").write_bytes(first.read_bytes()[:2000])
    done = run("detect", "small.safetensors", first, "pictures", "--score", "0", "--output", "found", cwd=workspace)
    assert "pictures/broken.jpg" in done.stderr and "cut short" in done.stderr
    found = json.loads((workspace / "found/detections.json").read_text())
    assert [Path(image["file"]).name for image in found["images"]] == [first.name, "grey.png"]
    assert found["images"][1]["width"] == 80 and found["classes"] == list(CLASSES)
    assert (workspace / f"found/{first.stem}.jpg").exists() and (workspace / "found/grey.jpg").exists()
    stored = run(
        "detect",
        "small.safetensors",
        first,
        "--proposals",
        "data/proposals.safetensors",
        "--output",
        "b",
        cwd=workspace,
    )
    assert "all detections of 1 pictures" in stored.stdout
    both = run("detect", "small.safetensors", first, "--proposals", "x", "--search", "fast", cwd=workspace, code=2)
    assert "--search and --proposals exclude each other" in both.stderr
    run("detect", "small.safetensors", first, "--search", "fastest", "--score", "0", "--output", "c", cwd=workspace)
    cheap = json.loads((workspace / "c/detections.json").read_text())
    assert cheap["images"][0]["boxes"] != found["images"][0]["boxes"]


def test_conversion_to_another_format(workspace):
    done = run("convert", "small.yaml", "--to", "yolo", "yolo", "data.limit=2", cwd=workspace)
    assert "train: 2 images" in done.stdout and "format: yolo, root: yolo, split: test" in done.stdout
    again = run("convert", "small.yaml", "yolo", "--to", "coco", cwd=workspace, code=1)
    assert "error: yolo: is there and not empty" in again.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("train", "absent.yaml"), "absent.yaml: no such configuration file"),
        (("train", "small.yaml", "solver.lrr=1"), "unknown key solver.lrr; the nearest valid key is solver.lr"),
        (("train", "small.yaml", "output=x", "data.train.0.split=nope"), "ImageSets/Main/nope.txt: no such list"),
        (("train", "small.yaml", "output=x", "classes=[disc]"), "is not in classes"),
        (("train", "small.yaml", "output=x", "data.train.0.proposals=p.mat"), "p.mat: no such proposals file"),
        (("train", "small.yaml", "output=x", "device=tpu9"), "device: 'tpu9'"),
        (
            ("test", "small.yaml", "runs/small/model.safetensors", "classes.0=ring", "data.on_unknown_class=ignore"),
            "was trained for the classes",
        ),
        (("test", "small.yaml", "small.yaml"), "small.yaml: is not a whole safetensors file"),
        (
            ("test", "small.yaml", "data/proposals.safetensors"),
            "holds proposals; name a weights file of tools/train.py",
        ),
        (("detect", "nothing.safetensors", "data"), "nothing.safetensors: no such file"),
        (("detect", "runs/small/model.safetensors", "nowhere"), "nowhere: no such picture or folder"),
        (("compress", "runs/small/model.safetensors", "x.safetensors", "--fc6", "9999"), "fc6: rank 9999"),
    ],
)
def test_wrong_input_is_one_sentence_with_exit_code_1(workspace, args, words, monkeypatch, capsys):
    """In this process, as importing torch for each would take most of the time."""
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    monkeypatch.setattr(sys, "argv", list(args))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPO / "tools" / f"{args[0]}.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, before)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 1 and len(errors) == 1 and words in errors[0]


def test_ctrl_c_stops_training_in_order(workspace):
    command = [
        sys.executable,
        str(REPO / "tools/train.py"),
        "small.yaml",
        "output=runs/stopped",
        "solver.max_iterations=100000",
    ]
    process = subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE, text=True)
    metrics = workspace / "runs/stopped/metrics.jsonl"
    until = time.monotonic() + 120
    while (not metrics.exists() or not metrics.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    assert list((workspace / "runs/stopped").glob("checkpoint_*.safetensors"))


def test_proposals_of_a_training_set_without_objects_are_not_searched(workspace):
    names = ("classes=[unicorn]", "data.on_unknown_class=ignore", "data.train.0.proposals=none.safetensors")
    said = run("proposals", "small.yaml", *names, cwd=workspace, code=1).stderr
    assert "data.train: holds no object of any class" in said and "nearest to" in said
    assert not (workspace / "none.safetensors").exists()


FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
import resource
import numpy as np
from _common import keep_memory
if sys.argv[2] == "keep":
    keep_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**24, np.uint8).fill(1)
    np.empty(2**26, np.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this switch")
def test_kept_memory_is_not_asked_for_again():
    def pages(how):
        words = [sys.executable, "-c", FRESH, str(REPO / "tools"), how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert pages("keep") * 10 < pages("give back")


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "9"}, "9"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_wait_asleep_unless_the_user_says_otherwise(given, spins):
    """How much that gives beside another program is in the experiment log."""
    code = "import os, sys; sys.path.insert(0, sys.argv[1]); import _common; print(os.environ.get('GOMP_SPINCOUNT'))"
    free = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", code, str(REPO / "tools")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=free | given)
    assert done.stdout.strip() == spins
