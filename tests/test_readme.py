"""What the READMEs show is so: links and files are there, commands parse, keys and YAML fit the schema, Python runs."""

import argparse
import json
import re
import runpy
import shlex
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config_files import load
from fastrcnn.data.shapes import CLASSES, make_shapes
from fastrcnn.model.weights import build, save_weights

REPO = Path(__file__).resolve().parent.parent
TOOLS = REPO / "tools"
DOCS = sorted({*REPO.glob("*.md"), *REPO.glob("[a-z]*/README.md")} - {REPO / "CHANGELOG.md"})  # speaks of the past
MADE_BY_USERS = ("my.yaml", "mine.yaml", "data.yaml", "exp.yaml")

TORCHRUN = get_args_parser()

each_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(REPO).as_posix())


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages; "" for those that name none."""
    text = path.read_text(encoding="utf-8")
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language in languages]


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The names that headings can be linked by."""
    headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_and_files_are_there(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name}: the link to {target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{path.name}: {name} has no heading #{anchor}"
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.])(?:fastrcnn|tools|configs|tests)/[\w./+-]*(?![\w./+<*-])", text):
        assert (REPO / name.rstrip(".")).exists(), f"{path.name}: {name} is not there"
    for name in re.findall(r"(?<![\w/.+*])([\w+-]+\.yaml)\b", text):
        known = any((REPO / "configs").rglob(name)) or name in MADE_BY_USERS
        assert known, f"{path.name}: {name} is none of configs/"


class Parsed(BaseException):
    """Raised in a tool in place of its work; holds its arguments."""


def parse(words: list[str], monkeypatch) -> argparse.Namespace:
    """The arguments that a tool, `python tools/x.py ...` or `fastrcnn x ...`, makes of a command line."""

    def stopping(method):
        def parse_and_stop(self, args=None, namespace=None):
            raise Parsed(method(self, args, namespace))

        return parse_and_stop

    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        patched.setattr(signal, "signal", lambda *_: None)
        patched.setattr(sys, "path", [str(TOOLS), *sys.path])
        script = TOOLS / "__main__.py" if words[0] == "fastrcnn" else REPO / words[1]
        patched.setattr(sys, "argv", [str(script), *words[1 if words[0] == "fastrcnn" else 2 :]])
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(script), run_name="__main__")
        sys.modules.pop("_common")
    return parsed.value.args[0]


def commands(path: Path) -> list[list[str]]:
    """Those of blocks, and those in running text that are more than the name of a tool."""
    lines = "\n".join(blocks(path, "", "sh", "shell", "bash")).splitlines()
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"(python|fastrcnn|make|torchrun) ", line)]
    inline = re.findall(r"`((?:python tools/|fastrcnn |make |torchrun --)[^`]+)`", prose(path))
    return found + [words for words in map(shlex.split, inline) if len(words) > 2 or words[0] == "make"]


@each_document
def test_commands_parse_and_their_settings_fit_the_schema(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPO / "configs")
    for name in MADE_BY_USERS:
        (tmp_path / name).write_text("base: voc07.yaml\n")
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    for words in commands(path):
        line = " ".join(words)
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in words[1:]), line
            continue
        if words[0] == "torchrun":
            started = TORCHRUN.parse_args(words[1:])
            words = [started.training_script, *started.training_script_args]
            words = words if started.no_python else ["python", *words]
        if words[0] == "python" and not words[1].startswith("tools/"):
            continue  # python -m pytest
        if {"-h", "--help", "--version"} & {*words}:
            with pytest.raises(SystemExit):
                parse(words, monkeypatch)
            continue
        words = ["demo.yaml" if word == "CONFIG" else word for word in words]
        args = parse(words, monkeypatch)
        if hasattr(args, "config"):
            load(args.config, [word for word in args.overrides if "..." not in word])
    capsys.readouterr()


def is_key(dotted: str) -> bool:
    """Whether the schema has this dotted key; a number, N or * stands for a place in a list."""
    node = configs.from_dict({"classes": ["any"], "data": {"test": [{"split": "test"}]}})
    for part in dotted.split("."):
        if isinstance(node, list):
            node = node[0]
            if part.isdecimal() or part in ("N", "*"):
                continue
        if not hasattr(type(node), "model_fields") or part not in type(node).model_fields:
            return False
        node = getattr(node, part)
    return True


@each_document
def test_keys_and_flags_are_known(path):
    sections = "data|proposals|image|model|sampling|solver|train|test"
    files = r"(?:py|yaml|json|safetensors|md|png|txt|jpg|svg|npz|mat|part)\b"
    tools = "".join(p.read_text(encoding="utf-8") for p in [*TOOLS.glob("*.py"), *(REPO / "tests").glob("*.py")])
    for code in re.findall(r"`([^`\n]+)`", prose(path)):
        for key in re.findall(rf"(?<![\w./])(?:{sections})\.(?!{files})[\w.*]+", code):
            assert is_key(key.rstrip(".")), f"{path.name}: `{code}`: {key} is no key of a configuration"
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
            known = (
                f'"{flag}"' in tools
                or flag in TORCHRUN.format_help()
                or code.startswith(("pip ", "git ", "pytest ", "uv "))
            )
            assert known, f"{path.name}: `{code}`: no tool takes {flag}"


