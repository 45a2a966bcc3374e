"""Configurations in YAML files: a diff from the defaults or from a `base`, and `key=value` overrides on top.

Of every value it is known where it was written, so that an error names the file or the override to change.
"""

import json
import logging
import math
import re
import shlex
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fastrcnn.config import Config, to_dict
from fastrcnn.config_data import PARTS
from fastrcnn.config_old import without_old_values
from fastrcnn.config_rules import FROM_YAML, ConfigError, Fault, expand, faults
from fastrcnn.files import atomic_write

log = logging.getLogger(__name__)


def configs_folder() -> Path:
    """Where the configurations that come with fastrcnn are: in the installed package, else beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@dataclass(frozen=True)
class Written:
    """Where a value was written: a file or an override, its whole text, and the value's place in it."""

    source: Path | str  # a path, or the override's own text
    text: str
    node: yaml.Node

    def __str__(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else f"override {self.source!r}"


Origins = dict[str, Written]  # by dotted key


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, its bases and `key=value` overrides into a checked Config.

    A name of configs_folder() serves where there is no such file. `base` is looked for beside the file, then in
    configs_folder(). `classes` and parts of `data` that a base names, not the file or its overrides, are said in the
    log, and keys of the file and its overrides that have no effect beside others. Test and validation sets that come
    with a base are left out, so never downloaded, when the file has classes of its own, or training sets of its own
    and is none of configs_folder().

    Raises ConfigError for a missing or malformed file, an unknown key, a wrong type or an impossible value.
    """
    path, shipped = Path(path), configs_folder() / path
    path = shipped if not path.exists() and shipped.is_file() else path
    tree, origins = _read_with_bases(path, ())
    for override in overrides:
        _apply_override(tree, origins, override)
    tree, changes = without_old_values(tree)
    if changes:
        log.warning("%s: is written as for an earlier version; write today: %s", path, ", ".join(changes))
    _say_what_is_inherited(path, tree, origins)
    tree.setdefault("output", f"runs/{path.stem}".replace("$", "$$"))
    try:
        config = Config.model_validate(tree, context=FROM_YAML)
    except ValidationError as e:
        raise ConfigError(_sentence(faults(e, Config), origins, path)) from None
    _say_what_has_no_effect(path, config, origins)
    return config


def save(config: Config, path: str | Path) -> None:
    """Write the resolved configuration as YAML that load reads back."""
    tree = config.model_dump(context=FROM_YAML)
    with atomic_write(path) as file:
        file.write(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode())


def json_schema() -> dict[str, Any]:
    """The JSON schema of a YAML file, from which editors complete and check its keys."""
    schema = Config.model_json_schema()
    description = "A YAML file that this one is a diff from: beside this one, or one that comes with fastrcnn."
    schema["properties"] = {"base": {"type": "string", "description": description}} | schema["properties"]
    del schema["required"]  # a base may name the classes
    return schema


# ---- YAML with the place of each value


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number as in YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would read as a number."""


EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for kind in (_Loader, _Dumper):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))

MAX_VALUES = 100_000  # in a YAML file with all aliases written out; no configuration comes near


def _parse(text: str, source: Path | str, prefix: str = "") -> tuple[Any, Origins]:
    """The value of a YAML text, and where each part of it stands.

    A few lines of aliases to aliases, which stand for more than memory holds, are refused.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, {}
        if _values(root, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases (*name) stand for more than {MAX_VALUES} values; write them out")
        origins: Origins = {}
        _locate(root, prefix, Written(source, text, root), origins)
        return loader.construct_document(root), origins
    finally:
        loader.dispose()


def _values(node: yaml.Node, counted: dict[int, float]) -> float:
    """How many values a node stands for; infinitely many if it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = math.inf
        mapping = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if mapping else node.value
        counted[id(node)] = 1 + sum(_values(child, counted) for child in children)
    return counted[id(node)]


