import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastrcnn import config as configs
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.train import loop
from fastrcnn.train.loop import train
from fastrcnn.train.replay import replay

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def diverging(tree):
    """Its loss is not finite in the second or third iteration."""
    tree["solver"] |= {"lr": 1e15, "clip_gradient": None}
    return tree


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_printed_command_gives_the_same_message(diverging, tmp_path):
    """Copied as it is, though the paths have spaces; the run stays as it was."""
    folder = tmp_path / "my run's folder"
    folder.mkdir()
    diverging["train"]["checkpoint_every"] = 1
    (folder / "my config.yaml").write_text(yaml.safe_dump(diverging | {"output": "runs/my run"}))
    command = [sys.executable, str(REPO / "tools/train.py"), "my config.yaml", "seed=3", "--eval-every", "7"]
    first = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    error = first.stderr[first.stderr.index("error: iteration") :].splitlines()
    assert first.returncode == 1 and error[2].endswith(f"'my config.yaml' seed=3 --replay {error[0].split()[2][:-1]}")
    before = contents(folder / "runs/my run")
    again = subprocess.run(error[2], shell=True, cwd=folder, capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.splitlines()[-1] == error[0]
    assert "RoIs; highest:" in again.stdout and "image 00" in again.stdout and "fc6.weight" in again.stdout
    assert contents(folder / "runs/my run") == before


def test_a_command_is_quoted_for_the_shell_and_starts_what_was_started(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    import _common

    monkeypatch.setattr(sys, "argv", ["/my tools/train.py"])
    monkeypatch.setattr(_common.shutil, "which", lambda name: {"python": sys.executable}.get(name))
    assert _common.command_line("train", "a.yaml", "x=[1, 2]") == "python '/my tools/train.py' a.yaml 'x=[1, 2]'"
    monkeypatch.setattr(_common.shutil, "which", lambda _: None)
    assert _common.command_line("test").startswith(sys.executable)
    monkeypatch.setattr(sys, "platform", "win32")
    assert _common.command_line("train", "my.yaml", "output=a b").endswith('train.py" my.yaml "output=a b"')
    monkeypatch.setattr(_common, "by_command", "train")
    monkeypatch.setattr(_common.shutil, "which", lambda name: name)
    assert _common.command_line("train", "voc07.yaml") == "fastrcnn train voc07.yaml"
    sys.modules.pop("_common")  # others start it anew


def test_a_replay_from_the_start_or_a_checkpoint_ends_as_the_run_did(diverging, tmp_path, monkeypatch):
    config = configs.from_dict(diverging)
    with pytest.raises(NotFiniteError) as stopped:
        train(config)
    iteration = stopped.value.iteration
    for checkpoint_every in (iteration, 100):
        shutil.rmtree(tmp_path / "run")
        config.train.checkpoint_every = checkpoint_every
        with pytest.raises(NotFiniteError) as stopped:
            train(config)
        lines = []
        with pytest.raises(NotFiniteError) as again:
            lines.extend(replay(config, iteration))
        assert str(again.value) == str(stopped.value)
    found = list(replay(config, 0))
    assert found[-1].startswith("all is finite here")
    with pytest.raises(FastRCNNError, match="has no iteration 8 to replay; it has 0 to 7"):
        next(replay(config, 8))
    config.output = str(tmp_path / "other")
    with pytest.raises(FastRCNNError, match="holds no run to replay"):
        next(replay(config, 0))


def test_the_lines_name_the_rois_whose_loss_is_not_finite(tree, tmp_path, monkeypatch):
    config = configs.from_dict(tree)
    train(config)
    original = loop.prepare

    def spoiled(*args, **kwargs):
        run = original(*args, **kwargs)
        run.model.bbox_pred.bias.data[4:] = float("inf")  # of every class, not of background
        return run

    monkeypatch.setattr("fastrcnn.train.replay.prepare", spoiled)
    lines = []
    with pytest.raises(NotFiniteError, match="iteration 6: loss is"):
        for line in replay(config, 6):
            lines.append(line)
    bad, rois = next(line for line in lines if line.startswith("loss not finite: ")).split()[3:6:2]
    worst = lines[-5:]
    assert 0 < int(bad) < int(rois) and all("background" not in line for line in worst[: int(bad)])
    largest = dict(line.split()[:2] for line in lines if line.startswith("    "))
    assert largest["bbox_pred"] == "inf" and float(largest["fc7"]) < 1e6
