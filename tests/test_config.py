import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn import config as configs
from fastrcnn.config import Config, ConfigError
from fastrcnn.config_rules import Section
from fastrcnn.config_train import SolverConfig


def made(**tree) -> Config:
    return configs.from_dict({"classes": ["a"], **tree}, source="run.yaml")


def sections(section=Config):
    """Config and every section below it, data sets included."""
    yield section
    for field in section.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind)


def test_defaults_are_the_recipe_of_the_original():
    """lib/fast_rcnn/config.py and models/VGG16/solver.prototxt."""
    config = made()
    assert (config.image.train_short_side, config.image.train_long_side, config.image.flip) == ([600], 1000, True)
    sampling = config.sampling
    assert (sampling.images_per_batch, sampling.rois_per_batch, sampling.foreground_fraction) == (2, 128, 0.25)
    assert (sampling.foreground_iou, sampling.background_iou) == (0.5, [0.1, 0.5])
    solver = config.solver
    assert (solver.lr, solver.steps, solver.gamma, solver.max_iterations) == (0.001, [30000], 0.1, 40000)
    assert (solver.momentum, solver.weight_decay, solver.bias_lr_factor, solver.bias_weight_decay) == (0.9, 5e-4, 2, 0)
    assert (solver.warmup_iterations, solver.clip_gradient, solver.backbone_lr) == (0, None, None)
    model = config.model
    assert (model.freeze_up_to, model.fc_width, model.pool_size, model.dropout) == ("conv2_2", 4096, 7, 0.5)
    assert (config.test.nms_iou, config.test.score_threshold, config.test.max_detections) == (0.3, 0.05, 100)
    assert (config.proposals.search_cap, config.seed, config.data.drop_difficult) == (2000, 3, False)
    assert (config.data.test, config.train.eval_every, config.test.ap_rule) == ([], None, "11point")


def test_every_field_says_what_it_is_and_sections_are_named_by_their_key():
    for section in sections():
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                assert field.annotation.model_config["title"] == name
            else:
                assert field.description, f"{section.__name__}.{name}"


