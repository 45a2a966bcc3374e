import yaml

from fastrcnn import config as configs
from fastrcnn import config_files
from fastrcnn.config_recipes import RECIPES
from fastrcnn.config_rules import dotted

NEW = {  # the value that each code has, where they differ
    "data.drop_difficult": (False, True),
    "proposals.min_size": (1, 2),
    "sampling.aspect_grouping": (False, True),
    "model.size_to_last_pixel": (True, False),
    "solver.bias_weight_decay": (0.0, None),
    "test.detections_per_class": (40, None),
}


def flat(**tree):
    return dotted(configs.to_dict(configs.from_dict({"classes": ["a"], **tree})))


def test_recipes_are_what_the_two_codes_do():
    old, new, defaults = flat(recipe="fast-rcnn"), flat(recipe="py-faster-rcnn"), flat()
    differ = {key: (old[key], new[key]) for key in defaults if old[key] != new[key] and key != "recipe"}
    assert differ == NEW
    assert {key for key in defaults if [old[key], new[key]] != [defaults[key]] * 2} == {"recipe", *NEW}
    assert all(RECIPES[recipe].keys() <= configs.Config.model_fields.keys() for recipe in RECIPES)


def test_what_a_file_or_its_base_says_wins_and_all_values_are_saved(tmp_path):
    base = {"classes": ["a"], "recipe": "py-faster-rcnn", "data": {"drop_difficult": False}, "solver": {"lr": 0.5}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "test": {"max_detections": 7}}))
    config = config_files.load(tmp_path / "run.yaml", ["proposals.min_size=5"])
    assert (config.data.drop_difficult, config.solver.lr, config.test.max_detections) == (False, 0.5, 7)
    assert (config.proposals.min_size, config.sampling.aspect_grouping) == (5, True)
    config_files.save(config, tmp_path / "saved.yaml")
    assert config_files.load(tmp_path / "saved.yaml") == config
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert saved["sampling"]["aspect_grouping"] and saved["solver"]["bias_weight_decay"] is None
    config.seed = 5  # an assignment does not bring the recipe back
    assert (config.data.drop_difficult, config.test.max_detections) == (False, 7)
