"""Kill a small training run at many moments, resume it, and compare its weights bit for bit with an unbroken run's.

`make soak` runs this file: 50 kills of the whole process group, with 0, 1 and 2 workers in turn. Tests use its parts:
tools in processes of their own, forked from one server that has imported torch, so that a start costs no seconds.
"""

import argparse
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import yaml

from fastrcnn.config_data import DataSetConfig
from fastrcnn.files import read_tensors

TOOLS = Path(__file__).parent.parent / "tools"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["fastrcnn.train.loop", "fastrcnn.evaluate.run", "fastrcnn.detect.pictures"])

Change = Callable[[], object]  # done in a tool's process before the tool starts


# ---- tools in processes of their own


def start(tool: str, *args: object, cwd: Path, log: Path, changes: Sequence[Change] = ()) -> BaseProcess:
    """Start tools/<tool>.py, in a process group of its own; all that it prints goes to `log`, made anew."""
    log.write_bytes(b"")
    process = _context.Process(target=_run, args=(tool, [*map(str, args)], cwd, log, [*changes]))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 240) -> int:
    """Its exit code; minus the signal's number if it was killed."""
    process.join(seconds)
    assert process.exitcode is not None, "the tool hangs"
    return process.exitcode


def _run(tool: str, args: list[str], cwd: Path, log: Path, changes: list[Change]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would ignore
    multiprocessing.set_start_method("fork", force=True)  # the default of loader processes, which here is forkserver
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    torch.set_num_threads(1)
    for change in changes:
        change()
    sys.argv = [f"{tool}.py", *args]
    sys.path.insert(0, str(TOOLS))
    runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")


# ---- moments to die in


def die() -> None:
    """SIGKILL to the whole process group, loader processes included."""
    os.killpg(0, signal.SIGKILL)


def on_call(name: str, number: int, when: str, names: str = "", act: Callable[[], object] = die) -> None:
    """Change the function `name` (module:attribute.attribute) so that its call number `number` (from 1) acts `before`
    or `after` what it does. Only calls count that have `names` in the file name of one of their arguments."""
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = getattr(owner, attribute)
    calls = 0

    @functools.wraps(original)
    def changed(*args, **kwargs):
        nonlocal calls
        calls += any(isinstance(a, Path) and names in a.name for a in args) if names else 1
        due = calls == number
        calls += due  # once only
        if due and when == "before":
            act()
        result = original(*args, **kwargs)
        if due and when == "after":
            act()
        return result

    setattr(owner, attribute, changed)


def on_half_a_line(number: int) -> None:
    """Die when line `number` of the metrics is half on the disk."""
    original = Path.open
    lines = 0

    def half(self, mode="r", *args, **kwargs):
        nonlocal lines
        file = original(self, mode, *args, **kwargs)
        if self.name != "metrics.jsonl" or mode != "a":
            return file
        lines += 1
        if lines < number:
            return file

        class Half:
            def write(self, text):
                file.write(text[: len(text) // 2])
                file.flush()
                die()

        return contextlib.nullcontext(Half())

    Path.open = half


def on_time(seconds: float) -> None:
    """Die after some seconds, wherever that is."""
    timer = threading.Timer(seconds, die)
    timer.daemon = True  # a run that ends first is not kept
    timer.start()


CHECKPOINT = "checkpoint_"


def moments(rng: random.Random, seconds: float, iterations: int) -> Iterator[tuple[str, Change]]:
    """Endless: moments of every kind in turn, each with a description; `seconds` is what a whole run takes."""
    while True:
        for name, most, names in (
            ("pathlib:Path.replace", 3, CHECKPOINT),  # the rename of a checkpoint
            ("pathlib:Path.replace", 12, ""),  # the rename of any file
            ("os:fsync", 12, ""),
            ("pathlib:Path.unlink", 2, CHECKPOINT),  # the removal of an old checkpoint
            ("torch:optim.SGD.step", iterations // 2, ""),
            ("fastrcnn.data.loader:read_image", iterations, ""),  # in the loader, in its process if it has one
            ("fastrcnn.train.step:multi_task_loss", iterations // 2, ""),
        ):
            for when in ("before", "after"):
                number = rng.randint(1, most)
                what = f"{when} call {number} of {name} {names}".strip()
                yield what, functools.partial(on_call, name, number, when, names)
            number = rng.uniform(0, seconds)
            yield f"after {number:.2f} s", functools.partial(on_time, number)
        number = rng.randint(1, iterations // 4)
        yield f"in line {number} of the metrics", functools.partial(on_half_a_line, number)


# ---- kill and compare


def kill_and_resume(tree: dict, work: Path, kills: Sequence[tuple[str, Change]], workers: Sequence[int]) -> int:
    """Train as `tree` says without a break, and again with these kills; every run that reaches its end must have the
    same weights, one line for each metric, and nothing left over. Returns the number of kills that came in time.

    Raises AssertionError, naming the kill, for the first difference.
    """
    (work / "run.yaml").write_text(yaml.safe_dump(tree))
    log = work / "log"

    def train(output: str, *args: str, changes: Sequence[Change] = ()) -> int:
        return finish(start("train", "run.yaml", f"output={output}", *args, cwd=work, log=log, changes=changes))

    assert train("unbroken") == 0, log.read_text()
    expected = read_tensors(work / "unbroken/model.safetensors")[0]
    last = tree["solver"]["max_iterations"]
    killed, round_, history = 0, 0, []
    todo = [*kills, ("not at all", None)]
    for i, (what, change) in enumerate(todo):
        folder = work / f"run{round_}"
        history.append(f"workers {workers[i % len(workers)]}, killed {what}")
        changes = [change] if change else []
        code = train(folder.name, "--resume", f"data.workers={workers[i % len(workers)]}", changes=changes)
        story = "; ".join(history)
        if code == -signal.SIGKILL and change:
            killed += 1
            continue
        assert code == 0, f"exit code {code} after {story}\n{log.read_text()}"
        found = read_tensors(folder / "model.safetensors")[0]
        different = [name for name in expected if not torch.equal(expected[name], found[name])]
        assert found.keys() == expected.keys() and not different, f"{different} differ after {story}"
        lines = [json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(range(tree["train"]["log_every"], last + 1, tree["train"]["log_every"])), story
        assert not [*folder.glob(".*.tmp")], f"{[*folder.glob('.*.tmp')]} left over after {story}"
        round_, history = round_ + 1, []
    return killed


def _small_run(root: Path) -> dict:
    """A configuration with dropout, momentum, lr steps and epoch edges on a small made set, whose data it writes."""
    import numpy as np

    from fastrcnn import config as configs
    from fastrcnn.annotations.read import read_data_sets
    from fastrcnn.data.shapes import CLASSES, make_shapes

    make_shapes(root, train=6, test=1, seed=2)
    rng = np.random.default_rng(0)
    config = configs.from_dict({"classes": list(CLASSES)})
    boxes = {}
    for record in read_data_sets([DataSetConfig(root=str(root), split="train")], config.data, config.classes):
        start = rng.integers(0, (record.width - 20, record.height - 20), (60, 2))
        windows = np.hstack((start, start + rng.integers(10, 20, (60, 2))))
        boxes[record.id] = [*windows.tolist(), *record.boxes.tolist()]
    meta = {"format": "xyxy", "origin": 0, "end": "exclusive"}
    (root / "proposals.json").write_text(json.dumps({"meta": meta, "proposals": boxes}))
    dataset = {"root": str(root), "split": "train", "proposals": str(root / "proposals.json")}
    return {
        "classes": list(CLASSES),
        "data": {"train": [dataset], "test": []},
        "image": {"train_short_side": [64, 80]},
        "model": {"backbone": "tiny", "weights": "", "freeze_up_to": "", "fc_width": 16, "dropout": 0.5},
        "sampling": {"rois_per_batch": 16},
        "solver": {"lr": 0.01, "steps": [7, 13], "max_iterations": 20, "clip_gradient": 10.0},
        "train": {"log_every": 1, "checkpoint_every": 3},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tree = _small_run(work / "data")
        (work / "run.yaml").write_text(yaml.safe_dump(tree))
        for i in range(2):  # the first waits for torch to be imported
            begun = time.monotonic()
            run = start("train", "run.yaml", f"output=timed{i}", cwd=work, log=work / "log")
            assert finish(run) == 0, (work / "log").read_text()
            seconds = time.monotonic() - begun
        print(f"an unbroken run takes {seconds:.1f} s", flush=True)
        endless = moments(random.Random(args.seed), seconds, tree["solver"]["max_iterations"])
        killed, done = 0, 0
        while killed < args.kills:
            part = [next(endless) for _ in range(min(10, args.kills - killed))]
            folder = work / f"part{done}"
            folder.mkdir()
            killed += kill_and_resume(tree, folder, part, workers=(0, 1, 2))
            done += 1
            print(
                f"{killed} kills, {time.monotonic() - begun:.0f} s: the weights are those of the unbroken run",
                flush=True,
            )


if __name__ == "__main__":
    main()