MISTAKES = [
    ({"data": {"train": [{"split": []}]}}, "data.train.0.split is []; it must be text that is not empty or a list"),
    ({"data": {"train": [{"split": ["a", 3]}]}}, "data.train.0.split.1 is 3; it must be text that is not empty"),
    (
        {"data": {"train": [{"split": {"part": "val", "of": [0.8, 0.2]}}]}},
        "data.train.0.split.part is 'val'; it must be one of train, test",
    ),
    (
        {"data": {"train": [{"split": {"part": "train", "of": [0.8, 0.1]}}]}},
        "data.train.0.split.of is [0.8, 0.1]; it must be two or three shares whose sum is 1",
    ),
    (
        {"data": {"train": [{"split": {"prt": "train", "of": [0.8, 0.2]}}]}},
        "unknown key data.train.0.split.prt; the nearest valid key is data.train.0.split.part",
    ),
    (
        {"data": {"train": [{"split": {"part": "train"}}]}},
        "data.train.0.split.of is missing; it must be a list of 2 to 3, each item a number",
    ),
    ({"clases": ["a"]}, "unknown key clases; the nearest valid key is classes"),
    ({"solver": {"max_iteration": 1}}, "unknown key solver.max_iteration; the nearest valid key is solver.max_iter"),
    (
        {"data": {"train": [{"splt": "x"}]}},
        "unknown key data.train.0.splt; the nearest valid key is data.train.0.split",
    ),
    ({"solver": {"lr": "fast"}}, "solver.lr is 'fast'; it must be a number greater than 0"),
    ({"solver": {"lr": True}}, "solver.lr is True; it must be a number"),
    ({"solver": {"lr": "1e-3"}}, "solver.lr is '1e-3'; it must be a number"),
    ({"solver": {"lr": 0}}, "solver.lr is 0; it must be a number greater than 0"),
    ({"solver": {"lr": float("nan")}}, "solver.lr is nan; it must be a number"),
    ({"solver": {"lr": float("inf")}}, "solver.lr is inf; it must be a number"),
    ({"solver": {"lr": 10**400}}, "solver.lr is too large a number"),
    ({"solver": {"max_iterations": "3"}}, "solver.max_iterations is '3'; it must be a whole number"),
    ({"solver": {"max_iterations": 3.0}}, "solver.max_iterations is 3.0; it must be a whole number"),
    ({"solver": {"max_iterations": True}}, "solver.max_iterations is True; it must be a whole number"),
    ({"solver": {"max_iterations": 10**12}}, "it must be a whole number at least 1 and at most 1,000,000,000"),
    ({"solver": {"backbone_lr": -1.0}}, "solver.backbone_lr is -1.0; it must be a number greater than 0 or null"),
    ({"solver": {"steps": [20, 10]}}, "solver.steps is [20, 10]; it must be growing iteration numbers"),
    (
        {"solver": {"head_iterations": 9, "max_iterations": 9}},
        "solver.head_iterations is 9; it must be less than solver.max_iterations (9)",
    ),
    (
        {"solver": {"schedule": "linear", "warmup_iterations": 9, "max_iterations": 9}},
        "solver.warmup_iterations is 9; it must be less than solver.max_iterations (9)",
    ),
    (
        {"model": {"backbone": "resnet50", "fc_width": 1024}},
        "model.fc_width is 1024; it must be 4096, its default, with backbone resnet50",
    ),
    ({"model": {"backbone": "resnet50", "weights": None}}, "model.weights is None; it must be a name of ResNet50_"),
    (
        {"model": {"freeze_up_to": None}, "solver": {"head_iterations": 9}},
        "solver.head_iterations is 9; it must be 0 where model.freeze_up_to is null",
    ),
    ({"solver": {"steps": 30000}}, "solver.steps is 30000; it must be a list, each item a whole number"),
    ({"solver": 3}, "solver is 3; it must be a mapping"),
    ({"data": {"train": {"split": "x"}}}, "data.train is {'split': 'x'}; it must be a list"),
    ({"data": {"train": [{"format": "voc", "split": None}]}}, "data.train.0.split is None; it must be the name of a"),
    ({"data": {"train": [{"format": "tfrecord"}]}}, "one of voc, folder, coco, yolo"),
    ({"data": {"xml_origin": 2}}, "data.xml_origin is 2; it must be a whole number at least 0 and at most 1"),
    ({"data": {"drop_empty": 1}}, "data.drop_empty is 1; it must be true or false"),
    ({"classes": []}, "classes is []; it must be a list, each item text"),
    ({"classes": ["a", ""]}, "classes.1 is ''; it must be text that is not empty"),
    ({"classes": ["a", " "]}, "names that are not blank"),
    ({"classes": ["Cat", "cat "]}, "cat is listed twice"),
    ({"classes": ["Background"]}, "without background"),
    ({"classes": None}, "classes is None"),
    (
        {"sampling": {"rois_per_batch": 127}},
        "rois_per_batch is 127; it must be a multiple of sampling.images_per_batch",
    ),
    ({"sampling": {"foreground_fraction": 2}}, "sampling.foreground_fraction is 2; it must be a number at least 0 and"),
    ({"sampling": {"background_iou": [0.1, 0.6]}}, "no RoI can be both"),
    ({"sampling": {"background_iou": [0.5, 0.1]}}, "low < high"),
    ({"sampling": {"background_iou": [0.1]}}, "a list of 2"),
    ({"sampling": {"hard_candidates": 64}}, "hard_candidates is 64; it must be more than the 64 RoIs of an image"),
    (
        {"sampling": {"hard_candidates": 300, "foreground_fraction": 0.5}},
        "sampling.foreground_fraction is 0.5; it must be 0.25, its default, with sampling.hard_candidates",
    ),
    (
        {"sampling": {"hard_candidates": 300, "background_iou": [0.2, 0.5]}},
        "sampling.background_iou is [0.2, 0.5]; it must be a list that starts with 0.0 or the default 0.1",
    ),
    ({"model": {"roi_features": "crop"}}, "it must be one of roi_pool, roi_align, spp, warp"),
    ({"model": {"warp_size": 32}}, "model.warp_size is 32; it must be a whole number at least 33"),
    ({"model": {"pyramid": [6, 0]}}, "model.pyramid.1 is 0"),
    (
        {"model": {"roi_features": "spp", "pool_layers": ["pool4", "conv5_3"]}},
        "model.pool_layers is ['pool4', 'conv5_3']; it must be null with model.roi_features spp or warp",
    ),
    (
        {"model": {"backbone": "resnet50", "roi_features": "spp"}},
        "model.roi_features is 'spp'; it must be roi_pool, roi_align or warp with backbone resnet50",
    ),
    (
        {"model": {"roi_features": "warp"}, "cache_features": True},
        "cache_features is True; it must be false with model.roi_features warp",
    ),
    (
        {"model": {"roi_features": "warp"}, "sampling": {"hard_candidates": 300}},
        "sampling.hard_candidates is 300; it must be null with model.roi_features warp",
    ),
    ({"model": {"backbone": "vgg61"}}, "model.backbone is 'vgg61'; it must be one of vgg16, vgg_cnn_m_1024, caffenet"),
    ({"model": {"dropout": 1.0}}, "at least 0 and less than 1"),
    ({"model": {"weights": 3}}, "model.weights is 3; it must be text that is not empty or null"),
    ({"image": {"train_short_side": []}}, "image.train_short_side is []"),
    ({"image": {"train_short_side": [600, 0]}}, "image.train_short_side.1 is 0"),
    ({"train": {"eval_every": 5}}, "train.eval_every is 5; it must be null, or data.validation"),
    ({"seed": -1}, "seed is -1"),
    ({"recipe": "mine"}, "recipe is 'mine'; it must be one of fast-rcnn, py-faster-rcnn or null"),
    ({"sampling": {"target_std": [0.1, 0.2]}}, "sampling.target_std is [0.1, 0.2]; it must be a list of 4"),
    ({"solver": {"train_only": []}}, "solver.train_only is []; it must be a list"),
    (
        {"solver": {"optimizer": "adamw"}},
        "solver.lr is 0.001; it must be below 0.001 with solver.optimizer=adamw, such as 0.0002",
    ),
    (
        {"solver": {"optimizer": "adamw", "lr": 0.0002, "backbone_lr": 0.01}},
        "solver.backbone_lr is 0.01; it must be below 0.001 with solver.optimizer=adamw",
    ),
    (
        {"solver": {"train_only": ["fc6"], "head_iterations": 9}},
        "solver.head_iterations is 9; it must be 0 with solver.train_only",
    ),
    (
        {"solver": {"train_only": ["bbox_pred"], "bbox_loss_weight": 0}},
        "solver.bbox_loss_weight is 0.0; it must be greater than 0 where solver.train_only is bbox_pred alone",
    ),
    ({"test": {"detections_per_class": 101}}, "test.detections_per_class is 101; it must be a whole number at least 1"),
    (
        {"recipe": "fast-rcnn", "test": {"soft_nms": "linear"}},
        "test.soft_nms is 'linear'; it must be null with test.detections_per_class",
    ),
    (
        {"test": {"detections_per_class": 40, "box_voting": 0.5}},
        "test.box_voting is 0.5; it must be null with test.detections_per_class",
    ),
    (
        {"test": {"bbox_regression": False, "second_pass": 9}},
        "test.second_pass is 9; it must be null where test.bbox_regression is false",
    ),
    ({1: 2}, "unknown key 1"),
]


