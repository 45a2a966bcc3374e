from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn import config as configs
from fastrcnn.config import Config, ConfigError
from fastrcnn.errors import FastRCNNError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def write(folder, name="run.yaml", **tree):
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


def test_defaults_are_the_recipe_of_the_original():
    """lib/fast_rcnn/config.py and models/VGG16/solver.prototxt."""
    config = configs.from_dict({"classes": ["a"]})
    assert (config.image.train_short_side, config.image.train_long_side, config.image.flip) == ([600], 1000, True)
    sampling = config.sampling
    assert (sampling.images_per_batch, sampling.rois_per_batch, sampling.foreground_fraction) == (2, 128, 0.25)
    assert (sampling.foreground_iou, sampling.background_iou) == (0.5, [0.1, 0.5])
    solver = config.solver
    assert (solver.lr, solver.steps, solver.gamma, solver.max_iterations) == (0.001, [30000], 0.1, 40000)
    assert (solver.momentum, solver.weight_decay, solver.bias_lr_factor, solver.bias_weight_decay) == (0.9, 5e-4, 2, 0)
    assert (solver.warmup_iterations, solver.clip_gradient, config.model.dropout) == (0, 0, 0.5)
    assert (config.model.freeze_up_to, config.model.fc_width, config.model.pool_size) == ("conv2_2", 4096, 7)
    assert (config.test.nms_iou, config.test.score_threshold, config.test.max_detections) == (0.3, 0.05, 100)
    assert (config.proposals.max_per_image, config.seed, config.data.drop_difficult) == (2000, 3, False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_configuration_that_comes_along_is_valid(path):
    assert configs.load(path).output == f"runs/{path.stem}"


def test_a_file_is_a_diff_from_its_base(tmp_path):
    write(tmp_path, "base.yaml", classes=["a"], solver={"lr": 0.5, "gamma": 0.2}, seed=9)
    path = write(tmp_path, base="base.yaml", solver={"lr": 0.25})
    config = configs.load(path, ["solver.gamma=0.3", "image.train_short_side=[480, 600]"])
    assert (config.solver.lr, config.solver.gamma, config.seed, config.classes) == (0.25, 0.3, 9, ["a"])
    assert config.image.train_short_side == [480, 600]


def test_overrides_reach_into_lists(tmp_path):
    path = write(tmp_path, classes=["a"])
    assert configs.load(path, ["data.train.0.root=/voc"]).data.train[0].root == "/voc"
    path = write(tmp_path, classes=["a"], data={"train": [{"split": "x"}, {"split": "y"}]})
    config = configs.load(path, ["data.train.1.root=/voc", "classes.0=b"])
    assert [d.split for d in config.data.train] == ["x", "y"]
    assert config.data.train[1].root == "/voc" and config.classes == ["b"]


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("classes: [a]\nsolver: {lr: 1e-3}\n")
    assert configs.load(path, ["solver.weight_decay=5e-4"]).solver == configs.SolverConfig(lr=0.001, weight_decay=5e-4)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"clases": ["a"]}, "unknown key clases; the nearest valid key is classes"),
        ({"solver": {"max_iteration": 1}}, "solver.max_iteration; the nearest valid key is solver.max_iterations"),
        ({"data": {"train": [{"splt": "x"}]}}, "data.train.0.splt; the nearest valid key is data.train.0.split"),
        ({"solver": {"lr": "fast"}}, "solver.lr"),
        ({"solver": 3}, "solver: must be a mapping"),
        ({"data": {"train": {"split": "x"}}}, "data.train: must be a list"),
        ({"classes": []}, "classes"),
        ({"classes": ["Cat", "cat "]}, "cat stands twice"),
        ({"classes": ["background"]}, "without background"),
        ({"sampling": {"rois_per_batch": 127}}, "sampling.rois_per_batch is 127; it must be a multiple"),
        ({"sampling": {"foreground_fraction": 2}}, "sampling.foreground_fraction is 2.0; it must be between 0 and 1"),
        ({"sampling": {"background_iou": [0.1, 0.6]}}, "no RoI can be both"),
        ({"sampling": {"background_iou": [0.5, 0.1]}}, "low < high"),
        ({"model": {"backbone": "vgg61"}}, "one of vgg16, tiny"),
        ({"model": {"dropout": 1.0}}, "less than 1"),
        ({"solver": {"lr": 0}}, "solver.lr is 0.0; it must be greater than 0"),
        ({"solver": {"lr": float("nan")}}, "solver.lr is nan"),
        ({"solver": {"steps": [20, 10]}}, "growing iteration numbers"),
        ({"image": {"train_short_side": []}}, "image.train_short_side"),
        ({"data": {"train": [{"format": "voc", "split": ""}]}}, "data.train.0.split is empty"),
        ({"data": {"train": [{"format": "tfrecord"}]}}, "one of voc, folder, coco, yolo"),
        ({"data": {"xml_origin": 2}}, "data.xml_origin is 2; it must be one of 0, 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, tree, words):
    path = write(tmp_path, **{"classes": ["a"], **tree})
    with pytest.raises(ConfigError) as error:
        configs.load(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize("override", ["solver.lr", "=3", "data.train.7.root=x", "solver.lr=[", "classes.x=1"])
def test_overrides_that_make_no_sense(tmp_path, override):
    with pytest.raises(ConfigError, match="override"):
        configs.load(write(tmp_path, classes=["a"]), [override])


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such"):
        configs.load(tmp_path / "absent.yaml")
    for name, content in (
        ("list.yaml", b"[1]"),
        ("bad.yaml", b"a: [1"),
        ("latin.yaml", b"\xff\xfe\x00"),
        ("tag.yaml", b"!!python/object:os.system x"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            configs.load(tmp_path / name)
    write(tmp_path, "a.yaml", base="b.yaml")
    write(tmp_path, "b.yaml", base="a.yaml")
    with pytest.raises(ConfigError, match="its own base"):
        configs.load(tmp_path / "a.yaml")


def test_a_saved_configuration_is_read_back(tmp_path):
    config = configs.from_dict({"classes": ["ü"], "solver": {"steps": [1, 2]}, "output": "x"})
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml") == config
    assert isinstance(config, Config)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_our_own_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(FastRCNNError, match=r"run\.yaml"):
        configs.load(path)  # no bytes of 200 or fewer name a class list by chance


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["classes", "data", "solver", "model", "image", "sampling", "test", "train", "seed", "device", "output", "base"]


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_tree_gives_a_configuration_or_our_own_error(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("fuzz") / "run.yaml"
    path.write_text(yaml.safe_dump({"classes": ["a"], **tree}))
    try:
        assert isinstance(configs.load(path), Config)
    except FastRCNNError as e:
        assert "run.yaml" in str(e) or "base" in tree


def test_aliases_are_taken_but_may_not_multiply(tmp_path):
    """Nine lists of nine: 9^9 names, if they were ever written out; by merged mappings too."""
    path = tmp_path / "run.yaml"
    path.write_text("classes: [a]\nimage: {train_short_side: &sides [300, 400], test_short_side: *sides}")
    assert configs.load(path).image.test_short_side == [300, 400]
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    mappings = ["a0: &a0 {x: 1}"]
    mappings += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    for lines in (lists, mappings, ["classes: &a [*a]"]):
        path.write_text("\n".join(lines))
        with pytest.raises(ConfigError, match=r"run\.yaml: is not YAML: its aliases .* stand for more than 100000"):
            configs.load(path)
