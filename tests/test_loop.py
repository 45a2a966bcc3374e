import json
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastrcnn import config as configs
from fastrcnn import config_files
from fastrcnn.boxes import TargetStatistics
from fastrcnn.data.loader import Batch
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock, read_tensors
from fastrcnn.model.weights import build, save_weights
from fastrcnn.train.checkpoint import checkpoints
from fastrcnn.train.loop import iterate, prepare, train
from fastrcnn.train.signals import Stop


def config_of(tree, output, **solver):
    return configs.from_dict({**tree, "solver": {**tree["solver"], **solver}, "output": str(output)})


def same_weights(a: Path, b: Path) -> bool:
    first, second = read_tensors(a)[0], read_tensors(b)[0]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_all_it_should(tree, tmp_path):
    evaluated = []
    tree["train"]["eval_every"] = 4
    config = config_of(tree, tmp_path / "run")
    weights = train(
        config, evaluate=lambda _, path, *__: evaluated.append(path) or SimpleNamespace(mean_ap=0.25, detections=[])
    )
    folder = tmp_path / "run"
    assert weights == folder / "model.safetensors"
    assert evaluated == [folder / "evaluation/weights.safetensors"] * 2 and not evaluated[0].exists()
    assert config_files.load(folder / "config.yaml") == config
    assert [p.name for p in checkpoints(folder)] == [
        "checkpoint_00000006.safetensors",
        "checkpoint_00000008.safetensors",
    ]
    assert read_tensors(folder / "best.safetensors")[1]["training"] == {"iteration": 4, "map": 0.25}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert [line for line in lines if "map" in line] == [
        {"iteration": done, "map": 0.25, "best_iteration": 4, "best_map": 0.25} for done in (4, 8)
    ]
    first = lines[0]
    assert first["loss"] == pytest.approx(first["loss_cls"] + first["loss_bbox"], rel=1e-5)
    assert {"fg_accuracy", "false_negatives", "foreground", "lr", "images_per_second"} <= first.keys()
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx([0.01, 0.01, 0.01, 0.001])
    assert (folder / "losses.png").is_file()
    assert "8 images, 5 classes" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("stop", "workers", "mined", "layers"), [(3, 0, None, None), (5, 1, None, None), (5, 1, 50, ["pool2", "conv3_2"])]
)
def test_resume_equals_the_unbroken_run_bit_for_bit(tree, tmp_path, stop, workers, mined, layers):
    """With dropout, momentum, an lr step (at 6) and an epoch edge (at 4) inside, and another number of workers; with
    and without hard example mining and skip pooling."""
    tree["image"]["flip"] = False
    tree["sampling"]["hard_candidates"] = mined
    tree["model"]["pool_layers"] = layers
    unbroken = train(config_of(tree, tmp_path / "a"))
    train(config_of(tree, tmp_path / "b", max_iterations=stop))
    tree["data"]["workers"] = workers
    resumed = train(config_of(tree, tmp_path / "b"), resume=True)
    assert same_weights(unbroken, resumed)
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))


@pytest.mark.parametrize("kind", ["roi_align", "spp", "warp"])
def test_resume_is_exact_with_other_features_of_rois(tree, tmp_path, kind):
    tree["model"] |= {"roi_features": kind, "pyramid": [3, 2, 1], "warp_size": 40, "pool_size": 3}
    unbroken = train(config_of(tree, tmp_path / "a", max_iterations=4))
    train(config_of(tree, tmp_path / "b", max_iterations=2))
    assert same_weights(unbroken, train(config_of(tree, tmp_path / "b", max_iterations=4), resume=True))


