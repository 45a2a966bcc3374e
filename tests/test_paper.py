"""configs/paper/: a file for each row of the paper's tables, with the paper's number and commands that parse."""

import json
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path

import pytest
from test_readme import REPO, TOOLS, parse

from fastrcnn import config as configs
from fastrcnn.config_files import load

PAPER = sorted((REPO / "configs/paper").glob("*.yaml"))
# arXiv 1504.08083, in per cent. Rows that are one run stand under the first of their tables.
NUMBERS = {
    "table 1": {
        "FRCN 07": 66.9,
        "FRCN 07\\diff": 68.1,
        "FRCN 07+12": 70.0,
        "R-CNN BB, 07": 66.0,
        "SPPnet BB, 07\\diff": 63.1,
    },
    "table 2": {"FRCN 12": 66.1, "FRCN 07++12": 68.8},
    "table 3": {"FRCN 12": 65.7, "FRCN 07++12": 68.4},
    "table 4": {
        "Fast R-CNN S": 57.1,
        "Fast R-CNN M": 59.2,
        "Fast R-CNN S with SVD": 56.5,
        "Fast R-CNN M with SVD": 58.7,
        "Fast R-CNN L with SVD": 66.6,
    },
    "table 5": {"layers from fc6 on": 61.4, "layers from conv2_1 on": 67.2},
    "table 6": {
        "S, classification only": 52.2,
        "M, classification only": 54.7,
        "L, classification only": 62.6,
        **{f"{m}, multi-task, no regression at test": n for m, n in (("S", 53.3), ("M", 55.5), ("L", 63.4))},
        "S, stage-wise": 54.6,
        "M, stage-wise": 56.6,
        "L, stage-wise": 64.0,
    },
    "table 7": {"S, five scales": 58.4, "M, five scales": 60.7},
    "table 8": {"S, SVMs": 56.3, "M, SVMs": 58.7, "L, SVMs": 66.8},
    "figure 3": {
        "dense boxes alone": 52.9,
        "dense boxes alone, SVMs": 49.3,
        "nearest dense boxes": 57.7,
        "45 x 1000 dense boxes added": 53.0,
        "selective search at 1k to 10k boxes": None,
    },
    "section 5.6": {"COCO, AP at IoU 0.5": 35.9},
}


def header(path: Path) -> list[str]:
    return [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]


def test_each_row_of_the_paper_is_a_file_with_its_number():
    expected = [load(path).expected for path in PAPER]
    found = {(e.source, e.row): e.mAP for e in expected}
    assert len(found) == len(PAPER), "two files are of one row"
    assert found == {(table, row): number for table, rows in NUMBERS.items() for row, number in rows.items()}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_file_is_a_short_diff_with_commands_that_parse(path, monkeypatch):
    monkeypatch.chdir(REPO)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 14 and lines[0].endswith("$schema=../schema.json")
    words = [shlex.split(line.partition(": ")[2]) for line in header(path) if re.match("Command: |then: ", line)]
    assert words and any(f"configs/paper/{path.name}" in command for command in words)
    for command in words:
        assert parse(command, monkeypatch)
        assert command[1] != "tools/train.py" or load(REPO / command[2]).output == f"runs/{Path(command[2]).stem}"


def test_the_guide_has_each_row_with_the_paper_s_number():
    text = (REPO / "configs/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| [^|]+ \| `(paper/[^`]+)` \| ([^|]+) \|", text, re.M))
    wanted = {f"paper/{path.name}": load(path).expected.mAP for path in PAPER}
    assert rows == {name: "a curve" if number is None else f"{number:.1f}" for name, number in wanted.items()}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_training_says_first_what_is_missing(path, monkeypatch, tmp_path):
    """In an empty folder, without fetching anything: weights before data."""
    from fastrcnn.errors import FastRCNNError
    from fastrcnn.train.loop import train

    monkeypatch.chdir(tmp_path)
    config = load(path)
    for dataset in [*config.data.train, *config.data.test]:
        dataset.download = False
    wanted = config.model.weights if "/" in config.model.weights else config.data.train[0].root
    with pytest.raises(FastRCNNError, match=re.escape(wanted)) as raised:
        train(config)
    source = config.data.train[0].source
    assert wanted == config.model.weights or not source or f"it comes from {source}" in str(raised.value)


@pytest.mark.parametrize("path", [*PAPER, *sorted((REPO / "configs").glob("*.yaml"))], ids=lambda path: path.stem)
def test_each_data_set_is_fetched_or_says_where_it_comes_from(path):
    config = load(path)
    for dataset in [*config.data.train, *config.data.test]:
        assert dataset.download or dataset.source or dataset.root.startswith("data/shapes")  # those tools/demo.py draws


def test_what_was_run_is_read_from_results_and_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    config = load(REPO / "configs/paper/table1_07.yaml", ["solver.max_iterations=31000", "data.test.0.split=val"])
    results = tmp_path / "runs/mine/results"
    results.mkdir(parents=True)
    tree = configs.to_dict(config)
    numbers = {"ap": {"cat": 0.5, "dog": 0.75, "cow": None}, "detections": "d.json", "config": tree, "trained": tree}
    (results / "results.json").write_text(json.dumps(numbers))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["paper.py"])
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOLS / "paper.py"), run_name="__main__")
    sys.modules.pop("_common")
    out = capsys.readouterr().out
    assert not stopped.value.code and all(f"{path.name}: " in out for path in PAPER)
    block = out.partition("table1_07.yaml: ")[2].partition(".yaml: ")[0]
    assert "table 1, FRCN 07: paper 66.9" in block
    assert re.search(r"here 62\.5 on data/VOCdevkit/VOC2007 val \(runs.mine.results\); with .*=31000", block)
    assert "data.test" in block and "missing: data/VOCdevkit/VOC2007: fetched when" in block
    assert out.count("here ") == 1
    assert "missing: data/coco/annotations/instances_train2014.json: not there; it comes from train2014.zip and " in out
    assert (
        "missing: model.weights: data/weights/caffenet.safetensors is not there" in out
        and "tools/import_weights.py" in out
    )
