"""What configurations of earlier versions wrote otherwise: in weights files, checkpoints and YAML files of users."""

from typing import Any

# What stood for null in files of earlier versions, by section.
OLD_NULLS: dict[str, dict[str, Any]] = {
    "model": {"weights": "", "freeze_up_to": ""},
    "solver": {"backbone_lr": 0, "clip_gradient": 0},
    "train": {"eval_every": 0},
    "data set": {"split": "", "annotations": "", "proposals": ""},
}


def without_old_values(tree: Any) -> tuple[Any, list[str]]:
    """A tree of an earlier version as this one writes it, and the changes as key=value.

    Earlier versions wrote 0 and "" where null stands now, `test.ap` for `test.ap_rule`, and an empty `output`.
    """
    changes: list[str] = []

    def nulled(section: Any, name: str, prefix: str) -> Any:
        if not isinstance(section, dict):
            return section
        old = {
            key: None
            for key, value in OLD_NULLS[name].items()
            if section.get(key) == value and not isinstance(section[key], bool)
        }
        changes.extend(f"{prefix}.{key}=null" for key in old)
        return section | old

    if not isinstance(tree, dict):
        return tree, changes
    new = dict(tree)
    for name in ("model", "solver", "train"):
        if name in new:
            new[name] = nulled(new[name], name, name)
    if isinstance(new.get("data"), dict):
        lists = {part: sets for part, sets in new["data"].items() if isinstance(sets, list)}
        new["data"] = new["data"] | {
            part: [nulled(item, "data set", f"data.{part}.{i}") for i, item in enumerate(sets)]
            for part, sets in lists.items()
        }
    if isinstance(new.get("test"), dict) and "ap" in new["test"] and "ap_rule" not in new["test"]:
        new["test"] = {"ap_rule" if key == "ap" else key: value for key, value in new["test"].items()}
        changes.append(f"test.ap_rule={new['test']['ap_rule']}")
    if new.get("output") == "":
        del new["output"]
        changes.append("no output")
    return new, changes