@each_document
def test_a_tool_takes_the_options_that_are_said_of_it_and_settings_are_keys(path):
    for code in re.findall(r"`([^`\n]+)`", prose(path)):
        for name, words in re.findall(r"(?<![\w/])(?:tools/)?(\w+)\.py((?: [^;,`]+)?)", code):
            if (TOOLS / f"{name}.py").exists():
                text = (TOOLS / f"{name}.py").read_text(encoding="utf-8")
                for flag in {*re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", words)} - {"--help"}:
                    assert f'"{flag}"' in text, f"{path.name}: `{code}`: {name}.py takes no {flag}"
        for key in re.findall(r"(?<![\w.(, -])([a-z_]+(?:\.\w+)*)=(?!=|True|False|\")", code):
            assert is_key(key), f"{path.name}: `{code}`: {key} is no key of a configuration"


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory):
    """What the commands in the READMEs are about, small: pictures with XML beside them, and a run trained on them."""
    folder = tmp_path_factory.mktemp("user")
    make_shapes(folder / "set", train=6, test=4, seed=3)
    (folder / "my_pictures").mkdir()
    for file in (*(folder / "set/JPEGImages").iterdir(), *(folder / "set/Annotations").iterdir()):
        shutil.copy(file, folder / "my_pictures")
    shutil.copytree(folder / "set/JPEGImages", folder / "holiday_pictures")
    shutil.copy(next((folder / "set/JPEGImages").iterdir()), folder / "street.jpg")
    sets = {
        part: [{"format": "folder", "root": "my_pictures", "proposals": "my.safetensors", "split": split}]
        for part, split in (("train", "set/ImageSets/Main/train.txt"), ("test", "set/ImageSets/Main/test.txt"))
    }
    tree = {
        "classes": list(CLASSES),
        "data": {**sets, "workers": 0},
        "image": {"train_short_side": [96], "test_short_side": [96]},
        "model": {"backbone": "tiny", "weights": None, "freeze_up_to": None, "fc_width": 96},
        "solver": {"max_iterations": 4},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(tree))
    return folder


def run_in(folder: Path, words: list[str], monkeypatch) -> None:
    """A tool at work in a folder, in this process."""
    with monkeypatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(signal, "signal", lambda *_: None)
        patched.setattr(sys, "path", [str(TOOLS), *sys.path])
        patched.setattr(sys, "argv", words[1:])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPO / words[1]), run_name="__main__")
        sys.modules.pop("_common")
    assert not ended.value.code, " ".join(words)


def is_short(words: list[str]) -> bool:
    """Of the user's own small set, and not what measures time or takes long."""
    long = {"tools/bench.py", "--proposals-sample"} & {*words}
    if words[0] != "python" or not words[1].startswith("tools/") or long:
        return False
    rest = [word for word in words[2:] if re.search(r"\.yaml$|^runs/", word)]
    return bool(rest) and all(re.match(r"my\.yaml|runs/(?!voc07)", word) for word in rest)


def test_short_commands_run(users_folder, tmp_path, monkeypatch, capsys):
    """Block after block as they stand, each in a folder with a run of its own: whether it trains itself or not."""
    for line in ("proposals.py my.yaml", "train.py my.yaml", "test.py my.yaml runs/my"):
        run_in(users_folder, shlex.split(f"python tools/{line}"), monkeypatch)
    for name in ("demo", "first", "second", "third"):
        shutil.copytree(users_folder / "runs/my", users_folder / "runs" / name)
    ran = 0
    for number, block in enumerate(text for path in DOCS for text in blocks(path, "", "sh", "shell", "bash")):
        lines = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("python ")]
        short = [words for words in lines if is_short(words)]
        if short and not any("tools/export.py" in words and not find_spec("onnxruntime") for words in short):
            folder = shutil.copytree(users_folder, tmp_path / str(number))
            if any(words[1] == "tools/train.py" and "--resume" not in words for words in short):
                shutil.rmtree(folder / "runs/my")
            for words in short:
                run_in(folder, words, monkeypatch)
                ran += 1
    capsys.readouterr()
    assert ran > 8


@each_document
def test_yaml_and_json_blocks_are_read(path, tmp_path):
    for i, text in enumerate(blocks(path, "yaml")):
        tree = yaml.safe_load(text)
        tree = tree if "base" in tree or "classes" in tree else {"base": "voc07.yaml", **tree}
        written = tmp_path / f"{i}.yaml"
        written.write_text(yaml.safe_dump(tree), encoding="utf-8")
        load(written)
    for text in blocks(path, "json"):
        json.loads(text)


@each_document
def test_python_blocks_run(path, tmp_path, monkeypatch, capsys):
    found = blocks(path, "python")
    if not found:
        return
    monkeypatch.chdir(tmp_path)
    tree = {"classes": ["disc", "square"], "model": {"backbone": "tiny", "fc_width": 32, "freeze_up_to": None}}
    config, statistics = configs.from_dict(tree), TargetStatistics(torch.zeros(3, 4), torch.ones(3, 4))
    for name in ("runs/demo", "runs/voc07"):
        Path(name).mkdir(parents=True)
        save_weights(f"{name}/model.safetensors", build(config), config, statistics)
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    cv2.imwrite("street.jpg", cv2.resize(picture, (240, 180)))
    for i, code in enumerate(found):
        if "onnxruntime" in code:
            continue  # tests/test_onnx.py runs it
        Path(f"block{i}.py").write_text(code, encoding="utf-8")
        runpy.run_path(f"block{i}.py")
    capsys.readouterr()
