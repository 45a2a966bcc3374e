"""Runs of several processes, as torchrun starts them; on the CPU, by gloo."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from test_propose import in_this_process

from fastrcnn import config as configs
from fastrcnn import ranks
from fastrcnn.data.propose import propose
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.detect_set import detect_part
from fastrcnn.evaluate.run import DETECTIONS, evaluate_weights
from fastrcnn.files import read_tensors
from fastrcnn.ranks import ALONE, Ranks, joined
from fastrcnn.train import loop
from fastrcnn.train.checkpoint import checkpoints
from fastrcnn.train.loop import train

TRAIN = Path(__file__).resolve().parents[1] / "tools/train.py"
needs_gloo = pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available() or not dist.is_gloo_available(),
    reason="needs torchrun with gloo, and POSIX signals",
)


def torchrun(count: int, *words: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parents[1])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *words]
    return subprocess.Popen(
        [str(word) for word in command], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ran(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def accumulated(tree):
    """20 iterations of two mini-batches of two images, with dropout, momentum, clipping and a step of the rate."""
    tree["solver"] |= {"accumulate": 2, "max_iterations": 20, "steps": [12]}
    return tree


def config_of(tree, output, **sections):
    merged = {**tree, "output": str(output)}
    for name, keys in sections.items():
        merged[name] = {**tree.get(name, {}), **keys}
    return configs.from_dict(merged)


def difference(a: Path, b: Path) -> float:
    first, second = read_tensors(a / "model.safetensors")[0], read_tensors(b / "model.safetensors")[0]
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("sections", [{}, {"sampling": {"rois_per_batch": 16, "hard_candidates": 40}}])
def test_accumulated_batches_are_one_large_batch(accumulated, tmp_path, sections):
    several, one = {"sampling": {"rois_per_batch": 32}, **sections}, sections.get("sampling", {})
    train(config_of(accumulated, tmp_path / "several", **several))
    rois = 2 * several["sampling"]["rois_per_batch"]
    large = {"sampling": {**one, "images_per_batch": 4, "rois_per_batch": rois}, "solver": {"accumulate": 1}}
    train(config_of(accumulated, tmp_path / "one", **large))
    assert 0 <= difference(tmp_path / "several", tmp_path / "one") < 1e-6
    accumulated["seed"] = 4
    train(config_of(accumulated, tmp_path / "other", **several))
    assert difference(tmp_path / "several", tmp_path / "other") > 1e-3


@needs_gloo
@pytest.mark.parametrize(("mined", "more", "counts"), [(None, [], (2, 4)), (40, ["train.eval_every=10"], (2,))])
def test_any_number_of_ranks_gives_the_same_weights(accumulated, tmp_path, mined, more, counts):
    """Up to the rounding of sums. With hard examples, fewer RoIs than were asked for are learnt from in some
    iterations; there, too, both ranks make the stored features and share the evaluations on the way."""
    accumulated["sampling"]["hard_candidates"] = mined
    if mined:
        more = [*more, "cache_features=true", f"feature_cache={tmp_path / 'features'}"]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(accumulated))
    train(config_of(accumulated, tmp_path / "1"))
    for count in counts:
        said = ran(torchrun(count, TRAIN, file, f"output={tmp_path / str(count)}", *more))
        assert said.count("evaluate it with") == 1 and f"on cpu, {count} ranks" in said
        assert difference(tmp_path / "1", tmp_path / str(count)) < 1e-6
        assert (said.count("iteration 20: mAP"), said.count("to make")) == ((1, 1) if mined else (0, 0))
    if mined:
        alone = tmp_path / "alone"
        evaluate_weights(config_of(accumulated, tmp_path / "2"), tmp_path / "2" / "model.safetensors", alone)
        assert (alone / DETECTIONS).read_bytes() == (tmp_path / "2" / "evaluation" / DETECTIONS).read_bytes()


def changed_train(folder: Path, change: str) -> Path:
    """tools/train.py with a change of fastrcnn."""
    script = folder / "changed.py"
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(TRAIN.parent)!r})",
        "import _common",
        "import train",
        "def main():",
    ]
    lines += [f"    {line}" for line in (*change.strip().splitlines(), "train.main()")]
    lines += ['if __name__ == "__main__":', "    _common.run(main, 'resume it', parallel=True)"]
    script.write_text("\n".join(lines))
    return script


HIGH_SCALE = """
from fastrcnn.train import loop
loop.make_scaler = lambda model: loop.torch.amp.GradScaler("cpu", init_scale=2.0**26)
"""
SLOW = """
import time
from pathlib import Path
from fastrcnn.detect.detector import Detector
plain = Detector.detect
def slow(*args):
    Path({at!r} + _common.os.environ["RANK"]).touch()
    time.sleep(0.5)
    return plain(*args)
