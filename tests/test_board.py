import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastrcnn import config as configs
from fastrcnn.detections import DetectedImage, Detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.train import progress
from fastrcnn.train.board import Board
from fastrcnn.train.loop import train
from fastrcnn.train.metrics import read_metrics

MISSING = 'train.tensorboard needs tensorboard; pip install "fastrcnn\\[tensorboard\\]"'


@pytest.fixture
def config(tree):
    tree["train"] |= {"eval_every": 2, "checkpoint_every": 3, "tensorboard": True}
    tree["solver"]["max_iterations"] = 6
    return configs.from_dict(tree)


def evaluated(config, weights, folder, _):
    one = Detections(np.array([[5, 5, 40, 40]], np.float32), np.array([1]), np.array([0.9], np.float32), ("a", *"bcde"))
    return SimpleNamespace(mean_ap=0.5, detections=[DetectedImage(f"{i:06d}", one) for i in range(1, 13)])


def test_without_the_extra_nothing_is_begun(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FastRCNNError, match=MISSING):
        train(config, evaluate=evaluated)
    assert not (tmp_path / "run").exists()
    Board(None, 0).scalars({"iteration": 1, "loss": 1.0})  # without a board, the extra is not needed


def test_a_resumed_run_shows_each_point_once(config, tmp_path, monkeypatch):
    """As TensorBoard reads it; the numbers are those of metrics.jsonl."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(progress, "plot_losses", lambda *_: None)

    def killed(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "draw", lambda _: calls.append(1) or (len(calls) == 3 and killed()))
        calls = []
        with pytest.raises(ZeroDivisionError):  # at iteration 4, after its evaluation
            train(config, evaluate=evaluated)
    (tmp_path / "run/checkpoint_00000004.safetensors").unlink()  # so that 4 is done again, and 5 and 6 follow
    train(config, resume=True, evaluate=evaluated)
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert {"loss", "loss_cls", "loss_bbox", "fg_accuracy", "lr", "map"} <= shown.keys()
    metrics = read_metrics(tmp_path / "run/metrics.jsonl")
    for tag, points in shown.items():
        expected = [(m["iteration"], m[tag]) for m in metrics if m.get(tag) is not None]
        assert [p[0] for p in points] == [e[0] for e in expected] and len(expected) == len(dict(expected))
        np.testing.assert_allclose([p[1] for p in points], [e[1] for e in expected], rtol=1e-6)
    assert [e.step for e in events.Images("evaluation")] == [2, 4, 6]


def test_a_full_disk_ends_the_board_only(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        board = Board(tmp_path / "tensorboard", 0)
        board.scalars({"iteration": 1, "loss": 1.0})
        board.flush()
        board.close()
    assert caplog.text.count("cannot be written any more") == 1
