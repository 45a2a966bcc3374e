"""The examples in docstrings run, and every public function and class of the modules that users call has one."""

import doctest
import importlib
import inspect
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml

import fastrcnn
from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.model.weights import build, save_weights

MODULES = (
    "fastrcnn fastrcnn.api fastrcnn.detect.ahead fastrcnn.detect.detector fastrcnn.detections fastrcnn.drawing "
    "fastrcnn.inputs"
).split()


def public(owner: object, module: str) -> dict[str, object]:
    """By name, the functions and classes that are defined in a module, and the methods of a class."""
    found = {}
    for name, value in vars(owner).items():
        value = value.__func__ if isinstance(value, classmethod) else value
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module and name[0] != "_":
            found |= {name: value}
            if inspect.isclass(value):
                found |= {f"{name}.{part}": method for part, method in public(value, module).items()}
    return found


@pytest.fixture
def prepared(tree, tmp_path, monkeypatch):
    """The files and names that the examples use; `found` has a detection of each kind."""
    monkeypatch.chdir(tmp_path)
    model = {**tree["model"], "dropout": 0.0}
    config = configs.from_dict({"classes": ["dog", "cat", "horse"], "model": model, "image": {"test_short_side": [96]}})
    statistics = TargetStatistics(torch.zeros(4, 4), torch.ones(4, 4))
    save_weights("model.safetensors", build(config), config, statistics)
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    cv2.imwrite("street.jpg", cv2.resize(picture, (240, 180)))
    (tmp_path / "photos").mkdir()
    shutil.copy("street.jpg", "photos/street.jpg")
    tree["solver"]["max_iterations"] = 2
    del tree["output"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    detector = fastrcnn.load("model.safetensors")
    return {"fastrcnn": fastrcnn, "detector": detector, "found": detector.detect("street.jpg")}


def test_every_example_gives_what_it_shows(prepared):
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    for name in MODULES:
        module = importlib.import_module(name)
        documented = {"": module, **public(module, name)}
        examples = {}
        for part, value in documented.items():
            text = inspect.getdoc(value) or ""
            names = {**vars(module), **prepared}
            examples[part] = doctest.DocTestParser().get_doctest(text, names, f"{name}.{part}", module.__file__, 0)
            said = []
            assert not runner.run(examples[part], out=said.append).failed, "".join(said)
        lacking = [part for part in documented if part and not examples[part].examples]
        assert not lacking, f"{name}: no example in the docstring of {lacking}"