Detector.detect = slow
"""


@needs_gloo
def test_a_resumed_run_of_three_ranks_is_the_unbroken_one_bit_for_bit(accumulated, tmp_path):
    """Sums of three numbers depend on their order; and four images are no multiple of three ranks. In float16, with a
    scale of the loss that makes gradients overflow: a rank that left out another step than the others would go on from
    other weights than those that are saved."""
    file, whole, broken = tmp_path / "run.yaml", tmp_path / "whole", tmp_path / "broken"
    file.write_text(yaml.safe_dump({**accumulated, "precision": "float16"}))
    train = changed_train(tmp_path, HIGH_SCALE)
    said = ran(torchrun(3, train, file, f"output={whole}"))
    assert 3 < said.count("a gradient overflowed") < 13
    ran(torchrun(3, train, file, f"output={broken}", "solver.max_iterations=13"))
    said = ran(torchrun(3, train, file, f"output={broken}", "--resume"))
    assert difference(whole, broken) == 0 and said.count("a gradient overflowed") < 3


@needs_gloo
def test_ranks_search_proposals_in_parts_and_one_joins_them(tree, tmp_path, monkeypatch):
    for part in ("train", "test"):
        tree["data"][part][0]["proposals"] = str(tmp_path / "p.safetensors")
    file, alone = tmp_path / "run.yaml", tmp_path / "alone.safetensors"
    file.write_text(yaml.safe_dump(tree))
    said = ran(torchrun(2, TRAIN.with_name("proposals.py"), file, "--processes", 1))
    assert said.count("boxes an image in") == 2 and "12 of 12 images are finished already" in said
    for part in ("train", "test"):
        tree["data"][part][0]["proposals"] = str(alone)
    monkeypatch.setattr("fastrcnn.proposals.make._search_all", in_this_process)
    assert len(list(propose(configs.from_dict(tree)))) == 2
    assert (tmp_path / "p.safetensors").read_bytes() == alone.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process of a rank in /proc")
@needs_gloo
def test_a_killed_rank_ends_the_others_and_the_run_resumes_alone(accumulated, tmp_path):
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    accumulated["train"]["checkpoint_every"] = 2
    file.write_text(yaml.safe_dump(accumulated))
    process = torchrun(2, TRAIN, file, f"output={run}", "solver.max_iterations=100000")
    end = time.monotonic() + 200
    while not checkpoints(run) and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(rank_below(process.pid, 1), signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0 and output.count("another rank has ended or hangs") == 1
    done = int(checkpoints(run)[-1].stem.split("_")[1])
    train(config_of(accumulated, run, solver={"max_iterations": done + 2}), resume=True)
    assert int(checkpoints(run)[-1].stem.split("_")[1]) == done + 2


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process of a rank in /proc")
@needs_gloo
def test_ctrl_c_in_an_evaluation_on_the_way_ends_all_ranks_with_one_sentence(accumulated, tmp_path):
    """It has reached the second rank alone; the first has to hear of it in the middle of its share."""
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(accumulated))
    process = torchrun(
        2, changed_train(tmp_path, SLOW.format(at=str(tmp_path / "at"))), file, f"output={run}", "train.eval_every=2"
    )
    end = time.monotonic() + 200
    while not all((tmp_path / f"at{rank}").exists() for rank in (0, 1)) and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(rank_below(process.pid, 1), signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert output.count("interrupted: resume it") == 1 and "another rank" not in output, output
    assert len(checkpoints(run)) == 1


def rank_below(parent: int, rank: int) -> int:
    """The process of a rank that torchrun has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:  # gone
            continue
    raise AssertionError("no such rank")


