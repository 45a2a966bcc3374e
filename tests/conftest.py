"""What several tests share: a small made data set with proposals, and a configuration that learns it in seconds."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure
from pages import CHROMIUM, Browser

from fastrcnn import config as configs
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.config_data import DataSetConfig
from fastrcnn.data.shapes import CLASSES, make_shapes

torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same in the programs that tests start
settings.register_profile("fastrcnn", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines
settings.load_profile("fastrcnn")


@pytest.fixture(autouse=True)
def not_drawn(request) -> Iterator[None]:
    """Tests of figures draw them, and so do programs that tests start; elsewhere it would take longer than the test."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ not in ("test_curves", "test_report", "test_sheets"):
            patch.setattr(Figure, "savefig", lambda _, file, **__: file.write(b"a figure"))
        yield


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """For a test that gives what no annotation allows, on purpose, to see our own error."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A VOC-layout set of 8 training and 4 test images, with proposals that lie around the objects and elsewhere."""
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=8, test=4, seed=7)
    (root / "proposals.json").write_text(json.dumps(made_proposals(root)))
    return root


def made_proposals(root: Path) -> dict:
    """Boxes shaken around each object, and boxes anywhere, in the form of a proposals.json."""
    config = configs.from_dict({"classes": list(CLASSES)})
    rng = np.random.default_rng(0)
    boxes = {}
    for split in ("train", "test"):
        dataset = DataSetConfig(root=str(root), split=split)
        for record in read_data_sets([dataset], config.data, config.classes):
            limit = np.array([record.width, record.height] * 2)
            shaken = np.repeat(record.boxes, 12, axis=0)
            size = np.tile(shaken[:, 2:] - shaken[:, :2], 2)
            shaken = shaken + rng.uniform(-0.3, 0.3, shaken.shape) * size
            corner = rng.uniform(0, 0.7, (60, 2)) * limit[:2]
            anywhere = np.hstack((corner, corner + rng.uniform(0.1, 0.3, (60, 2)) * limit[:2]))
            rows = np.clip(np.vstack((shaken, anywhere)), 0, limit).round()
            boxes[record.id] = rows[(rows[:, 2:] - rows[:, :2] >= 4).all(axis=1)].tolist()
    return {"meta": {"format": "xyxy", "origin": 0, "end": "exclusive"}, "proposals": boxes}


@pytest.fixture
def tree(shapes, tmp_path) -> dict:
    """A configuration as nested dictionaries: the tiny network on the made set, one run folder under tmp_path."""

    def dataset(split: str) -> dict:
        return {"root": str(shapes), "split": split, "proposals": str(shapes / "proposals.json")}

    return {
        "classes": list(CLASSES),
        "data": {"train": [dataset("train")], "test": [dataset("test")], "workers": 0},
        "image": {"train_short_side": [96], "test_short_side": [96]},
        "model": {"backbone": "tiny", "weights": "", "freeze_up_to": "conv1", "fc_width": 32, "dropout": 0.5},
        "sampling": {"rois_per_batch": 32},
        "solver": {"lr": 0.01, "steps": [6], "max_iterations": 8, "clip_gradient": 10.0},
        "train": {"log_every": 2, "checkpoint_every": 3},
        "output": str(tmp_path / "run"),
    }


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A headless Chromium; without one, the test is skipped."""
    if not CHROMIUM or sys.platform == "win32":
        pytest.skip("looks at a page in Chromium, which is not installed (Debian: apt-get install chromium)")
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()
