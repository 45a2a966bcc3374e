"""What `pip install .` gives: the tools and the configurations in the wheel, and the `fastrcnn` command over them."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastrcnn

REPO = Path(__file__).resolve().parent.parent
BUILT_FROM = ("fastrcnn", "tools", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which the wheel, built from a copy of this tree, was unpacked."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in BUILT_FROM:
        path = REPO / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(site)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(next(site.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def command(installed: Path, *words: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`fastrcnn WORDS`, started as the script that pip writes starts it."""
    script = "import sys; sys.argv[0] = 'fastrcnn'; from fastrcnn.tools.__main__ import main; main()"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def test_the_wheel_holds_every_module_tool_and_configuration(installed):
    folders = {"fastrcnn": "fastrcnn", "tools": "fastrcnn/tools", "configs": "fastrcnn/configs"}
    for folder, inside in folders.items():
        wanted = {
            p.relative_to(REPO / folder)
            for p in (REPO / folder).rglob("*")
            if p.suffix in (".py", ".yaml", ".json", ".html")
        }
        assert wanted
        missing = [str(path) for path in sorted(wanted) if not (installed / inside / path).is_file()]
        assert not missing, f"{folder}: list their packages in pyproject.toml, [tool.setuptools]: {missing}"
    points = next(installed.glob("*.dist-info")) / "entry_points.txt"
    assert "fastrcnn = fastrcnn.tools.__main__:main" in points.read_text()


def test_every_command_says_how_it_is_used_and_needs_no_torch(installed, tmp_path):
    for name in ("torch", "cv2", "pydantic", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not needed for --help')")
    listed = command(installed, "--help", cwd=tmp_path).stdout
    names = "check proposals train test svms compress detect export convert import_weights configs paper demo bench"
    for name in names.split():
        assert f"\n    {name} " in listed or f"\n    {name}\n" in listed
        assert command(installed, name, "--help", cwd=tmp_path).stdout.startswith(f"usage: fastrcnn {name} ")
    assert "tain" in command(installed, "tain", cwd=tmp_path, code=2).stderr
    assert "fastrcnn demo" in command(installed, cwd=tmp_path, code=2).stderr


def test_configurations_are_listed_shown_and_copied(installed, tmp_path):
    names = {path.relative_to(REPO / "configs").as_posix() for path in (REPO / "configs").rglob("*.yaml")}
    lines = command(installed, "configs", cwd=tmp_path).stdout.splitlines()
    assert {line.split()[0] for line in lines} == names
    assert all(len(line.split()) > 3 for line in lines), "each has a header"
    assert "max_iterations: 2000" in command(installed, "configs", "show", "demo", cwd=tmp_path).stdout
    command(installed, "configs", "copy", "voc07_cpu.yaml", "mine.yaml", cwd=tmp_path)
    before = (tmp_path / "mine.yaml").read_text()
    assert "lr: 0.0002" in before
    schema = before.splitlines()[0].split("$schema=")[1]
    assert Path(schema).is_file(), "editors find the schema from the copy too"
    refused = command(installed, "configs", "copy", "demo.yaml", "mine.yaml", cwd=tmp_path, code=1).stderr
    assert "mine.yaml" in refused and (tmp_path / "mine.yaml").read_text() == before
    command(installed, "configs", "copy", "demo", cwd=tmp_path)
    refused = command(installed, "configs", "copy", "demo", cwd=tmp_path, code=1).stderr
    assert "demo.yaml" in refused
    assert "fastrcnn configs" in command(installed, "configs", "show", "voc08.yaml", cwd=tmp_path, code=1).stderr


def test_a_packaged_configuration_is_found_by_name_and_a_file_here_goes_first(installed, tmp_path):
    said = command(installed, "train", "demo.yaml", "solver.lrr=1", cwd=tmp_path, code=1).stderr
    assert "solver.lr" in said
    (tmp_path / "demo.yaml").write_text("solver: {bogus: 1}\n")
    assert "bogus" in command(installed, "train", "demo.yaml", cwd=tmp_path, code=1).stderr


def test_version():
    declared = [
        line for line in (REPO / "pyproject.toml").read_text(encoding="utf-8").splitlines() if "version =" in line
    ]
    assert fastrcnn.__version__ in (declared[0].split('"')[1], "0+clone")
    with pytest.raises(AttributeError, match="nothing"):
        _ = fastrcnn.nothing


def test_version_of_the_installed_package(installed, tmp_path):
    assert command(installed, "--version", cwd=tmp_path).stdout.startswith("fastrcnn 0.")
