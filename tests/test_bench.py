"""What tools/bench.py counts is right, and all its words work; its times are not tested."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.append(str(TOOLS))

from fastrcnn.config import ModelConfig  # noqa: E402
from fastrcnn.data.shapes import draw_image  # noqa: E402
from fastrcnn.errors import FastRCNNError  # noqa: E402
from fastrcnn.model.fast_rcnn import FastRCNN  # noqa: E402

from bench import detection, parts, scale, scale_parts, systems, training  # noqa: E402
from bench.report import as_text  # noqa: E402
from bench.scale_set import make_set  # noqa: E402
from bench.timing import BUSY, Stages, busy_programs  # noqa: E402


def test_the_arithmetic_of_the_paper_s_network():
    """VGG16 at 600 x 800 with 2,000 RoIs: 293 GFLOP in the convolutions, 478 in fc6 and fc7."""
    with torch.device("meta"):
        model = FastRCNN(ModelConfig(), 21)
        stages = Stages()
        stages.hook(model.backbone, "conv")
        for name in ("fc6", "fc7"):
            stages.hook(getattr(model, name), "fc")
        model.backbone(torch.empty(1, 3, 600, 800))
        model.fc7(model.fc6(torch.empty(2000, 25088)))
    stages.close()
    assert stages.gflop["conv"] == pytest.approx(293, rel=0.01)
    assert stages.gflop["fc"] == pytest.approx(478, rel=0.01)


def test_backward_counts_for_trained_layers_only():
    """The first trained layer needs no gradient of its input, a frozen one needs nothing."""
    layers = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 30, bias=False), nn.Linear(30, 40, bias=False))
    layers[0].requires_grad_(False)
    stages = Stages()
    for layer in layers:
        stages.hook(layer, "forward", "backward")
    layers(torch.randn(5, 10)).sum().backward()
    stages.close()
    assert stages.gflop["forward"] == pytest.approx(1e-9 * 2 * 5 * (200 + 600 + 1200))
    assert stages.gflop["backward"] == pytest.approx(1e-9 * 2 * 5 * (600 + 2 * 1200))


def test_busy_programs_work_for_as_long_as_asked(monkeypatch):
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **how: started.append(real(*words, **how)) or started[-1])
    with busy_programs(2):
        assert [program.poll() for program in started] == [None, None]
    assert len(started) == 2 and None not in [program.poll() for program in started]


def test_a_busy_program_ends_with_the_one_that_started_it():
    program = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE)
    program.communicate(timeout=20)  # its stdin is closed, as when the other was killed
    assert program.returncode == 0


def test_wrapped_functions_and_generators_are_timed_and_put_back():
    class Owner:
        @staticmethod
        def work(n):
            return n + 1

        @staticmethod
        def steps(n):
            yield from range(n)

    before, stages = (Owner.work, Owner.steps), Stages()
    stages.wrap(Owner, "work", "work")
    stages.wrap(Owner, "steps", "steps")
    assert Owner.work(1) == 2 and list(Owner.steps(3)) == [0, 1, 2]
    stages.close()
    assert (Owner.work, Owner.steps) == before and {"work", "steps"} == stages.seconds.keys()


def test_detection_and_the_assembly_find_the_same():
    result = detection.detect(rounds=1, small=True)
    assert result["checks"]["detections, the same in both"] == 100
    assert result["checks"]["furthest apart (pixels, scores)"] < 1e-3
    assert {"decode", "scale", "conv", "RoI pool", "fc6", "fc7", "siblings", "NMS", "rest"} == {
        row["stage"] for row in result["stages"]["float32"]
    }
    assert result["cases"]["float32"]["images a second"] == pytest.approx(1e3 / result["cases"]["float32"]["ms"])
    shares = [row["share"] for row in result["stages"]["float32"]]
    assert sum(shares) == pytest.approx(1)


def test_systems_of_table_4():
    result = systems.systems(rounds=1, small=True, proposals=40, network="L")
    names = ["Fast R-CNN", "Fast R-CNN, SVD 16/8", "SPPnet, five scales", "R-CNN, 8 of 40 proposals"]
    assert list(result["cases"]) == [*names, systems.STEP]
    step = result["cases"][systems.STEP]
    assert step["hours of training"] == pytest.approx(step["ms"] / 1e3 * 40_000 / 3600)
    whole = result["cases"][names[3]]
    assert whole["seconds an image"] == pytest.approx(5e-3 * whole["ms"])
    assert whole["times as fast as R-CNN"] == result["cases"][names[2]]["times as fast as SPPnet"] == 1
    stages = [{row["stage"] for row in result["stages"][name]} for name in names]
    assert {"conv", "RoI pool", "fc6", "fc7", "rest"} < stages[0] == stages[2] and "warp" in stages[3] - stages[0]
    conv = [{row["stage"]: row["gflop"] for row in result["stages"][name]}["conv"] for name in names]
    pixels = sum(side * min(4 / 3 * side, 2000) for side in systems.FIVE_SCALES) / (600 * 800)
    assert conv[2] / conv[0] == pytest.approx(pixels, rel=0.01)
    assert conv[3] / conv[0] == pytest.approx(8 * 224**2 / (600 * 800), rel=0.02)


def test_systems_of_a_picture_of_the_user_s(tmp_path):
    """Any size; the proposals are those of selective search, which share cells: R-CNN does not save by that."""
    shapes = draw_image(3, 1)[0]
    path = tmp_path / "street.png"
    Image.fromarray(np.pad(shapes, ((10, 0), (40, 0), (0, 0)))).save(path)
    result = systems.systems(rounds=1, small=True, proposals=30, network="L", image=str(path))
    (name,) = [name for name in result["cases"] if name.startswith("R-CNN")]
    assert name == "R-CNN, 8 of 30 proposals"
    conv = [{row["stage"]: row["gflop"] for row in result["stages"][name]}["conv"] for name in ("Fast R-CNN", name)]
    height, width = shapes.shape[0] + 10, shapes.shape[1] + 40
    scale = min(600 / min(height, width), 1000 / max(height, width))
    assert conv[1] / conv[0] == pytest.approx(8 * 224**2 / (scale**2 * height * width), rel=0.02)
    Image.new("RGB", (60, 40)).save(path)
    with pytest.raises(FastRCNNError, match="at least 16"):
        systems.systems(rounds=1, small=True, proposals=30, network="L", image=str(path))


def test_a_training_step_by_stages():
    result = training.train(rounds=1, small=True)
    stages = {row["stage"]: row for row in result["stages"]["float32"]}
    assert {"frozen conv", "conv", "RoI pool", "fc6", "fc7", "losses", "backward", "SGD"} <= stages.keys()
    assert result["cases"]["float32"]["images a second"] == pytest.approx(2e3 / result["cases"]["float32"]["ms"])
    assert stages["backward"]["gflop"] > stages["conv"]["gflop"]
    assert result["checks"]["growth over 20 iterations of the tiny network, MB"] < 200


def test_stored_features_give_the_same_loss():
    result = training.cached(rounds=1, small=True)
    assert all(same is True for name, same in result["checks"].items() if "bit for bit" in name)
    assert len(result["checks"]) == 2


@pytest.mark.parametrize("work", [parts.suppression, parts.evaluation, parts.proposals])
def test_the_other_words(work):
    result = work(rounds=1, small=True)
    assert all(values["ms"] > 0 for values in result["cases"].values())


def test_the_tool_prints_json_and_text():
    words = [sys.executable, str(TOOLS / "bench.py"), "roi_pool", "--small", "--rounds", "1", "--json"]
    result = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert result["checks"] == {"float32: the same bits": True, "bfloat16: the same bits": True}
    assert result["machine"]["torch"] == torch.__version__
    assert "float32: the same bits: True" in as_text(result)


def test_several_words_are_one_report():
    part = {"cases": {"300 candidates": {"ms": 1.5}}, "checks": {"same": True}}
    text = as_text({"machine": {"card": "none"}, "parts": {"nms": part, "detect": {**part, "rates": {"float32": 9.0}}}})
    assert text.splitlines()[:4] == ["card: none", "", "== nms", ""] and text.count("300 candidates: ms 1.5") == 2
    assert text.index("same: True") < text.index("== detect") < text.index("float32: 9 GFLOP/s")


def test_help_needs_no_torch_and_wrong_words_are_refused():
    def bench(*words):
        return subprocess.run([sys.executable, TOOLS / "bench.py", *words], capture_output=True, text=True, check=False)

    assert "4096^3" in bench("--help").stdout
    assert "go" in bench("systems", "--device", "cuda").stderr
    assert "device: 'cuda:99' cannot be used" in bench("nms", "--device", "cuda:99").stderr
    assert "no file" in bench("train", "model.safetensors").stderr
    assert "IMAGE" in bench("detect", "model.safetensors").stderr and bench("nms", "--cached").returncode == 1


def test_parts_of_scale(tmp_path):
    """Each on a small set, in this process; `scale` starts one for each."""
    made = make_set(tmp_path / "set", 6)
    assert len({made.picture(i).read_bytes() for i in range(1, 7)}) == 6
    for form in ("voc", "coco"):
        assert {"s", "peak MB", "loader MB"} < scale_parts.start(made, form, "first", "").keys()
    assert scale_parts.start(made, "voc", "first", "resume")["loader MB"] > 1
    assert (tmp_path / "voc_first" / "checkpoint_00000004.safetensors").exists()
    assert scale_parts.load(made)["ms a batch"] > 0
    assert scale_parts.detect(made)["pictures"] == len(list((tmp_path / "found").glob("*.jpg"))) == 6
    scale_parts.check(made)
    scale_parts.test(made)
    assert (tmp_path / "results" / "report.html").exists()
    detections, objects, count = scale_parts.rows(made)
    assert (len(detections.scores), len(objects.classes), count) == (300, 18, 21)


def test_scale_measures_in_a_process_of_its_own_and_deletes_the_set(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scale, "_parts", lambda made: [("AP", ["voc"])])
    cases = scale.scale([4])["cases"]
    assert cases["4 pictures, AP"].keys() == {"s", "CPU s", "MB"}
    assert cases["4 pictures, made for this"]["proposals MB"] > 0.06

    def interrupted(words, made):
        raise KeyboardInterrupt  # not by a signal, which a shell may have had ignored

    monkeypatch.setattr(scale, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scale.scale([4])
    assert not list(tmp_path.iterdir())
