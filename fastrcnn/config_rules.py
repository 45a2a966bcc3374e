"""What the sections of a configuration share: strict types, limits to put beside a field, and errors in plain words."""

import difflib
import os
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import SerializationInfo, ValidationInfo

from fastrcnn.errors import FastRCNNError


class ConfigError(FastRCNNError):
    """A configuration that cannot be: names the file or the override, the key, and the nearest valid key or value."""


LARGEST = 10**9  # of a count; no setting comes near, and what is larger is a slip of the hand
FROM_YAML = {"yaml": True}  # validation context: a user's file, whose paths may hold ~ and environment variables
STORED = {"stored": True}  # validation context: written by us, maybe by an earlier version that had fewer rules

Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

VARIABLE = r"\$(?:(\$)|(\w+)|\{(\w+)\})" + (r"|%(\w+)%" if os.name == "nt" else "")


def expand(path: str) -> str:
    """`path` with ~ and $NAME, ${NAME} (on Windows %NAME% too) written out; $$ is a dollar sign.

    Raises ValueError naming a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        dollar, *names = match.groups()
        name = next((n for n in names if n), "")
        if not dollar and name not in os.environ:
            raise ValueError(f"its environment variable {name} is not set (a dollar sign itself is written $$)")
        return dollar or os.environ[name]

    return re.sub(VARIABLE, value, os.path.expanduser(path))  # noqa: PTH111 - Path would change ./ and //


def _expanded(path: str, info: ValidationInfo) -> str:
    try:
        return expand(path) if info.context == FROM_YAML else path
    except ValueError as e:
        raise PydanticCustomError("rule", "{rule}", {"rule": f"a path that can be written out: {e}"}) from None


def _escaped(path: str, info: SerializationInfo) -> str:
    return path.replace("$", "$$") if info.context == FROM_YAML else path


PathText = Annotated[str, Field(min_length=1), AfterValidator(_expanded), PlainSerializer(_escaped)]


class Section(BaseModel):
    """One mapping of a configuration. Every value is checked, also when it is assigned: ConfigError names the key."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, validate_assignment=True, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as e:
            raise ConfigError(faults(e, type(self))[0].sentence()) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # sections inside others are built without it

    def __setattr__(self, name: str, value: Any) -> None:
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError as e:
            self.__dict__.update(before)  # a rule across fields fails when the wrong value is in place already
            raise ConfigError(faults(e, type(self))[0].sentence()) from None

    def require(self, ok: bool, key: str, rule: str, *others: str) -> None:
        """For validators: `key` of this section must be `rule`, which `others` of its keys have a part in."""
        if not ok:
            value = attrgetter(key)(self)
            raise PydanticCustomError("rule", "{rule}", {"key": key, "value": value, "rule": rule, "others": others})


class Fault:
    """One thing wrong with a tree: its dotted key, those that have a part in it, the value, and what it must be."""

    def __init__(self, error: ErrorDetails, section: type[Section]):
        self.section, self.context = section, error.get("ctx", {})
        self.kind, self.value = error["type"], self.context.get("value", error["input"])
        self.unknown = self.kind in ("extra_forbidden", "invalid_key", "no_such_attribute")
        last = len(error["loc"]) - 1 if self.unknown else None  # the user's own key, whatever it is
        where = [  # without the tags of the kinds that a key may have
            part for i, part in enumerate(error["loc"]) if i == last or not str(part).startswith("<")
        ]
        self.location = [*where, *([self.context["key"]] if "key" in self.context else [])]
        self.key = ".".join(map(str, self.location))
        self.others = [".".join(map(str, [*where, other])) for other in self.context.get("others", ())]

    def sentence(self) -> str:
        """The fault in one sentence; the name of a section on its own is put before the keys."""
        name, schema = self.section.model_config.get("title"), self.section.model_json_schema()
        start = f"{name}." if name else ""
        if self.unknown:
            known = _below(_node(schema, self.location[:-1]), schema)["properties"]
            near = difflib.get_close_matches(str(self.location[-1]), known, n=1, cutoff=0.0)[0]
            nearest = ".".join(map(str, [*self.location[:-1], near]))
            return f"unknown key {start}{self.key}; the nearest valid key is {start}{nearest}"
        rule = self.context["rule"] if self.kind == "rule" else _rule(_node(schema, self.location), schema)
        key = f"{start}{self.key}".rstrip(".") or "the configuration"
        found = "missing" if self.kind == "missing" else _shown(self.value)
        return f"{key} is {found}; it must be {rule}"


def faults(error: ValidationError, section: type[Section]) -> list[Fault]:
    """What is wrong, unknown keys first: what is missing is often only misspelt."""
    found = [Fault(e, section) for e in error.errors(include_url=False)]
    return sorted(found, key=lambda fault: not fault.unknown)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 2**63:
        return "too large a number"
    try:
        text = repr(value.model_dump() if isinstance(value, Section) else value)
    except ValueError:  # Python refuses to write out numbers of more than 4,300 digits
        return f"a {type(value).__name__} with too large a number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _node(schema: dict[str, Any], location: Sequence[int | str]) -> dict[str, Any]:
    """The part of a JSON schema that describes a location; references are followed."""
    node = schema
    for part in location:
        below = _below(node, schema)
        node = below["items"] if isinstance(part, int) else below["properties"][part]
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return node


def _below(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The items and properties that a node may have."""
    return {key: kind[key] for kind in _kinds(node, schema) for key in ("items", "properties") if key in kind}


def _kinds(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds of value that a node allows: itself, or several."""
    if "$ref" in node:
        return _kinds(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    several = node.get("anyOf") or node.get("oneOf") or []
    return [kind for n in several for kind in _kinds(n, schema)] or [node]


def _rule(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a value must be, from the JSON schema of its field."""
    kinds = _kinds(node, schema)
    if len(kinds) > 1:
        return " or ".join(_rule(kind, schema) for kind in kinds)
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    if node.get("type") == "array":
        least, most = node.get("minItems"), node.get("maxItems")
        count = f" of {least}" + (f" to {most}" if least != most else "") if least and most else ""
        return f"a list{count}, each item {_rule(node['items'], schema)}"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    names |= {"string": "text that is not empty"}
    bounds = [
        f"{words} {node[key]:,}".removesuffix(".0")  # of older pydantic, which writes 1 as 1.0
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "greater than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
        )
        if key in node
    ]
    return " ".join([names.get(node.get("type", ""), "a mapping of keys to values"), " and ".join(bounds)]).strip()


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values in nested dictionaries by their dotted keys; a place in a list of dictionaries is a key, too."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(dotted(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