def _locate(node: yaml.Node, key: str, written: Written, origins: Origins) -> None:
    """Note where `node` and all in it stand; a key that is listed twice in a mapping is refused."""
    origins[key] = Written(written.source, written.text, node)
    start = f"{key}." if key else ""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                if f"{start}{name.value}" in origins:
                    raise yaml.YAMLError(f"line {name.start_mark.line + 1}: {start}{name.value} is listed twice")
                _locate(value, f"{start}{name.value}", written, origins)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _locate(value, f"{start}{i}", written, origins)


# ---- bases and overrides


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: is its own base; remove one of the `base` keys")
    try:
        tree, origins = _parse(path.read_text(encoding="utf-8-sig"), path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such configuration file; see {configs_folder()} for those that come with fastrcnn"
        ) from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(e).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, not {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree, origins
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: base: must be the name of a YAML file")
    base_tree, base_origins = _read_with_bases(_find_base(path, base), (*seen, path.resolve()))
    base_tree.pop("expected", None)  # it is of that file
    return _merge(base_tree, tree), _over(base_origins, origins)


def _find_base(path: Path, base: str) -> Path:
    try:
        name = expand(base)
    except ValueError as e:
        raise ConfigError(f"{path}: base: {base}: {e}") from None
    beside, along = path.parent / name, configs_folder() / name
    if beside.exists() or along.exists():
        return beside if beside.exists() else along
    raise ConfigError(f"{path}: base: {beside}: no such configuration file; nor is there {along}")


def _merge(base: dict, diff: dict) -> dict:
    """`diff` over `base`; mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in diff.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _over(base: Origins, diff: Origins) -> Origins:
    """The origins of what _merge gives."""
    replaced = {key for key, written in diff.items() if not isinstance(written.node, yaml.MappingNode)}
    return {key: written for key, written in base.items() if replaced.isdisjoint(_with_parents(key))} | diff


def _with_parents(key: str) -> list[str]:
    """a.b.c, a.b, a"""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _apply_override(tree: dict, origins: Origins, override: str) -> None:
    """Set one dotted key, `data.train.0.root=/voc`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: write key=value, such as solver.max_iterations=100")
    try:
        value, new = _parse(text, override, key)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    node: Any = tree
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, dict) and not isinstance(node.get(part), dict | list):
            node[part] = _default_of(parts[: depth + 1])
        node = node[_place(node, part, override)]
    node[_place(node, parts[-1], override)] = value
    for old in [k for k in origins if k.startswith(f"{key}.")]:
        del origins[old]
    origins |= new or {key: Written(override, text, yaml.ScalarNode("tag:yaml.org,2002:null", ""))}


def _place(node: Any, part: str, override: str) -> Any:
    """What one part of a dotted key stands for in a mapping or a list."""
    if isinstance(node, dict):
        return part
    last = len(node) - 1 if isinstance(node, list) else -1
    if not part.isdecimal() or int(part) > last:
        positions = f"it has the positions 0 to {last}" if last >= 0 else "nothing is there"
        raise ConfigError(f"override {override!r}: there is no {part} to set: {positions}")
    return int(part)


def _default_of(parts: list[str]) -> Any:
    """The default of a list-valued key, so that data.train.0.root can be set on it; else an empty mapping."""
    node: Any = Config.model_construct()
    for part in parts:
        node = getattr(node, part, None)
    return [to_dict(item) for item in node] if isinstance(node, list) and node else {}


# ---- what is said of it


def _say_what_is_inherited(path: Path, tree: dict[str, Any], origins: Origins) -> None:
    """Log which of classes and the parts of data `path` has from a base, and drop sets to evaluate on as load says."""
    own, project = path.resolve(), configs_folder().resolve()

    def of_project(source: Path | str) -> bool:
        return isinstance(source, Path) and project in source.resolve().parents and source.resolve() != own

    def inherited(key: str) -> Path | str | None:
        """The base that names `key`, if neither the file nor an override does."""
        sources = [written.source for k, written in origins.items() if k == key or k.startswith(f"{key}.")]
        named = any(isinstance(source, str) or source.resolve() == own for source in sources)
        return None if named or not sources else sources[0]

    bases = {key: base for key in ("classes", *(f"data.{part}" for part in PARTS)) if (base := inherited(key))}
    new_classes, new_images = (
        key in origins and not of_project(origins[key].source) for key in ("classes", "data.train")
    )
    comes_along = project in own.parents
    for part in PARTS[1:]:
        key = f"data.{part}"
        if of_project(bases.get(key, "")) and (new_classes or (new_images and not comes_along)):
            tree["data"] = tree["data"] | {part: []}
            text = "%s: names no %s; that of %s is left out, as it is not of your data. Name one to evaluate on"
            log.warning(text, path, key, bases.pop(key))
    if bases and not comes_along:
        log.info("%s: inherits %s", path, ", ".join(f"{key} from {base}" for key, base in bases.items()))


