"""Every tool on systems other than this one, as far as one can: without POSIX, with `spawn`, in a narrow encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastrcnn.proposals.proposals import read_proposals

ROOT = Path(__file__).parent.parent
TOOLS = sorted(p.stem for p in (ROOT / "tools").glob("*.py") if not p.stem.startswith("_"))

# Python as Windows has it: no library has these modules, and our own files lack what only POSIX has in the others
# (libraries ask sys.platform before they use it, which still says where the test runs).
WITHOUT_POSIX = """
import multiprocessing, os, signal, sys, types

for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
HIDDEN = {"SIGCHLD", "SIGKILL", "SIGHUP", "SIGPIPE", "SIGUSR1", "SIGSTOP", "SIGALRM", "pthread_sigmask"}
HIDDEN |= {"fork", "register_at_fork", "fchmod", "fchown", "chown", "sched_getaffinity", "killpg", "setsid", "getuid"}
HIDDEN |= {"uname", "getpgid", "mkfifo", "statvfs", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "pread", "sysconf"}

class Module(types.ModuleType):
    def __getattribute__(self, name):
        if name in HIDDEN and sys._getframe(1).f_code.co_filename.startswith(OURS):
            raise AttributeError(f"module has no attribute {name!r} on this system")
        return super().__getattribute__(name)

os.__class__ = signal.__class__ = Module
multiprocessing.set_start_method("spawn")
"""


@pytest.fixture(scope="module")
def without_posix(tmp_path_factory):
    """The environment of a Python without what only POSIX has."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        f"OURS = {(f'{ROOT}{os.sep}fastrcnn', f'{ROOT}{os.sep}tools')}\n{WITHOUT_POSIX}", encoding="utf-8"
    )
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def run(env, tool, *args, cwd, code=0, **kwargs):
    command = [sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=300, **kwargs)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


CALL = """
import runpy, sys
if __name__ == "__main__":
    tools = {tools!r}
    sys.path.insert(0, tools)
    for words in {words!r}:
        sys.argv = [f"{{tools}}/{{words[0]}}.py", *words[1:]]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as e:
            assert not e.code, words
"""


def called(env, words, cwd):
    """What tools say that one Python calls one after another; to start it and import torch takes longer than each."""
    (cwd / "call.py").write_text(CALL.format(tools=str(ROOT / "tools"), words=words), encoding="utf-8")
    command = [sys.executable, "call.py"]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def folder(tree, tmp_path, shapes):
    """A user's folder with a configuration whose proposals are still to be made."""
    for part in ("train", "test"):
        tree["data"][part][0]["proposals"] = "own.safetensors"
    tree["data"]["workers"] = 1
    tree["solver"]["max_iterations"] = 2
    tree["output"] = "run"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path


def test_the_tools_work_without_posix(folder, without_posix, shapes):
    weights, picture = "run/model.safetensors", str(next((shapes / "JPEGImages").glob("*.jpg")))
    words = [
        ("check_data", "c.yaml"),  # the proposals are still to be made
        ("proposals", "c.yaml", "--processes", "1"),
        ("check_data", "c.yaml", "--processes", "1"),
        ("train", "c.yaml"),
        ("test", "c.yaml", weights),
        ("compress", weights, "small.safetensors", "--fc6", "4", "--fc7", "4"),
        ("detect", "small.safetensors", picture, "--output", "found"),
    ]
    assert called(without_posix, words, cwd=folder).count("own.safetensors: does not exist yet") == 1
    assert len(read_proposals(folder / "own.safetensors", [])) == 12
    assert (folder / "run/results/results.json").exists()
    assert json.loads((folder / "found/detections.json").read_text(encoding="utf-8"))


def test_every_tool_starts_without_posix(tmp_path, without_posix):
    words = [(tool, "--help") for tool in TOOLS]
    assert called(without_posix, words, cwd=tmp_path).count("usage:") == len(TOOLS)


def test_every_module_is_imported_without_posix(without_posix):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "fastrcnn").rglob("*.py"))
    ]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, env=without_posix, check=True)


def test_what_only_posix_has_is_hidden_from_our_files(without_posix):
    hidden = "assert not hasattr(os, 'fchmod') and not hasattr(signal, 'SIGCHLD')"
    code = f"""
import os, signal
exec(compile({hidden!r}, {str(ROOT / "tools/x.py")!r}, "exec"))
assert hasattr(os, "path") and hasattr(signal, "SIGINT")
"""
    subprocess.run([sys.executable, "-c", code], env=without_posix, check=True)


# ---- the terminal


def test_what_a_terminal_s_encoding_lacks_is_escaped(tree, tmp_path):
    tree["classes"][0] = "żółw"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = run(env, "check_data", "c.yaml", cwd=tmp_path, code=1)
    assert rb"\u017c\xf3\u0142w" in done.stdout.replace(b"\xf3", rb"\xf3")


WRITERS = {
    "a little": "print('line')",
    "much": "[print('line', i) for i in range(100_000)]",
    "to stderr": "[print('line', i, file=sys.stderr) for i in range(100_000)]",
    "a little, and an error": "print('line'); raise FastRCNNError('wrong')",
    "help": "_common.parser('x' * 100_000).parse_args(['--help'])",
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("main", WRITERS.values(), ids=WRITERS)
def test_a_reader_who_leaves_is_no_error(main, unbuffered):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import _common
from fastrcnn.errors import FastRCNNError
sys.stdin.read()
def main():
    {main}
_common.run(main)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    pipe = subprocess.PIPE
    for closed in ("stdout", "stderr") if main == WRITERS["to stderr"] else ("stdout",):
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=pipe, stdout=pipe, stderr=pipe)
        getattr(process, closed).close()
        process.stdin.close()
        said = (process.stdout if closed == "stderr" else process.stderr).read()
        expected = 0 if "stderr" in main and closed == "stdout" else 141
        assert process.wait() == expected or main == WRITERS["help"]  # argparse hides that it could not write
        assert said.strip() in (b"", b"error: wrong") or expected == 0


def test_a_pipe_of_its_own_that_breaks_is_no_reader_who_left(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import _common
def main():
    raise BrokenPipeError(32, "of a worker")
_common.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 1 and b"of a worker" in done.stderr
