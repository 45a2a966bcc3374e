"""fastrcnn.train and fastrcnn.evaluate: names of functions and of sub-packages at once, and what they return."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import fastrcnn
from fastrcnn import config as configs
from fastrcnn.errors import FastRCNNError

REPO = Path(__file__).resolve().parent.parent

IMPORTS = {
    "function": "import fastrcnn",
    "module before": "import fastrcnn.train.loop, fastrcnn.evaluate.run; import fastrcnn",
    "module after": "import fastrcnn; fastrcnn.train, fastrcnn.evaluate; import fastrcnn.train.loop",
    "module by attribute": "import fastrcnn.train.loop as loop, fastrcnn; assert fastrcnn.train.loop is loop",
    "by name": "from fastrcnn import train, evaluate; import fastrcnn.train.loop; assert train is fastrcnn.train",
    "module by name": "from fastrcnn.train import loop; from fastrcnn.train.loop import train; import fastrcnn",
    "importlib": "import importlib; importlib.import_module('fastrcnn.evaluate.voc'); import fastrcnn",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_packages_are_functions_in_every_order_of_imports(imports):
    code = f"""
{imports}
from fastrcnn.errors import FastRCNNError
for function in (fastrcnn.train, lambda config: fastrcnn.evaluate(config, "w.safetensors")):
    try:
        function({{"classes": ["dog"], "solver": {{"bogus": 1}}}})
    except FastRCNNError as e:
        assert "solver.bogus" in str(e), e
    else:
        raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_brings_nothing_heavy():
    code = "import sys, fastrcnn; print([n for n in ('torch', 'numpy', 'cv2', 'pydantic', 'yaml') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_functions_say_what_they_take():
    assert [*inspect.signature(fastrcnn.train).parameters] == ["config", "resume"]
    assert [*inspect.signature(fastrcnn.evaluate).parameters] == ["config", "weights", "output", "with_coco"]
    assert "checkpoint" in fastrcnn.train.__doc__


def test_results_are_those_of_the_files(tree, tmp_path):
    tree["train"]["eval_every"] = 4
    done = fastrcnn.train(configs.from_dict(tree))
    folder = tmp_path / "run"
    assert done.weights == folder / "model.safetensors" and done.iterations == 8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [[line["iteration"], line["loss"]] for line in lines if "loss" in line]
    assert done.curves["loss"].tolist() == losses and [row[0] for row in losses] == [2, 4, 6, 8]
    maps = [line["map"] for line in lines if "map" in line]
    assert len(maps) == 2 and done.best_map == max(maps) and done.curves["map"][:, 0].tolist() == [4, 8]

    found = fastrcnn.evaluate(tree, done.weights, with_coco=True)
    numbers = json.loads((folder / "results/results.json").read_text())
    assert found.mean_ap == numbers["map"] == maps[-1] and found.coco.keys() == numbers["coco"].keys()
    assert {name: None if np.isnan(ap) else ap for name, ap in found.ap.items()} == numbers["ap"]
    entries = json.loads((folder / "results/detections.json").read_text())["images"]
    assert [image.to_json() for image in found.detections] == entries and len(entries) == 4
    again = fastrcnn.evaluate(tree, folder / "results/detections.json", tmp_path / "again")
    assert again.mean_ap == found.mean_ap and again.coco == {} and (tmp_path / "again/results.json").exists()


def test_a_run_without_evaluation_has_no_best_map(tree):
    tree["solver"]["max_iterations"] = 2
    assert fastrcnn.train(tree).best_map is None
    tree["solver"]["max_iterations"] = 4
    with pytest.raises(FastRCNNError, match="holds a run already"):
        fastrcnn.train(tree)
    assert fastrcnn.train(tree, resume=True).curves["loss"][:, 0].tolist() == [2, 4]


def test_a_configuration_in_every_form(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    seen = []
    monkeypatch.setattr("fastrcnn.train.loop.train", lambda config, *_: seen.append(config) or Path("w"))
    monkeypatch.setattr("fastrcnn.train.result.read_metrics", lambda path: [])
    for form in ("mine.yaml", tmp_path / "mine.yaml", tree, configs.from_dict(tree), "voc07.yaml"):
        fastrcnn.train(form)
    assert seen[0] == seen[1] == seen[2] == seen[3] == configs.from_dict(tree)
    assert seen[4].output == "runs/voc07" and len(seen[4].classes) == 20


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (["dog"], "config: is of type list; give a Config, nested dictionaries or a YAML file"),
        (None, "config: is of type NoneType"),
        ("nowhere.yaml", "nowhere.yaml: no such configuration file"),
        ({"classes": []}, "config: classes"),
    ],
)
def test_what_is_no_configuration(config, words):
    with pytest.raises(FastRCNNError, match=words):
        fastrcnn.train(config)
    with pytest.raises(FastRCNNError, match=words):
        fastrcnn.evaluate(config, "w.safetensors")
