import logging
import shutil
from collections import namedtuple
from threading import Event

import pytest
import torch
from test_loop import config_of, same_weights
from tqdm import tqdm

from fastrcnn import config as configs
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.data.loader import BatchDataset
from fastrcnn.data.sampling import PlannedImage
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors, write_tensors
from fastrcnn.model import int8_kernels
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.start import initialise
from fastrcnn.model.weights import build
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.loop import train

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(not int8_kernels.works(), reason="this processor has no exact products of int8")


@pytest.fixture
def cached(tree, tmp_path):
    return {**tree, "cache_features": True, "feature_cache": str(tmp_path / "features")}


def cache_of(tree):
    config = configs.from_dict(tree)
    images = open_data(config.data.train, config).for_training(config.data)
    model = build(config).train()
    initialise(model, config)
    return images, config, model, FeatureCache(images.records, config, model)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("freeze", "mined", "layers"),
    [("conv1", None, None), ("conv3_1", 40, None), ("conv3_2", None, None), ("conv2", 40, ["pool2", "conv3_2"])],
)
def test_training_from_the_cache_is_the_same_bit_for_bit(tree, cached, tmp_path, precision, freeze, mined, layers):
    """Losses and weights, with flips, two scales and a loader process; with and without hard example mining and skip
    pooling."""
    change = {"precision": precision, "model": {**tree["model"], "freeze_up_to": freeze, "pool_layers": layers}}
    change["sampling"] = {**tree["sampling"], "hard_candidates": mined}
    change |= {"image": {"train_short_side": [64, 96], "flip": True}}
    plain = train(config_of({**tree, **change}, tmp_path / "plain"))
    stored = train(config_of({**cached, **change, "data": {**tree["data"], "workers": 1}}, tmp_path / "stored"))
    assert same_weights(plain, stored)
    speed = '"images_per_second"'
    losses = [[line.split(speed)[0] for line in (w.parent / "metrics.jsonl").open()] for w in (plain, stored)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_vgg16_from_the_cache_is_the_same_bit_for_bit(cached):
    """conv1_1 to conv4_3 frozen, bfloat16; what is stored is what the layers give, in their layout."""
    cached |= {"precision": "bfloat16", "model": {"backbone": "vgg16", "weights": "", "freeze_up_to": "conv4_3"}}
    cached["model"]["fc_width"] = 8
    images, config, model, cache = cache_of(cached)
    cache.records, cache.digests = images.records[:1], cache.digests[:1]
    cache.make(model, CPU, Event())
    pixels = model.normalisation
    one = ImageSet(images.records[:1], images.proposals)
    plain = BatchDataset(one, config, pixels.mean, pixels.std)
    stored = BatchDataset(one, config, pixels.mean, pixels.std, cache.features)
    for image, maps in zip(plain[0].images, stored[0].maps, strict=True):
        assert maps.dtype == torch.bfloat16 and maps.permute(1, 2, 0).is_contiguous()
        assert torch.equal(maps, model.frozen_features(image))


def test_a_kill_loses_at_most_one_image_and_nothing_is_made_twice(cached, monkeypatch, caplog):
    *_, model, cache = cache_of(cached)
    made, original = [], FastRCNN.frozen_features

    def counting(self, image):
        if len(made) == 5:
            raise MemoryError
        made.append(1)
        return original(self, image)

    monkeypatch.setattr(FastRCNN, "frozen_features", counting)
    with pytest.raises(MemoryError):
        cache.make(model, CPU, Event())
    assert len(list(cache.folder.glob("*.safetensors"))) == 5
    monkeypatch.setattr(FastRCNN, "frozen_features", lambda self, image: made.append(1) or original(self, image))
    stop = Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        cache.make(model, CPU, stop)
    with caplog.at_level(logging.INFO):
        cache.make(model, CPU, Event())
        cache.make(model, CPU, Event())
    assert len(made) == 16 == len(list(cache.folder.glob("*.safetensors")))  # 8 images and their mirror images
    assert ", 0.00B to make" in caplog.messages[-1]


def test_the_size_that_is_told_is_what_is_written(cached, caplog):
    cached["image"] = {"train_short_side": [96, 333]}
    *_, model, cache = cache_of(cached)
    with caplog.at_level(logging.INFO):
        cache.make(model, CPU, Event())
    told = sum(4 * cache.shapes[cache._size(i, side)].numel() for i, _, side in cache._entries())
    written = sum(t.numel() * 4 for p in cache.folder.glob("*.safetensors") for t in read_tensors(p)[0].values())
    assert told == written and f"{tqdm.format_sizeof(told, 'B')} in " in caplog.text


def test_what_the_numbers_depend_on_names_them(cached, shapes, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(shapes, root)
    cached["data"]["train"][0]["root"] = str(root)
    images, _, model, cache = cache_of(cached)
    same, folder = cache.path(0, False, 96), cache.folder
    names = {cache.path(0, True, 96), cache.path(1, False, 96), cache.path(0, False, 97), same}
    assert len(names) == 4

    others = [{"seed": 9}, {"precision": "bfloat16"}, {"image": {**cached["image"], "train_long_side": 120}}]
    others += [{"model": {**cached["model"], "freeze_up_to": "conv2"}}]
    others += [{"model": {**cached["model"], "normalisation": "caffe"}}]
    folders = {cache_of({**cached, **other})[-1].folder for other in others}
    assert len(folders) == len(others) and folder not in folders

    with images.records[0].path.open("ab") as file:  # the picture changes, its name does not
        file.write(b"\0")
    changed = cache_of(cached)[-1]
    assert changed.path(0, False, 96) != same and changed.path(1, False, 96) == cache.path(1, False, 96)


def test_training_that_changes_later_layers_shares_the_files(cached):
    assert cache_of(cached)[-1].folder == cache_of({**cached, "solver": {**cached["solver"], "lr": 1.0}})[-1].folder


def test_faults_are_told_and_mended(cached, monkeypatch):
    *_, model, cache = cache_of(cached)
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10))
        with pytest.raises(FastRCNNError, match="the disk has 10.0B left; free space, set feature_cache"):
            cache.make(model, CPU, Event())
    cache.make(model, CPU, Event())
    plan = PlannedImage(index=0, flip=False, short_side=96, roi_seed=(0,))
    path = cache.path(plan.index, plan.flip, plan.short_side)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FastRCNNError, match=f"{path.name}: cannot be read .*remove it and --resume"):
        cache.features(plan)
    cache.make(model, CPU, Event())
    assert path.read_bytes() == whole
    write_tensors(path, {"maps": torch.zeros(50, 50, 32)}, {})
    with pytest.raises(FastRCNNError, match=f"{path.name}: is of another image"):
        cache.features(plan)
    with pytest.raises(FastRCNNError, match="no layer is frozen; set model.freeze_up_to"):
        cache_of({**cached, "model": {**cached["model"], "freeze_up_to": ""}})


