import json
import logging
import os
import re
import runpy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn import config as configs
from fastrcnn import config_files
from fastrcnn.config import Config, ConfigError
from fastrcnn.config_files import configs_folder, json_schema, load, save
from fastrcnn.errors import FastRCNNError

REPO = Path(__file__).parent.parent
CONFIGS = sorted(configs_folder().rglob("*.yaml"))


def write(folder, name="run.yaml", **tree):
    path = folder / name
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def refused(path, *overrides) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, overrides)
    return str(error.value)


# ---- those that come along


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_configuration_that_comes_along_is_valid_and_names_the_schema(path, caplog):
    with caplog.at_level(logging.INFO):
        config = load(path)
    assert config.output == f"runs/{path.stem}" and config.data.test and not caplog.records
    named = re.fullmatch(r"# yaml-language-server: \$schema=(.*)", path.read_text(encoding="utf-8").splitlines()[0])
    assert (path.parent / named[1]).resolve() == configs_folder() / "schema.json"


def test_those_of_voc_download_what_they_evaluate_on():
    for name in ("voc07.yaml", "voc07+12.yaml"):
        config = load(configs_folder() / name)
        assert [(d.split, d.download) for d in config.data.test] == [("test", True)] and len(config.classes) == 20


def test_the_schema_for_editors_is_current(monkeypatch, tmp_path, capsys):
    """If not: python tools/config_schema.py"""
    assert json.loads((configs_folder() / "schema.json").read_text(encoding="utf-8")) == json_schema()
    assert "base" in json_schema()["properties"] and "required" not in json_schema()
    monkeypatch.setattr(config_files, "configs_folder", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["config_schema.py"])
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    runpy.run_path(str(REPO / "tools/config_schema.py"))["main"]()
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()


# ---- bases and overrides


def test_a_file_is_a_diff_from_its_base(tmp_path):
    write(tmp_path, "base.yaml", classes=["a"], solver={"lr": 0.5, "gamma": 0.2}, seed=9)
    path = write(tmp_path, base="base.yaml", solver={"lr": 0.25})
    config = load(path, ["solver.gamma=0.3", "image.train_short_side=[480, 600]"])
    assert (config.solver.lr, config.solver.gamma, config.seed, config.classes) == (0.25, 0.3, 9, ["a"])
    assert config.image.train_short_side == [480, 600]


def test_a_base_is_looked_for_beside_the_file_and_then_among_those_that_come_along(tmp_path, monkeypatch):
    path = write(tmp_path, base="voc07_laptop.yaml", classes=["a"])
    assert load(path).solver.max_iterations == 6500
    write(tmp_path, "voc07_laptop.yaml", seed=77)
    assert (load(path).seed, load(path).solver.max_iterations) == (77, 40000)
    monkeypatch.setenv("BASES", str(tmp_path))
    assert load(write(tmp_path, base="$BASES/voc07_laptop.yaml", classes=["a"])).seed == 77
    text = refused(write(tmp_path, base="nope.yaml", classes=["a"]))
    assert f"{tmp_path / 'nope.yaml'}: no such" in text and str(configs_folder() / "nope.yaml") in text
    assert "NOT_SET is not set" in refused(write(tmp_path, base="${NOT_SET}/x.yaml"))


def test_overrides_reach_into_lists(tmp_path):
    path = write(tmp_path, classes=["a"])
    assert load(path, ["data.train.0.root=/voc"]).data.train[0].root == "/voc"
    path = write(tmp_path, classes=["a"], data={"train": [{"split": "x"}, {"split": "y"}]})
    config = load(path, ["data.train.1.root=/voc", "classes.0=b"])
    assert [d.split for d in config.data.train] == ["x", "y"]
    assert config.data.train[1].root == "/voc" and config.classes == ["b"]


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("classes: [a]\nsolver: {lr: 1e-3, gamma: 1.e-1, momentum: .5e0}\n")
    solver = load(path, ["solver.weight_decay=5e-4"]).solver
    assert (solver.lr, solver.gamma, solver.momentum, solver.weight_decay) == (0.001, 0.1, 0.5, 5e-4)