def test_resume_is_exact_in_float16(tree, tmp_path):
    """The head alone learns, as float16 convolutions are slow on a CPU."""
    tree |= {"precision": "float16", "model": {**tree["model"], "freeze_up_to": "conv3_2"}}
    unbroken = train(config_of(tree, tmp_path / "a", max_iterations=4))
    train(config_of(tree, tmp_path / "b", max_iterations=2))
    assert same_weights(unbroken, train(config_of(tree, tmp_path / "b", max_iterations=4), resume=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [2, 4])
def test_resume_is_exact_with_the_head_first_and_a_falling_rate(tree, tmp_path, stop, optimizer):
    """Stopped inside the head's iterations (3), and after them."""
    more = {"head_iterations": 3, "schedule": "cosine", "warmup_iterations": 1, "optimizer": optimizer, "lr": 5e-4}
    tree["train"]["checkpoint_every"] = stop
    unbroken = train(config_of(tree, tmp_path / "a", **more))

    def stopped(*_):
        raise KeyboardInterrupt

    tree["train"]["eval_every"] = stop
    with pytest.raises(KeyboardInterrupt):
        train(config_of(tree, tmp_path / "b", **more), evaluate=stopped)
    del tree["train"]["eval_every"]
    assert same_weights(unbroken, train(config_of(tree, tmp_path / "b", **more), resume=True))


def test_a_rate_that_falls_to_zero_has_one_end(tree, tmp_path):
    train(config_of(tree, tmp_path / "a", schedule="linear", max_iterations=4))
    with pytest.raises(FastRCNNError, match="solver.max_iterations was 4, is 6"):
        train(config_of(tree, tmp_path / "a", schedule="linear", max_iterations=6), resume=True)


def test_convolutions_keep_their_weights_while_the_head_learns(tree, tmp_path):
    run = prepare(config_of(tree, tmp_path / "a", head_iterations=6), False, [], threading.Event())
    start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    iterate(run, None, Stop())
    for done, convolutions_too in ((6, False), (8, True)):
        now = read_tensors(tmp_path / "a" / f"checkpoint_{done:08d}.safetensors")[0]
        changed = {name for name, before in start.items() if not torch.equal(before, now[f"model.{name}"])}
        assert ("backbone.conv3_2.weight" in changed) == convolutions_too
        assert "fc6.weight" in changed and "backbone.conv1.weight" not in changed


@pytest.mark.parametrize("cached", [False, True])
def test_stage_wise_training_touches_the_regression_layer_alone(tree, tmp_path, cached):
    """Table 6: the second run starts from the first, resumes bit for bit, and all but bbox_pred stays bit for bit."""
    first = train(config_of(tree, tmp_path / "first", bbox_loss_weight=0.0))
    tree["model"] |= {"weights": str(tmp_path / "first"), "freeze_up_to": "conv3_2" if cached else "conv1"}
    tree |= {"cache_features": cached, "feature_cache": str(tmp_path / "features")}
    stage = {"train_only": ["bbox_pred"]}
    second = train(config_of(tree, tmp_path / "second", **stage))
    before, after = read_tensors(first)[0], read_tensors(second)[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {"bbox_pred.weight", "bbox_pred.bias"}
    train(config_of(tree, tmp_path / "resumed", max_iterations=3, **stage))
    assert same_weights(second, train(config_of(tree, tmp_path / "resumed", **stage), resume=True))


def test_stage_wise_training_needs_the_first_stage(tree, tmp_path):
    with pytest.raises(FastRCNNError, match="train_only: leaves cls_score, fc6, fc7 as they start, at random"):
        train(config_of(tree, tmp_path / "run", train_only=["bbox_pred"]))


def test_fixed_stds_reach_the_weights_and_a_recipe_may_be_named_later(tree, tmp_path):
    """What a recipe stands for is in the other keys: a run may be resumed under its name."""
    tree["sampling"]["target_std"] = [0.1, 0.1, 0.2, 0.2]
    run = prepare(config_of(tree, tmp_path / "run", max_iterations=2), False, [], threading.Event())
    assert run.statistics.std[1:].unique(dim=0).tolist() == [pytest.approx([0.1, 0.1, 0.2, 0.2])]
    iterate(run, None, Stop())
    same = configs.to_dict(config_of(tree, tmp_path / "run")) | {"recipe": "py-faster-rcnn"}
    assert prepare(configs.from_dict(same), True, [], threading.Event()).first == 2


def test_other_seeds_give_other_weights(tree, tmp_path):
    first = train(config_of(tree, tmp_path / "a", max_iterations=2))
    second = train(config_of({**tree, "seed": 4}, tmp_path / "b", max_iterations=2))
    assert not same_weights(first, second)


def test_a_run_is_not_overwritten(tree, tmp_path):
    config = config_of(tree, tmp_path / "run", max_iterations=1)
    train(config)
    with pytest.raises(FastRCNNError, match="holds a run already; add --resume"):
        train(config)
    with lock(tmp_path / "run" / ".lock", "x"), pytest.raises(FastRCNNError, match="in use by another process"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"solver": {"lr": 0.5}}, "solver.lr was 0.01, is 0.5"),
        ({"seed": 9}, "seed was 3, is 9"),
        ({"data": {"drop_difficult": True}}, "data.drop_difficult was False, is True"),
        ({"sampling": {"rois_per_batch": 16}}, "sampling.rois_per_batch was 32, is 16"),
    ],
)
def test_resume_refuses_other_settings(tree, tmp_path, change, words):
    config = config_of(tree, tmp_path / "run", max_iterations=2)
    train(config)
    other = configs.from_dict(config_files._merge(configs.to_dict(config), change))
    with pytest.raises(FastRCNNError, match=words):
        train(other, resume=True)