def plans(cache):
    return [PlannedImage(index=i, flip=flip, short_side=side, roi_seed=(0,)) for i, flip, side in cache._entries()]


@needs_int8
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_maps_in_int8_are_those_of_the_layers_to_a_few_steps(cached, precision):
    cached["model"]["freeze_up_to"] = "conv3_1"
    cached |= {"precision": precision, "image": {"train_short_side": [64, 96], "flip": True}}
    *_, model, whole = cache_of(cached)
    rounded = cache_of({**cached, "cache_precision": "int8"})[-1]
    assert rounded.folder != whole.folder
    for cache in (whole, rounded):
        cache.make(model, CPU, Event())
    apart = []
    for plan in plans(whole):
        expected, maps = whole.features(plan), rounded.features(plan)
        assert maps.dtype == expected.dtype == model.feature_type and maps.stride() == expected.stride()
        assert maps.unique().numel() <= 256 and float(maps.min()) == 0
        apart.append((maps.float() - expected.float()).abs().mean() / rounded.step)
    assert 0.1 < max(apart) < 1.5
    size = {c: sum(p.stat().st_size for p in c.folder.glob("*-*.safetensors")) for c in (whole, rounded)}
    assert size[rounded] < size[whole] * (0.3 if precision == "float32" else 0.55)


@needs_int8
def test_training_from_maps_in_int8_resumes_exactly_and_learns_nearly_the_same(tree, cached, tmp_path, monkeypatch):
    cached["model"]["freeze_up_to"] = "conv3_1"
    cached |= {"cache_precision": "int8", "precision": "bfloat16"}
    whole = train(config_of({**cached, "cache_precision": None}, tmp_path / "whole"))
    at_once = train(config_of(cached, tmp_path / "at_once"))
    half = {**cached, "solver": {**cached["solver"], "max_iterations": 2}}
    train(config_of(half, tmp_path / "halves"))
    monkeypatch.setattr(FeatureCache, "_measure_steps", None)  # they are kept
    assert same_weights(at_once, train(config_of(cached, tmp_path / "halves"), resume=True))
    assert not same_weights(at_once, whole)
    a, b = (read_tensors(path)[0]["fc6.weight"].float() for path in (whole, at_once))
    assert float((a - b).norm()) < 0.05 * float(a.norm())
    with pytest.raises(FastRCNNError, match="was started with other settings.*cache_precision"):
        train(config_of({**cached, "cache_precision": None}, tmp_path / "halves"), resume=True)


@needs_int8
def test_steps_of_int8_are_made_again_where_they_are_lost(cached):
    cached["model"]["freeze_up_to"] = "conv3_1"
    *_, model, cache = cache_of({**cached, "cache_precision": "int8"})
    cache.make(model, CPU, Event())
    steps = read_tensors(cache._steps)[0]
    assert steps.keys() == {"conv1", "conv2", "conv3_1"} and float(steps["conv3_1"]) == cache.step
    cache._steps.unlink()
    made = {path: path.stat().st_mtime_ns for path in cache.folder.glob("*-*.safetensors")}
    cache.make(model, CPU, Event())
    assert read_tensors(cache._steps)[0] == steps and cache.step == float(steps["conv3_1"])
    assert made == {path: path.stat().st_mtime_ns for path in cache.folder.glob("*-*.safetensors")}
    cache._steps.write_bytes(b"not much")
    with pytest.raises(FastRCNNError, match="int8_steps.safetensors: .*or remove it and --resume"):
        cache.make(model, CPU, Event())


def test_what_cannot_be_in_int8_says_so(cached, monkeypatch, caplog):
    cached["cache_precision"] = "int8"
    with pytest.raises(configs.ConfigError, match="cache_precision.*null, or cache_features true"):
        configs.from_dict({**cached, "cache_features": False})
    other = {"backbone": "caffenet", "weights": "", "freeze_up_to": "conv2", "pool_size": 6, "fc_width": 8}
    with pytest.raises(configs.ConfigError, match="cache_precision.*null with model.backbone caffenet: only"):
        configs.from_dict({**cached, "model": {**cached["model"], **other}})
    monkeypatch.setattr(int8_kernels, "works", lambda: False)
    assert cache_of(cached)[-1].folder == cache_of({**cached, "cache_precision": None})[-1].folder
    (said,) = caplog.messages
    assert "no exact products of int8" in said and said.endswith("stored in float32, as if it were null")