# ---- errors name who is at fault


def test_errors_name_the_file_or_the_override_that_set_the_key(tmp_path):
    base = write(tmp_path, "base.yaml", classes=["a"], solver={"gamma": -2}, seed=1)
    path = write(tmp_path, base="base.yaml", solver={"lr": 0.1})
    assert refused(path).startswith(f"{base}: solver.gamma is -2; it must be a number greater than 0")
    assert refused(path, "solver.gamma=1", "solver.lr=-1").startswith("override 'solver.lr=-1': solver.lr is -1; ")
    assert refused(path, "solver={lr: -1, gamma: 1}").startswith("override 'solver={lr: -1, gamma: 1}': solver.lr")
    assert refused(path, "solver.gamma=1", "solver.lrr=1") == (
        "override 'solver.lrr=1': unknown key solver.lrr; the nearest valid key is solver.lr"
    )
    assert refused(write(tmp_path, classes=["a"], sampling={"rois_per_batch": 2}), "sampling.images_per_batch=3") == (
        "override 'sampling.images_per_batch=3': sampling.rois_per_batch is 2; "
        "it must be a multiple of sampling.images_per_batch (3)"
    )
    assert refused(write(tmp_path)) == (
        f"{tmp_path / 'run.yaml'}: classes is missing; it must be a list, each item text that is not empty"
    )


@pytest.mark.parametrize(
    "override",
    ["solver.lr", "=3", "data.train.7.root=x", "solver.lr=[", "classes.x=1", "classes.0.x=1", "classes.0.x.y=1"],
)
def test_overrides_that_make_no_sense(tmp_path, override):
    assert refused(write(tmp_path, classes=["a"]), override).startswith(f"override {override!r}: ")


def test_five_test_scales_want_a_long_side_of_2000(tmp_path):
    path = write(tmp_path, classes=["a"], image={"test_short_side": [480, 576, 688, 864, 1200]})
    assert refused(path) == (
        f"{path}: image.test_long_side is 1000; it must be 2000 for test_short_side up to 1200, "
        "or test_short_side smaller"
    )
    assert load(path, ["image.test_long_side=2000"]).image.test_long_side == 2000
    assert "image.train_long_side is 500; it must be 1000" in refused(
        write(tmp_path, classes=["a"]), "image.train_long_side=500"
    )


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("weight_decay", "1.0", "below 0.1 with solver.optimizer=sgd, such as 0.0005"),
        ("backbone_lr", "3e-05", "at least a hundredth of solver.lr (0.004) with solver.optimizer=sgd"),
    ],
)
def test_numbers_for_adamw_that_a_base_has_are_not_taken_by_sgd(tmp_path, key, value, rule):
    base = write(tmp_path, "adamw.yaml", classes=["a"], solver={"optimizer": "adamw", "lr": 0.0002, key: float(value)})
    own = write(tmp_path, base="adamw.yaml", solver={"optimizer": "sgd", "lr": 0.004})
    with pytest.raises(ConfigError) as error:
        load(own)
    assert str(error.value).startswith(f"{base}: solver.{key} is {value}; it must be {rule}")
    tree = {"classes": ["a"], "solver": {"lr": 0.004, key: float(value)}}
    assert getattr(configs.from_dict(tree).solver, key) == float(value)  # weights of before the rule can be used


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such"):
        load(tmp_path / "absent.yaml")
    for name, content in (
        ("list.yaml", b"[1]"),
        ("bad.yaml", b"a: [1"),
        ("latin.yaml", b"\xff\xfe\x00"),
        ("tag.yaml", b"!!python/object:os.system x"),
        ("twice.yaml", b"classes: [a]\nsolver: {lr: 1}\nsolver: {gamma: 1}"),
        ("base.yaml", b"base: [a]"),
        ("folder_base.yaml", b"base: .."),
    ):
        (tmp_path / name).write_bytes(content)
        assert name in refused(tmp_path / name) or name == "folder_base.yaml"
    assert "line 3: solver is listed twice" in refused(tmp_path / "twice.yaml")
    write(tmp_path, "a.yaml", base="b.yaml")
    write(tmp_path, "b.yaml", base="a.yaml")
    assert "its own base" in refused(tmp_path / "a.yaml")