def test_resume_refuses_other_data_and_a_shorter_run(tree, tmp_path, shapes):
    train(config_of(tree, tmp_path / "run", max_iterations=3))
    with pytest.raises(FastRCNNError, match="has 3 iterations already"):
        train(config_of(tree, tmp_path / "run", max_iterations=2), resume=True)
    proposals = json.loads((shapes / "proposals.json").read_text())
    changed = next(iter(proposals["proposals"].values()))
    changed[0][2] -= 1
    original = (shapes / "proposals.json").read_text()
    (shapes / "proposals.json").write_text(json.dumps(proposals))
    try:
        with pytest.raises(FastRCNNError, match="other images, boxes or proposals"):
            train(config_of(tree, tmp_path / "run"), resume=True)
    finally:
        (shapes / "proposals.json").write_text(original)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_saves_and_stops(tree, tmp_path, number):
    tree["train"]["checkpoint_every"] = 1000
    config = config_of(tree, tmp_path / "run", max_iterations=100_000)

    def send():
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or not metrics.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert signal.getsignal(number) == before
    (saved,) = checkpoints(tmp_path / "run")
    done = int(saved.stem.split("_")[1])
    resumed = train(config_of(tree, tmp_path / "run", max_iterations=done + 2), resume=True)
    assert same_weights(resumed, train(config_of(tree, tmp_path / "unbroken", max_iterations=done + 2)))


def test_a_signal_during_an_evaluation_loses_no_iteration(tree, tmp_path):
    tree["train"] |= {"checkpoint_every": 1000, "eval_every": 3}

    def evaluate(*_):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config_of(tree, tmp_path / "run"), evaluate=evaluate)
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint_00000003.safetensors"]
    resumed = train(config_of(tree, tmp_path / "run"), resume=True)
    assert same_weights(resumed, train(config_of(tree, tmp_path / "unbroken")))


@pytest.mark.parametrize("weights", ["", "other classes", "same classes"])
def test_bbox_pred_starts_as_the_prototxt_says_unless_it_was_loaded(tree, tmp_path, weights):
    """Every class's rows at std 0.001 and bias 0; the statistics of the targets touch no fresh layer."""
    tree["model"]["fc_width"] = 512
    if weights:
        config = config_of(tree, tmp_path / "first", max_iterations=1)
        model = build(config)
        model.bbox_pred.bias.data.fill_(0.5)
        statistics = TargetStatistics(torch.zeros(6, 4), torch.full((6, 4), 0.3))
        tree["model"]["weights"] = str(tmp_path / "first.safetensors")
        save_weights(tree["model"]["weights"], model, config, statistics)
    if weights == "other classes":
        tree["classes"][0] = "ring"
        tree["data"]["on_unknown_class"] = "ignore"
    config = config_of(tree, tmp_path / "run")
    run = prepare(config, False, [], threading.Event())
    layer = run.model.bbox_pred
    if weights == "same classes":
        target = run.statistics.std.flatten()
        assert torch.allclose(layer.weight, model.bbox_pred.weight * 0.3 / target[:, None])
        assert torch.allclose(layer.bias, (0.15 - run.statistics.mean.flatten()) / target)
    else:
        std = layer.weight.unflatten(0, (-1, 4)).flatten(1).std(dim=1)
        assert torch.allclose(std, torch.full_like(std, 0.001), rtol=0.1)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tree, tmp_path, caplog):
    unbroken = train(config_of(tree, tmp_path / "a"))
    train(config_of(tree, tmp_path / "b", max_iterations=6))
    newest = checkpoints(tmp_path / "b")[-1]
    content = bytearray(newest.read_bytes())
    content[-5] ^= 0x40  # one bit of one weight: still a whole safetensors file
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        resumed = train(config_of(tree, tmp_path / "b"), resume=True)
    assert f"{newest.name}: is damaged: its checksum" in caplog.text
    assert same_weights(unbroken, resumed)

    for path in checkpoints(tmp_path / "b"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FastRCNNError, match="every checkpoint is damaged"):
        train(config_of(tree, tmp_path / "b"), resume=True)


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tree, tmp_path, monkeypatch):
    train(config_of(tree, tmp_path / "run", max_iterations=3))
    before = checkpoints(tmp_path / "run")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fastrcnn.model.checkpoint_file.write_tensors", lambda *a: _raise_full(full, *a))
        with pytest.raises(FastRCNNError, match="No space left on device"):
            train(config_of(tree, tmp_path / "run"), resume=True)
    assert checkpoints(tmp_path / "run") == before
    assert same_weights(train(config_of(tree, tmp_path / "run"), resume=True), train(config_of(tree, tmp_path / "b")))


