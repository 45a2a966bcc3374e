"""The best weights of a run, and that they are the same however the run was broken."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest

from fastrcnn import config as configs
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors
from fastrcnn.train import progress, validation
from fastrcnn.train.checkpoint import checkpoints
from fastrcnn.train.loop import train
from fastrcnn.train.metrics import Metrics, read_metrics

MAPS = {2: 0.3, 4: 0.6, 6: 0.6}  # the best is the first of two that are equal


def evaluated(config, weights, folder, _):
    return SimpleNamespace(mean_ap=MAPS[read_tensors(weights)[1]["training"]["iteration"]], detections=[])


@pytest.fixture
def config(tree):
    tree["train"] |= {"eval_every": 2, "checkpoint_every": 3}
    tree["solver"]["max_iterations"] = 6
    tree["data"]["validation"] = tree["data"]["test"]
    return configs.from_dict(tree)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """They take longer than a run."""
    monkeypatch.setattr(progress, "plot_losses", lambda *_: None)


class Killed(BaseException):
    """As by a kill: nothing in the run handles it."""


# What is called, how often it has been when the run is killed, and whether before or after it is done.
KILLS = [
    (progress, "save_checkpoint", 3, False),  # of iteration 4, for the evaluation
    (progress, "save_checkpoint", 3, True),
    (validation, "save_weights", 3, True),  # for the evaluation
    (validation, "save_weights", 4, False),  # the best
    (validation, "save_weights", 4, True),
    (Metrics, "add_map", 2, False),
    (Metrics, "add_map", 2, True),
]


def test_a_killed_run_ends_with_the_same_best_and_the_same_evaluations(config, tmp_path, monkeypatch):
    """Killed before and after each write around its second evaluation; the files are the same bit for bit."""

    def outcome():
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if "map" in line]
        return [(folder / name).read_bytes() for name in ("best.safetensors", "model.safetensors")], lines

    folder = tmp_path / "run"
    train(config, evaluate=evaluated)
    unbroken = outcome()
    assert unbroken[1][-1] == {"iteration": 6, "map": 0.6, "best_iteration": 4, "best_map": 0.6}
    assert not list((folder / "evaluation").glob("*.safetensors"))
    for where, name, count, after in KILLS:
        shutil.rmtree(folder)
        calls = []
        original = getattr(where, name)

        def kill(*args, original=original, calls=calls, count=count, after=after, **kwargs):
            calls.append(1)
            if len(calls) == count and not after:
                raise Killed
            done = original(*args, **kwargs)
            if len(calls) == count:
                raise Killed
            return done

        with monkeypatch.context() as patch:
            patch.setattr(where, name, kill)
            with pytest.raises(Killed):
                train(config, evaluate=evaluated)
        train(config, resume=True, evaluate=evaluated)
        assert outcome() == unbroken, (name, count, after)


def test_a_best_that_is_ahead_of_the_checkpoint_is_reached_again(config, tmp_path):
    """The newest checkpoint is damaged: the one before is older than the best."""
    train(config, evaluate=evaluated)
    before = (tmp_path / "run/best.safetensors").read_bytes()
    for path in checkpoints(tmp_path / "run"):
        path.unlink()
    (tmp_path / "run/model.safetensors").unlink()
    train(config, resume=True, evaluate=evaluated)
    assert (tmp_path / "run/best.safetensors").read_bytes() == before


def test_a_disk_too_full_for_the_best_keeps_the_one_before(config, tmp_path, monkeypatch):
    original = validation.save_weights

    def full(path, *args):
        if path.name == "best.safetensors" and args[-1]["iteration"] == 4:
            raise FastRCNNError(f"{path}: cannot be written: No space left on device")
        original(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "save_weights", full)
        with pytest.raises(FastRCNNError, match="No space left"):
            train(config, evaluate=evaluated)
    assert read_tensors(tmp_path / "run/best.safetensors")[1]["training"] == {"iteration": 2, "map": 0.3}
    train(config, resume=True, evaluate=evaluated)
    assert read_tensors(tmp_path / "run/best.safetensors")[1]["training"] == {"iteration": 4, "map": 0.6}


def test_the_best_is_chosen_on_the_validation_set_and_on_the_test_set_with_a_warning(tree, tmp_path, caplog):
    seen = []

    def evaluate(config, weights, folder, _):
        seen.append(config.data.test)
        return SimpleNamespace(mean_ap=float("nan"), detections=[])

    tree["train"]["eval_every"] = 4
    tree["data"]["validation"] = [tree["data"]["test"][0] | {"proposals": str(tmp_path / "own.json")}]
    shutil.copy(tree["data"]["test"][0]["proposals"], tmp_path / "own.json")
    config = configs.from_dict(tree)
    train(config, evaluate=evaluate)
    assert seen == [config.data.validation] * 2 and "too high to be reported" not in caplog.text
    assert not (tmp_path / "run/best.safetensors").exists()  # of no number nothing is the best
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]) == {"iteration": 8, "map": None}
    tree["data"]["validation"] = []
    train(configs.from_dict(tree | {"output": str(tmp_path / "b")}), evaluate=evaluate)
    assert caplog.text.count("best.safetensors is chosen on data.test") == 1


@pytest.mark.parametrize("part", ["validation", "test"])
def test_images_without_labels_stop_before_training(tree, shapes, tmp_path, part):
    own = tmp_path / "own"
    shutil.copytree(shapes, own)
    shutil.rmtree(own / "Annotations")
    (own / "Annotations").mkdir()
    tree["train"]["eval_every"] = 4
    tree["data"] |= {"on_unlabelled_image": "empty", part: [tree["data"]["test"][0] | {"root": str(own)}]}
    with pytest.raises(FastRCNNError, match=f"data.{part}: (has no labelled|holds no) object"):
        train(configs.from_dict(tree), evaluate=evaluated)
    tree["data"][part][0]["root"] = str(tmp_path / "nowhere")
    with pytest.raises(FastRCNNError, match="nowhere"):
        train(configs.from_dict(tree), evaluate=evaluated)
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_file_of_the_users_is_not_replaced(config, tmp_path):
    folder = tmp_path / "run"
    for name in ("best.safetensors", "model.safetensors"):
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
        for resume in (False, True):
            with pytest.raises(FastRCNNError, match=f"{name}: is of no run in this folder"):
                train(config, resume, evaluate=evaluated)
        assert (folder / name).read_bytes() == b"mine"
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".mine.tmp").write_bytes(b"mine")
    train(config)  # by somebody who evaluated nothing
    assert (folder / ".mine.tmp").exists()
    (folder / "best.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(FastRCNNError, match="is not the best weights of a run.*move it elsewhere"):
        train(config, resume=True, evaluate=evaluated)


def test_a_best_that_is_gone_or_of_other_images_is_said(config, tmp_path, caplog):
    train(config, evaluate=evaluated)
    config.data.validation[0].root += "/"
    with caplog.at_level(logging.WARNING):
        train(config, resume=True, evaluate=evaluated)
    assert "best.safetensors: was chosen on other data sets or settings" in caplog.text
    (tmp_path / "run/best.safetensors").unlink()
    train(config, resume=True, evaluate=evaluated)
    assert "best.safetensors: is not there any more" in caplog.text