# Keys that are used only where another has one of these values.
USED_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "solver.steps": ("solver.schedule", ("step",)),
    "solver.gamma": ("solver.schedule", ("step",)),
    "model.pool_size": ("model.roi_features", ("roi_pool", "roi_align", "warp")),
    "model.pyramid": ("model.roi_features", ("spp",)),
    "model.sampling_ratio": ("model.roi_features", ("roi_align",)),
    "model.aligned": ("model.roi_features", ("roi_align",)),
    "model.warp_size": ("model.roi_features", ("warp",)),
    "test.nms_iou": ("test.soft_nms", (None, "linear")),
    "feature_cache": ("cache_features", (True,)),
}


def _say_what_has_no_effect(path: Path, config: Config, origins: Origins) -> None:
    """Log which keys that `path` or an override sets, to another value than the default, are not used in this run."""
    default = Config.model_construct()
    for key, (other, values) in USED_WITH.items():
        written = origins.get(key)
        own = written and (isinstance(written.source, str) or written.source.resolve() == path.resolve())
        changed, value = attrgetter(key)(config) != attrgetter(key)(default), attrgetter(other)(config)
        if own and changed and value not in values:
            has, wants = (json.dumps(each).strip('"') for each in (value, values[0]))
            text = "%s: %s has no effect with %s=%s; leave it out, or set %s=%s"
            log.warning(text, written, key, other, has, other, wants)


def _origin(origins: Origins, key: str) -> Written | None:
    """Where a key was written, else one in it (an override a.b=1 makes a), else the nearest that holds it."""
    inside = [k for k in origins if k.startswith(f"{key}.")]
    return next((origins[k] for k in (key, *inside, *_with_parents(key)) if k in origins), None)


def _sentence(found: list[Fault], origins: Origins, path: Path) -> str:
    """The first fault in one sentence: an override that has a part in it is named before the file."""
    fault = found[0]
    involved = [origins[key] for key in (fault.key, *fault.others) if key in origins]
    overrides = [written for written in involved if isinstance(written.source, str)]
    written = next(iter([*overrides, *involved]), _origin(origins, fault.key))
    if fault.kind == "string_type" and fault.key in origins:
        not_text = [origins[f.key] for f in found if f.kind == "string_type" and f.key in origins]
        return _quotes(fault, origins[fault.key], not_text)
    return f"{written or path}: {fault.sentence()}"


def _quotes(fault: Fault, written: Written, not_text: list[Written]) -> str:
    """What to write where YAML reads a text as a number, a boolean, null or a date: the same line with quotes."""
    node = written.node
    if not isinstance(node, yaml.ScalarNode) or not node.value or node.start_mark is None:
        return f"{written}: {fault.sentence()}"
    number = node.start_mark.line
    line = written.text.splitlines()[number]
    marks = {
        (other.node.start_mark.column, other.node.end_mark.column)
        for other in not_text
        if other.source == written.source and isinstance(other.node, yaml.ScalarNode) and other.node.value
        if other.node.start_mark.line == number
    }
    for start, end in sorted(marks, reverse=True):
        line = f'{line[:start]}"{line[start:end]}"{line[end:]}'
    names = {bool: str(fault.value).lower(), type(None): "null", int: "a number", float: "a number"}
    value = names.get(type(fault.value), "a date")
    where, line = f" (line {number + 1})", line.strip()
    if isinstance(written.source, str):
        where, line = "", shlex.quote(f"{written.source.partition('=')[0]}={line}")
    return f"{written}: {fault.key}{where}: YAML reads {node.value} as {value}, not as text; put it in quotes: {line}"
