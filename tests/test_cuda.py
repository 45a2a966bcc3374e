"""The step of training and the detector's tensors on CUDA, without a GPU: see fake_cuda.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, backward, fake_cuda, moved

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data.loader import Batch
from fastrcnn.detect.detector import Detector
from fastrcnn.model.checkpoint_file import Checkpoint
from fastrcnn.model.fast_rcnn import FastRCNN, factors
from fastrcnn.train.checkpoint import restore
from fastrcnn.train.solver import make_optimizer, make_scaler
from fastrcnn.train.step import train_step

K = 4
VGG16 = {"backbone": "vgg16", "fc_width": 1024}
TINY = {"backbone": "tiny", "freeze_up_to": "conv1", "fc_width": 64}
NETWORKS = {
    "vgg16": VGG16,
    "vgg_cnn_m_1024": {
        "backbone": "vgg_cnn_m_1024",
        "freeze_up_to": "conv1",
        "pool_size": 6,
        "fc_width": [128, 64],
    },
    "caffenet": {"backbone": "caffenet", "freeze_up_to": "conv1", "pool_size": 6, "fc_width": 64},
    "tiny": TINY,
    "resnet50": {"backbone": "resnet50", "freeze_up_to": "conv4_5", "pool_size": 14, "weights": "made"},
    "skip pooling": VGG16 | {"freeze_up_to": "conv4_3", "pool_layers": ["pool4", "conv5_3"]},
    "roi_align": TINY | {"roi_features": "roi_align"},
    "spp": TINY | {"roi_features": "spp"},
    "warp": TINY | {"roi_features": "warp", "warp_size": 64},
}
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by deepcopy
CASES = [
    *((name, "float32") for name in NETWORKS),
    *((name, "bfloat16") for name in ("tiny", "skip pooling")),
    ("tiny", "float16"),
]


def made_config(network: str, precision: str, **sections: dict) -> Config:
    classes = [f"class {k}" for k in range(1, K)]
    return configs.from_dict({"classes": classes, "model": NETWORKS[network], "precision": precision, **sections})


def made_model(config: Config, device: torch.device) -> FastRCNN:
    with torch.device("meta"):
        model = FastRCNN(config.model, K, config.precision)
    return moved(model, device)


def made_batch(*sizes: tuple[int, int], rois: int = 64) -> Batch:
    """On the CPU, as it comes from the loader."""
    return Batch(
        iteration=7,
        ids=[str(i) for i in range(len(sizes))],
        positions=[*range(len(sizes))],
        images=[torch.empty(3, *size) for size in sizes],
        maps=[],
        scales=[1.6] * len(sizes),
        rois=[torch.empty(rois, 4) for _ in sizes],
        labels=torch.empty(rois * len(sizes), dtype=torch.int64),
        bbox_targets=torch.empty(rois * len(sizes), 4),
    )


def step(config: Config, batch: Batch, device: torch.device = CUDA) -> FastRCNN:
    """train_step; `device` is that of the targets' statistics."""
    model = made_model(config, CUDA).train()
    statistics = TargetStatistics(*torch.empty(2, K, 4, device=device))
    optimizer, scaler = make_optimizer(model, config.solver), make_scaler(model)
    train_step(model, optimizer, batch, statistics, config, scaler=scaler)
    return model


def detect(config: Config, ranks: dict[str, int] | None = None) -> Detector:
    """A picture through the detector, to the boxes that leave it."""
    model = made_model(config, CUDA)
    if ranks:
        model.fc6, model.fc7 = (moved(factors(getattr(model, name), rank), CUDA) for name, rank in ranks.items())
    detector = Detector(model, config, CUDA)
    proposals = np.array([[i / 4, 5, i / 4 + 60, 40] for i in range(60)], np.float32)
    found = detector.detect(np.zeros((60, 80, 3), np.uint8), proposals)
    assert found.boxes.shape == (len(found.scores), 4) and len(found.scores) > 0
    return detector


def small_pictures(**test) -> dict:
    return {"image": {"test_short_side": [64], "test_long_side": 100}, "test": {"max_detections": 4, **test}}


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_a_step_of_training(network, precision, monkeypatch):
    with fake_cuda(monkeypatch) as seam:
        model = step(made_config(network, precision), made_batch((64, 80), (80, 64)).to(CUDA))
        learning = [p for p in model.parameters() if p.requires_grad]
        assert learning and all(p.grad is not None and p.grad.device == CUDA for p in learning)
        assert seam.waits == ["cuda to cpu"]  # losses and norms