@needs_gloo
@pytest.mark.parametrize("searched", [False, True])
def test_ranks_share_the_images_of_an_evaluation(accumulated, tmp_path, searched):
    """And the search, where there is no file of proposals."""
    if searched:
        accumulated["data"]["test"][0]["proposals"] = None
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(accumulated))
    config = config_of(accumulated, tmp_path / "run", solver={"max_iterations": 15})
    weights = train(config)
    alone = evaluate_weights(config, weights, tmp_path / "alone")
    said = ran(torchrun(2, TRAIN.with_name("test.py"), file, weights, "--output", tmp_path / "two"))
    assert said.count(alone.table) == 1 and said.count("searching for the proposals of 2 images") == searched
    both = [(tmp_path / folder / "detections.json").read_bytes() for folder in ("alone", "two")]
    assert both[0] == both[1] and not list((tmp_path / "two").glob("*partial*"))


class ApartFrom(Ranks):
    """A rank that hears nothing of the others."""

    def gather(self, value):
        return [value]


def test_what_some_ranks_have_detected_is_not_detected_again(accumulated, tmp_path, monkeypatch):
    """The evaluation of one process does what is left of three, one of which was lost."""
    config = config_of(accumulated, tmp_path / "run", solver={"max_iterations": 15})
    weights = train(config)
    alone = evaluate_weights(config, weights, tmp_path / "alone")
    asked, original = [], Detector.detect
    monkeypatch.setattr(Detector, "detect", lambda *args: asked.append(args[-1]) or original(*args))
    for rank in (2, 0):
        detect_part(config, weights, tmp_path / "parts", ApartFrom(rank, 3))
    assert len(asked) == 2 and len(list((tmp_path / "parts").glob("*partial*"))) == 2
    joined_up = evaluate_weights(config, weights, tmp_path / "parts")
    assert len(asked) == len({*asked}) == 4 and joined_up.ap == alone.ap
    both = [(tmp_path / folder / "detections.json").read_bytes() for folder in ("alone", "parts")]
    assert both[0] == both[1] and not list((tmp_path / "parts").glob("*partial*"))


def test_more_ranks_than_images_is_refused_with_what_would_do(accumulated, tmp_path, monkeypatch):
    accumulated["solver"]["accumulate"] = 1
    with pytest.raises(FastRCNNError, match=r"3 ranks cannot share 2 images, .* or set solver.accumulate=2"):
        loop._refuse_too_many(config_of(accumulated, tmp_path), Ranks(0, 3))
    loop._refuse_too_many(config_of(accumulated, tmp_path), Ranks(0, 2))


@pytest.mark.parametrize(("other", "what"), [(("b", "s"), "data"), (("a", "t"), "settings"), (("a", "s"), None)])
def test_ranks_that_see_other_data_or_settings_say_so(other, what, tree, monkeypatch):
    three = Ranks(0, 3)
    monkeypatch.setattr(three, "gather", lambda mine: [("a", "s"), ("a", "s"), other])
    check = lambda: loop._refuse_other_data(configs.from_dict(tree), "a", three)  # noqa: E731
    if what is None:
        check()
    else:
        with pytest.raises(FastRCNNError, match=f"^rank 2: has other {what} than rank 0; give all"):
            check()


@pytest.fixture
def two():
    """The pulses of two ranks, without their threads, which look at each other each time that they are asked to."""
    store = dist.HashStore()
    return [ranks._Pulse(store, Ranks(rank, 2)) for rank in (0, 1)]