@pytest.mark.parametrize(("tree", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_mistakes_name_the_file_the_key_and_the_rule(tree, words):
    with pytest.raises(ConfigError) as error:
        configs.from_dict({"classes": ["a"], **tree}, source="run.yaml")
    text = str(error.value)
    assert text.startswith("run.yaml: ") and words in text
    assert not any(word in text.lower() for word in ("pydantic", "http", "config'", "input", "validation error"))


@pytest.mark.parametrize("tree", [None, 3, [1], "x", {}])
def test_a_tree_that_is_no_configuration_is_refused(tree):
    with pytest.raises(
        ConfigError, match=r"^run\.yaml: (the configuration is .* must be a mapping|classes is missing)"
    ):
        configs.from_dict(tree, source="run.yaml")


def test_numbers_that_python_does_not_write_out_are_refused_all_the_same():
    for value in (16**5000, [16**5000]):
        with pytest.raises(ConfigError, match=r"^run\.yaml: (seed|solver) is .*too large a number; it must be"):
            made(**{"seed" if isinstance(value, int) else "solver": value})


def test_what_is_assigned_is_checked_and_leaves_the_old_value():
    config = made()
    for section, key, value, words in (
        (config.solver, "lr", -1, "solver.lr is -1; it must be a number greater than 0"),
        (config.solver, "lrr", 1, "unknown key solver.lrr; the nearest valid key is solver.lr"),
        (config.sampling, "images_per_batch", 3, "a multiple of sampling.images_per_batch (3)"),
        (config.image, "train_short_side", [1200], "image.train_long_side is 1000; it must be 2000"),
        (config.image, "test_short_side", [480, 576, 688, 864, 1200], "image.test_long_side is 1000; it must be 2000"),
        (config, "seed", True, "seed is True"),
        (config, "classes", ["A", "a"], "listed twice"),
    ):
        before = copy.deepcopy(config)
        with pytest.raises(ConfigError) as error:
            setattr(section, key, value)
        assert words in str(error.value) and config == before
    with pytest.raises(ConfigError, match=r"^solver\.lr is -1"):
        SolverConfig(lr=-1)
    config.image = configs.ImageConfig(test_short_side=[480, 576, 688, 864, 1200], test_long_side=2000)
    config.solver.lr = 1
    assert config.solver.lr == 1.0 and config != before


def test_configurations_share_nothing_and_travel():
    config = made()
    config.solver.steps.append(40000)
    config.data.train[0].root = "elsewhere"
    assert made().solver.steps == [30000] and made().data.train[0].root != "elsewhere"
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    assert configs.from_dict(configs.to_dict(config)) == config


def test_what_earlier_versions_wrote_is_converted():
    data_set = {"format": "folder", "root": "x", "split": "", "annotations": "", "proposals": "", "download": False}
    old = {
        "data": {"train": [data_set], "test": [dict(data_set)]},
        "model": {"weights": "", "freeze_up_to": ""},
        "solver": {"backbone_lr": 0.0, "clip_gradient": 0},
        "train": {"eval_every": 0},
        "test": {"ap": "area"},
        "output": "",
    }
    before = copy.deepcopy(old)
    config = made(**old)
    assert old == before
    for item in (*config.data.train, *config.data.test):
        assert (item.split, item.annotations, item.proposals) == (None, None, None)
    assert (config.model.weights, config.model.freeze_up_to) == (None, None)
    assert (config.solver.backbone_lr, config.solver.clip_gradient, config.train.eval_every) == (None, None, None)
    assert config.test.ap_rule == "area" and config == configs.from_dict(configs.to_dict(config))
    assert made(image={"test_short_side": [1200], "test_long_side": 1000}).image.test_long_side == 1000
    for wrong in ({"train": {"eval_every": False}}, {"test": {"ap": "area", "ap_rule": "area"}}, {"output": 0}):
        with pytest.raises(ConfigError):
            made(**wrong)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([0, "", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["classes", "data", "solver", "model", "image", "sampling", "test", "train", "seed", "device", "output"]


@given(
    st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=4), st.sampled_from(["lr", "steps", "weights", "train"]), JUNK
)
def test_any_tree_gives_a_configuration_or_our_own_error(tree, key, value):
    for one in (tree, {"solver": {key: value}, "model": {key: value}, "data": {key: [{"root": value}, value]}}):
        try:
            assert isinstance(made(**one), Config)
        except ConfigError as e:
            assert str(e).startswith("run.yaml: ")


def test_the_schema_is_a_floor_below_the_files():
    """Nothing of reading or torch is pulled in by the schema."""
    text = Path(configs.__file__).read_text(encoding="utf-8")
    assert "import yaml" not in text and "import torch" not in text