@pytest.mark.parametrize(("kind", "states"), [("sgd", ["momentum_buffer"]), ("adamw", ["exp_avg", "exp_avg_sq"])])
def test_a_step_after_a_resume(kind, states, monkeypatch):
    """A checkpoint is read on the CPU."""
    config = made_config("tiny", "float32", solver={"optimizer": kind, "lr": 0.0005})
    with fake_cuda(monkeypatch):
        model = made_model(config, CUDA).train()
        optimizer = make_optimizer(model, config.solver)
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        of_cpu = {state: {name: torch.empty(p.shape) for name, p in learning.items()} for state in states}
        if kind == "adamw":
            of_cpu["step"] = {name: torch.zeros(()) for name in learning}
        statistics = TargetStatistics(*torch.empty(2, K, 4))
        saved = Checkpoint(3, model.state_dict(), of_cpu, statistics, model.normalisation, {}, "")
        restore(saved, model, optimizer)
        for p in learning.values():
            p.grad = torch.empty_like(p)
        optimizer.step()
        kept = [tensor for of_weight in optimizer.state.values() for tensor in of_weight.values()]
        assert len(kept) == len(of_cpu) * len(learning) and all(tensor.device == CUDA for tensor in kept)


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_detection(network, precision, monkeypatch):
    with fake_cuda(monkeypatch):
        detector = detect(made_config(network, precision, **small_pictures()))
        assert all(p.device == CUDA for p in detector.model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"image": {"test_short_side": [40, 64], "test_long_side": 100}},
        small_pictures(flip=True, second_pass=30, box_voting=0.5),
        small_pictures(soft_nms="linear"),
    ],
)
def test_detection_in_other_ways(changes, monkeypatch):
    with fake_cuda(monkeypatch):
        detect(made_config("tiny", "float32", **changes))


def test_detection_with_fewer_weights(monkeypatch):
    with fake_cuda(monkeypatch):
        detect(made_config("tiny", "bfloat16", **small_pictures()), ranks={"fc6": 16, "fc7": 8})


def test_a_step_on_hard_examples(monkeypatch):
    with fake_cuda(monkeypatch):
        config = made_config("tiny", "float32", sampling={"hard_candidates": 300})
        step(config, made_batch((64, 80), (64, 80), rois=300).to(CUDA))


@pytest.mark.parametrize("forgotten", ["images", "rois", "labels", "bbox_targets", "statistics"])
def test_a_tensor_left_on_the_cpu_is_seen(forgotten, monkeypatch):
    with fake_cuda(monkeypatch):
        batch = made_batch((64, 80), (80, 64))
        there = batch.to(CUDA)
        device = CUDA
        if forgotten == "statistics":
            device = torch.device("cpu")
        else:
            there = replace(there, **{forgotten: getattr(batch, forgotten)})
        with pytest.raises(RuntimeError, match="device"):
            step(made_config("tiny", "float32"), there, device)


def test_the_seam_sees_waits_and_generators(monkeypatch):
    with fake_cuda(monkeypatch) as seam:
        x = torch.ones(6, device=CUDA)
        torch.rand(2, generator=torch.Generator(CUDA).manual_seed(1), device=CUDA)
        x.to("cpu", non_blocking=True)
        assert not seam.waits
        assert x.tolist() == 6 * [1.0] and float(x.sum()) == 1 and len(x[x > 0]) == 2 and x.unique().shape == (2,)
        x.new_tensor([1.0, 2.0])
        assert seam.waits == ["cuda to cpu", "_local_scalar_dense", "mask", "_unique2", "cpu to cuda"]
        with pytest.raises(RuntimeError, match="generator is of another device"):
            torch.rand(2, generator=torch.Generator(), device=CUDA)


def test_the_seam_s_backward_is_that_of_torch(monkeypatch):
    """On numbers, on the CPU: branches, a broadcast bias, and a weight that is used twice."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def loss() -> torch.Tensor:
        x = first(first(torch.ones(5, 4)).relu())
        parts = second(x).split(1, dim=1)
        return parts[0].square().sum() + (parts[2] * x).mean()

    loss().backward()
    weights = [*first.parameters(), *second.parameters()]
    expected = [w.grad.clone() for w in weights]
    for w in weights:
        w.grad = None
    backward(loss())
    for w, e in zip(weights, expected, strict=True):
        assert torch.equal(w.grad, e)