# ---- text that YAML reads as something else


@pytest.mark.parametrize("word", "off yes 007 3.10 null ~ 1e3 2020-01-01 No 0x1F 1_000 1:30 .5 .inf 12".split())
def test_text_that_yaml_reads_as_something_else_wants_quotes(tmp_path, word):
    path = tmp_path / "run.yaml"
    path.write_text(f"classes:\n  - red\n  - {word}  # mine\n")
    text = refused(path)
    assert text.startswith(f"{path}: classes.1 (line 3): YAML reads {word} as ")
    assert text.endswith(f'put it in quotes: - "{word}"  # mine')
    path.write_text(f"classes: [red, {word}, x, {word}]\n")
    line = refused(path).partition("in quotes: ")[2]
    assert line == f'classes: [red, "{word}", x, "{word}"]'
    path.write_text(line.replace(f', x, "{word}"', ""))
    assert load(path).classes == ["red", word]
    save(load(path), tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml").classes == ["red", word]
    assert f"put it in quotes: 'classes.0=\"{word}\"'" in refused(path, f"classes.0={word}")


def test_other_text_wants_quotes_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("classes: [a]\ndata:\n  train: [{split: 2007, root: off}]\n")
    text = refused(path)
    assert "data.train.0.root (line 3): YAML reads off as false" in text or "data.train.0.split (line 3)" in text
    assert text.endswith('train: [{split: "2007", root: "off"}]')
    path.write_text("classes: [a, ]\ndevice:\n")
    assert refused(path).endswith("device is None; it must be text that is not empty")


# ---- earlier versions


def test_what_earlier_versions_took_is_taken_with_a_word_of_what_to_write(tmp_path, caplog):
    path = tmp_path / "run.yaml"
    path.write_text('classes: [a]\nmodel: {weights: "", freeze_up_to: ""}\ntest: {ap: area}\noutput: ""\n')
    config = load(path, ["solver.clip_gradient=0"])
    assert (config.model.weights, config.test.ap_rule, config.solver.clip_gradient) == (None, "area", None)
    assert config.output == "runs/run"
    today = "model.weights=null, model.freeze_up_to=null, solver.clip_gradient=null, test.ap_rule=area, no output"
    assert caplog.messages == [f"{path}: is written as for an earlier version; write today: {today}"]


# ---- paths


def test_paths_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch$x")
    path = write(
        tmp_path,
        classes=["$SCRATCH"],
        output="~/runs",
        feature_cache="${SCRATCH}/f",
        model={"weights": "$SCRATCH/w.safetensors"},
        data={"train": [{"root": "a$$b", "split": "x", "proposals": "~/p.npz"}]},
    )
    config = load(path)
    assert (config.output, config.feature_cache) == (os.path.join(tmp_path, "runs"), "/scratch$x/f")  # noqa: PTH118
    assert config.model.weights == "/scratch$x/w.safetensors" and config.classes == ["$SCRATCH"]
    assert (config.data.train[0].root, config.data.train[0].proposals) == ("a$b", f"{tmp_path}/p.npz")
    save(config, tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == config
    assert refused(path, "output=$NOT_SET_X/a").startswith("override 'output=$NOT_SET_X/a': output is ")
    assert "its environment variable NOT_SET_X is not set" in refused(path, "data.train.0.annotations=${NOT_SET_X}")


def test_stored_paths_are_as_they_are():
    """On the machine where weights are used, the variables of the one that made them need not be set."""
    config = configs.from_dict({"classes": ["a"], "output": "$NOT_SET_X/~"})
    assert config.output == "$NOT_SET_X/~"


def test_a_run_named_with_a_dollar_has_its_own_folder(tmp_path):
    assert load(write(tmp_path, "a$b.yaml", classes=["a"])).output == "runs/a$b"


# ---- what is inherited


OWN = {"train": [{"format": "folder", "root": "mine"}]}
TEST = [{"format": "folder", "root": "mine_too"}]


def test_classes_and_data_of_a_base_are_not_inherited_silently(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    voc = configs_folder() / "voc07.yaml"

    config = load(write(tmp_path, base="voc07.yaml", classes=["a"], data=OWN))
    assert config.data.test == [] and len(caplog.messages) == 1
    assert f"names no data.test; that of {voc} is left out" in caplog.messages[0]

    caplog.clear()
    config = load(write(tmp_path, base="voc07.yaml", data=OWN))
    assert config.data.test == [] and len(config.classes) == 20
    assert caplog.messages[1] == f"{tmp_path / 'run.yaml'}: inherits classes from {voc}"

    caplog.clear()  # nothing but a rate of its own: it is VOC that is trained on
    config = load(write(tmp_path, base="voc07.yaml", solver={"lr": 0.1}), ["data.train.0.root=/voc"])
    assert config.data.test[0].download and len(caplog.messages) == 1
    assert caplog.messages[0].endswith(f"inherits classes from {voc}, data.test from {voc}")

    caplog.clear()
    config = load(write(tmp_path, base="voc07.yaml", classes=["a"], data=OWN | {"test": TEST}))
    assert config.data.test[0].root == "mine_too" and not caplog.messages
    config = load(write(tmp_path, base="voc07.yaml", classes=["a"], data=OWN), [f"data.test={json.dumps(TEST)}"])
    assert config.data.test[0].root == "mine_too" and not caplog.messages


@pytest.mark.parametrize(
    ("key", "beside", "remedy"),
    [
        ("solver.steps=[1500]", "solver.schedule=linear", "solver.schedule=step"),
        ("solver.gamma=0.5", "solver.schedule=cosine", "solver.schedule=step"),
        ("model.pool_size=6", "model.roi_features=spp", "model.roi_features=roi_pool"),
        ("model.pyramid=[4,2]", "model.roi_features=roi_pool", "model.roi_features=spp"),
        ("model.sampling_ratio=0", "model.roi_features=roi_pool", "model.roi_features=roi_align"),
        ("model.aligned=false", "model.roi_features=roi_pool", "model.roi_features=roi_align"),
        ("model.warp_size=128", "model.roi_features=spp", "model.roi_features=warp"),
        ("test.nms_iou=0.5", "test.soft_nms=gaussian", "test.soft_nms=null"),
        ("feature_cache=elsewhere", "cache_features=false", "cache_features=true"),
    ],
)
def test_a_key_that_is_not_read_in_this_run_is_named(tmp_path, caplog, key, beside, remedy):
    path = write(tmp_path, classes=["a"])
    load(path, [key, beside])
    name = key.partition("=")[0]
    assert caplog.messages == [f"override {key!r}: {name} has no effect with {beside}; leave it out, or set {remedy}"]
    caplog.clear()
    load(path, [key, remedy])
    load(path, [beside])
    assert not caplog.messages


def test_a_key_that_a_base_has_is_not_named_where_it_is_not_read(tmp_path, caplog):
    write(tmp_path, "mine.yaml", classes=["a"], solver={"steps": [1500]})
    path = write(tmp_path, base="mine.yaml", solver={"schedule": "linear"})
    load(path)
    assert not caplog.messages
    path = write(tmp_path, base="voc07_laptop.yaml", classes=["a"], solver={"steps": [1500]}, data=OWN | {"test": TEST})
    load(path)
    assert caplog.messages == [
        f"{path}: solver.steps has no effect with solver.schedule=linear; leave it out, or set solver.schedule=step"
    ]


def test_a_test_set_of_an_own_base_is_kept_and_one_through_it_is_not(tmp_path, caplog):
    write(tmp_path, "mine.yaml", base="voc07.yaml", classes=["a"], data=OWN | {"test": TEST})
    assert load(write(tmp_path, base="mine.yaml", seed=4)).data.test[0].root == "mine_too"
    write(tmp_path, "mine.yaml", base="voc07.yaml", classes=["a"], data=OWN)
    assert load(write(tmp_path, base="mine.yaml", seed=4)).data.test == []


def test_a_validation_set_is_inherited_as_a_test_set_is(tmp_path, monkeypatch, caplog):
    (tmp_path / "along").mkdir()
    monkeypatch.setattr(config_files, "configs_folder", lambda: tmp_path / "along")
    base = write(tmp_path / "along", "base.yaml", classes=["b"], data=OWN | {"validation": TEST})
    assert load(base).data.validation == load(write(tmp_path, base="base.yaml", seed=4)).data.validation != []
    config = load(write(tmp_path, base="base.yaml", classes=["a"], data={"test": TEST}))
    assert config.data.validation == [] and config.data.test and "names no data.validation" in caplog.text


def test_a_copy_of_one_that_comes_along_means_the_same(tmp_path):
    for path in CONFIGS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        config = load(path)
        assert load(tmp_path / path.name) == config
        (tmp_path / path.name).unlink()  # its base is found among those that come along


def test_a_file_put_beside_those_that_come_along_with_classes_of_its_own(tmp_path, monkeypatch, caplog):
    for path in CONFIGS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(config_files, "configs_folder", lambda: tmp_path)
    assert load(write(tmp_path, "mine.yaml", base="voc07.yaml", classes=["a"], data=OWN)).data.test == []
    assert load(tmp_path / "voc07+12.yaml").data.test[0].download


def test_without_data_test_there_is_none(tmp_path):
    assert load(write(tmp_path, classes=["a"])).data.test == []


# ---- writing


def test_a_saved_configuration_is_read_back(tmp_path):
    config = configs.from_dict({"classes": ["ü", "1e3", "off"], "solver": {"steps": [1, 2]}, "output": "x"})
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config


# ---- any input


@given(st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_our_own_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(FastRCNNError, match=r"run\.yaml"):
        load(path)  # no bytes of 200 or fewer name a class list by chance


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
        assert isinstance(load(path), Config)
    except FastRCNNError as e:
        assert "run.yaml" in str(e) or "base" in tree


WORDS = st.sampled_from(["solver", "lr", "data", "train", "0", "classes", "x", "-1", "root", ""])


@given(
    st.lists(WORDS, max_size=4).map(".".join), st.sampled_from(["=", "=a", "=[", "=3", "=off", "={a: 1}", "=[x]", ""])
)
def test_any_override_gives_a_configuration_or_an_error_that_names_it(tmp_path_factory, key, value):
    path = write(tmp_path_factory.mktemp("fuzz"), classes=["a"])
    try:
        assert isinstance(load(path, [key + value]), Config)
    except ConfigError as e:
        assert str(e).startswith(f"override {key + value!r}: ")


def test_aliases_are_taken_but_may_not_multiply(tmp_path):
    """Nine lists of nine: 9^9 names, if they were ever written out; by merged mappings too."""
    path = tmp_path / "run.yaml"
    path.write_text("classes: [a]\nimage: {train_short_side: &sides [300, 400], test_short_side: *sides}")
    assert load(path).image.test_short_side == [300, 400]
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    mappings = ["a0: &a0 {x: 1}"]
    mappings += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    for lines in (lists, mappings, ["classes: &a [*a]"]):
        path.write_text("\n".join(lines))
        with pytest.raises(ConfigError, match=r"run\.yaml: is not YAML: its aliases .* stand for more than 100000"):
            load(path)