def _raise_full(full, path, *_):
    from unittest.mock import patch

    from fastrcnn.files import atomic_write

    with patch("os.fsync", full), atomic_write(path) as file:
        file.write(b"x")


def test_a_loss_that_is_not_finite_stops_with_the_images_named(tree, tmp_path, monkeypatch):
    original = Batch.to

    def poison(batch, device):
        batch = original(batch, device)
        if batch.iteration == 4:
            batch.images[0].fill_(float("nan"))
        return batch

    monkeypatch.setattr(Batch, "to", poison)
    with pytest.raises(FastRCNNError, match=r"iteration 4: \w+ is nan on images \d+, \d+.*solver\.lr"):
        train(config_of(tree, tmp_path / "run"))
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint_00000003.safetensors"]


def test_weights_that_are_not_finite_stop_with_the_images_named_and_are_not_saved(tree, tmp_path, monkeypatch):
    """A finite gradient, and a step that leaves the range of numbers, in the iteration of a checkpoint."""
    original = torch.optim.SGD.step
    steps = []

    def too_far(optimizer):
        original(optimizer)
        steps.append(1)
        if len(steps) == 6:
            optimizer.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.SGD, "step", too_far)
    with pytest.raises(FastRCNNError, match=r"iteration 5: a weight or .* on images \d+, \d+; .*lower solver\.lr"):
        train(config_of(tree, tmp_path / "run"))
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint_00000003.safetensors"]
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize("start", ["weights", "random"])
def test_a_start_without_any_roi_is_an_error(tree, tmp_path, start):
    """Also where fc6 and fc7 come with weights, so that no RoI sets their scale."""
    if start == "weights":
        tree["model"]["weights"] = str(train(config_of(tree, tmp_path / "before", max_iterations=1)))
    tree["sampling"] |= {"background_iou": [0.49, 0.4900001], "foreground_fraction": 0.0}
    with pytest.raises(FastRCNNError, match="the first 4 iterations have no RoI at all"):
        train(config_of(tree, tmp_path / "run"))


def test_a_run_whose_proposals_were_capped_says_what_to_set(tree, tmp_path):
    """Earlier versions capped all files at 2,000 boxes an image."""
    tree["proposals"] = {"max_per_image": 20}
    train(config_of(tree, tmp_path / "run", max_iterations=3))
    del tree["proposals"]
    with pytest.raises(FastRCNNError, match=r"it had proposals\.max_per_image=20: set that"):
        train(config_of(tree, tmp_path / "run"), resume=True)
    tree["proposals"] = {"max_per_image": 20}
    train(config_of(tree, tmp_path / "run"), resume=True)


def test_a_run_resumes_on_data_that_moved(tree, shapes, tmp_path):
    train(config_of(tree, tmp_path / "run", max_iterations=3))
    shutil.copytree(shapes, tmp_path / "moved")
    moved = {"root": str(tmp_path / "moved"), "split": "train", "proposals": str(tmp_path / "moved" / "proposals.json")}
    tree["data"]["train"] = [moved]
    resumed = train(config_of(tree, tmp_path / "run"), resume=True)
    tree["data"]["train"] = [moved | {"root": str(shapes)}]
    assert same_weights(resumed, train(config_of(tree, tmp_path / "unbroken")))
    (tmp_path / "moved" / "ImageSets" / "Main" / "train.txt").write_text("000001\n")
    tree["data"]["train"] = [moved]
    with pytest.raises(FastRCNNError, match="other images, boxes or proposals"):
        train(config_of(tree, tmp_path / "run", max_iterations=9), resume=True)


def test_a_training_set_without_objects_is_an_error_before_training(tree, tmp_path):
    tree |= {"classes": ["unicorn"], "data": {**tree["data"], "on_unknown_class": "ignore"}}
    with pytest.raises(FastRCNNError, match="data.train: holds no object of any class in its .*nearest"):
        train(config_of(tree, tmp_path / "run"))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_test_set_that_is_absent_is_told_before_training(tree, tmp_path, caplog):
    """With its source; it stops no run."""
    absent = {"format": "coco", "root": "elsewhere", "source": "test.zip of our server"}
    tree["data"]["test"] = [absent]
    train(config_of(tree, tmp_path / "run", max_iterations=1))
    assert "data.test: elsewhere: not there; it comes from test.zip of our server; training does" in caplog.text


def test_more_objects_than_detections_are_warned_of(tree, tmp_path, caplog):
    tree["test"] = {"max_detections": 1}
    train(config_of(tree, tmp_path / "run", max_iterations=1))
    assert "test.max_detections keeps 1 detections" in caplog.text