def test_the_others_end_by_what_one_has_ended_by_and_only_that_one_says_it(two, monkeypatch):
    monkeypatch.setattr(ranks, "CHECK", 0)
    two[0].check()
    assert not two[1].end("a.jpg: is damaged")
    with pytest.raises(FastRCNNError, match=r"^a.jpg: is damaged$"):
        two[0].check()
    assert two[0].end("a.jpg: is damaged")


def test_what_each_has_found_on_its_own_is_said_by_both(two):
    assert not two[0].end("a.jpg: is damaged") and not two[1].end("b.jpg: is damaged")


def test_an_interrupt_reaches_all_and_is_waited_for(two, monkeypatch):
    monkeypatch.setattr(ranks, "CHECK", 0)
    two[0].end("")
    with pytest.raises(KeyboardInterrupt):
        two[1].check()
    clock = iter([0.0, 1.0, 2.0, ranks.HEARD])  # the other does not come
    monkeypatch.setattr(ranks.time, "monotonic", lambda: next(clock))
    two[0].wait_for_others()
    assert next(clock, None) is None
    two[1].end("")
    clock = iter([0.0])
    two[0].wait_for_others()


@pytest.mark.parametrize(("why", "raised"), [("", KeyboardInterrupt), ("a.jpg: is damaged", FastRCNNError)])
def test_a_lost_rank_that_has_said_why_is_not_said_to_be_lost(two, why, raised):
    two[1].end(why)
    with pytest.raises(raised, match=f"^{why}$"), ranks._loss_told(two[0]):
        raise RuntimeError("gloo: Connection closed by peer")


def test_a_lost_rank_is_said_and_other_errors_pass(two):
    with pytest.raises(FastRCNNError, match="^2 ranks: another rank has ended or hangs"), ranks._loss_told(two[0]):
        raise RuntimeError("gloo: Connection closed by peer")
    with pytest.raises(RuntimeError, match="^shapes"), ranks._loss_told(two[0]):
        raise RuntimeError("shapes differ")


def test_alone_nothing_is_asked_of_others():
    values = torch.arange(3.0)
    assert ALONE.main and ALONE.sum(values) is values and ALONE.total(7) == 7
    assert (ALONE.any(True), ALONE.any(False), ALONE.gather("x")) == (True, False, ["x"])
    assert ALONE.share(range(5)) == range(5) and ALONE.parallel(model := torch.nn.Linear(1, 1)) is model
    assert sorted(i for rank in range(3) for i in Ranks(rank, 3).share(range(8))) == list(range(8))


def test_what_torchrun_has_not_set_is_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(FastRCNNError, match="WORLD_SIZE=two are not the numbers"), joined("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FastRCNNError, match=r"cannot meet the others at None:None .*--master-port"), joined("cpu"):
        pass


def test_ranks_on_cuda_without_a_gpu_are_said(monkeypatch):
    """Not that a port may be taken, which no other port would mend."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    with pytest.raises(FastRCNNError, match="device: cuda cannot be used by 2 ranks.*no GPU; use cpu"), joined("cuda"):
        pass


def test_a_port_in_use_is_said(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(FastRCNNError, match="if another program has the port"), joined("cpu"):
            pass


def test_a_rank_without_a_pulse_is_given_up(monkeypatch):
    """Neither one that beats while it is waited for, nor one that was not looked at for long."""
    store, clock = dist.HashStore(), [1000.0]
    monkeypatch.setattr(ranks.time, "monotonic", lambda: clock[0])
    ours, other = (ranks._Pulse(store, Ranks(rank, 2)) for rank in (0, 1))
    for beat in range(100):
        clock[0] += 300 if beat == 50 else 10
        store.set(other.key, str(beat))
        ours.check()
    with pytest.raises(RuntimeError, match="Timed out: no pulse/1"):
        for _ in range(7):
            clock[0] += 10
            ours.check()
    assert 1000 + 300 + 990 + 50 < clock[0] <= 1000 + 300 + 990 + 70
