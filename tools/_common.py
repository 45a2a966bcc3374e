"""What every tool shares: its arguments, its log, and errors as one sentence."""

import argparse
import contextlib
import ctypes
import errno
import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Large tensors in huge pages (Linux): torch asks for fresh memory in each step, and touching it page by page takes 16 %
# of a training step from stored features, 8 % of the convolutions. torch reads this once, before its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Threads of torch (libgomp) that wait for one another do so asleep. By default they spin, and beside a program that
# wants a core, too, they take the time of the one they wait for, after each of the hundreds of operations of a step: a
# small network then learns at a fifth of its speed. Where nothing else runs, spinning gains nothing.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "0")

if os.environ.get("WORLD_SIZE", "1") != "1":
    # torch would warn that DistributedDataParallel found no unused parameters, as it should be.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / "configs"  # in a clone and in the installed package
by_command: str | None = None  # "train" when started as `fastrcnn train`, None as `python tools/train.py`


def parser(description: str, config: bool = False, weights: str | None = None) -> argparse.ArgumentParser:
    """A parser. With `config`, it takes CONFIG first and `key=value` overrides last; `weights` is WEIGHTS' help."""
    prog = f"fastrcnn {by_command}" if by_command else Path(sys.argv[0]).name
    result = argparse.ArgumentParser(prog, None, description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config:
        result.add_argument("config", metavar="CONFIG", help="a YAML file, or one of configs/ by name: voc07.yaml")
    if weights:
        result.add_argument("weights", metavar="WEIGHTS", help=weights)
    if config:
        result.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="solver.max_iterations=100")
    return result


def command(tool: str) -> str:
    """How to start another tool, in the way this one was started."""
    return f"fastrcnn {tool}" if by_command else f"python {Path(sys.argv[0]).with_name(tool + '.py')}"


def command_line(tool: str, *words: object) -> str:
    """A whole command to be copied into this system's shell, which starts `tool` in the way this one was started."""
    path = Path(sys.argv[0])
    if by_command and shutil.which("fastrcnn"):
        start = ["fastrcnn", tool]
    else:
        found = shutil.which("python")
        python = "python" if found and Path(found).samefile(sys.executable) else sys.executable
        start = [python, str(path), tool] if by_command else [python, str(path.with_name(f"{tool}.py"))]
    whole = [*start, *map(str, words)]
    return subprocess.list2cmdline(whole) if sys.platform == "win32" else shlex.join(whole)


def shown(path: object) -> str:
    """A path as it is shown: a configuration that comes with the package by the name that the tools take."""
    return str(path).replace(f"{CONFIGS}{os.sep}", "" if by_command else "configs/")


def keep_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc; call it before long work.

    Each step of training, and each picture, frees gigabytes and asks for them again, and the system gives fresh pages,
    zeroed: a tenth of a step from stored features, a sixth to a third of a picture's convolutions. What is kept is what
    was needed at once, and gaps: 0.5 GB of the 1.4 of VGG16's training.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes at the end of the heap that go back


def is_main() -> bool:
    """Whether this process is the one that speaks: the first of those that torchrun started, or one alone."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[[], int | None], resume: str = "", parallel: bool = False) -> None:
    """Call `main`, and exit with its code; input that the user can fix gives one sentence and exit code 1.

    Ctrl-C and SIGTERM give 130: both are raised as KeyboardInterrupt, also where a shell had SIGINT ignored. `resume`
    then says what was saved and how to resume. `parallel` tools share their work where torchrun has started several of
    them; the others refuse. When the reader of the output has left, as `| head` does, the tool ends
    without a word, with 141 as other programs do.
    """
    from fastrcnn.errors import FastRCNNError

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    logging.basicConfig(level=logging.INFO if is_main() else logging.ERROR, format="%(message)s", stream=sys.stderr)
    if not parallel and os.environ.get("WORLD_SIZE", "1") != "1":
        sys.exit("error: this tool works in one process: start it without torchrun" if is_main() else 1)
    if not is_main():
        os.environ.setdefault("TQDM_DISABLE", "1")  # one bar
    code: int | str | None
    message = ""
    try:
        code = main()
    except SystemExit as e:  # from argparse
        code = e.code
    except FastRCNNError as e:
        said = e.said if e.said is not None else os.environ.get("LOCAL_RANK", "0") != "0"  # one of a machine speaks
        code, message = 1, "" if said else f"error: {e}"
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun ends the ranks that are left
            signal.signal(number, signal.SIG_IGN)
        code, message = 130, f"interrupted{resume and ': '}{resume}" if is_main() else ""
    except OSError:
        if not (_reader_has_left() or _reader_has_left(probe="\n")):  # then it was another pipe or file
            raise
        code = 141
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr)
    sys.exit(141 if _reader_has_left() else code)


def _reader_has_left(probe: str = "") -> bool:
    """Whether stdout or stderr is a closed pipe. It then leads nowhere, for Python flushes once more at its end."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.write(probe)
            stream.flush()
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.EINVAL):  # the second on Windows
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return True
    return False
