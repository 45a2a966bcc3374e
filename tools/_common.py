"""What every tool shares: its arguments, its log, and errors as one sentence."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / "configs"  # in a clone and in the installed package
by_command: str | None = None  # "train" when started as `fastrcnn train`, None as `python tools/train.py`


def parser(description: str, config: bool = False, weights: str | None = None) -> argparse.ArgumentParser:
    """A parser. With `config`, it takes CONFIG first and `key=value` overrides last; `weights` is WEIGHTS' help."""
    prog = f"fastrcnn {by_command}" if by_command else Path(sys.argv[0]).name
    result = argparse.ArgumentParser(prog, None, description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config:
        result.add_argument(
            "config", metavar="CONFIG", type=config_path, help="a YAML file, or one of configs/ by name: voc07.yaml"
        )
    if weights:
        result.add_argument("weights", metavar="WEIGHTS", help=weights)
    if config:
        result.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="solver.max_iterations=100")
    return result


def config_path(name: str) -> str:
    """`name` where there is such a file; else the configuration of that name that comes with the package, if any."""
    shipped = CONFIGS / name
    return str(shipped) if not Path(name).exists() and shipped.is_file() else name


def command(tool: str) -> str:
    """How to start another tool, in the way this one was started."""
    return f"fastrcnn {tool}" if by_command else f"python {Path(sys.argv[0]).with_name(tool + '.py')}"


def shown(path: object) -> str:
    """A path as it is shown: a configuration that comes with the package by the name that the tools take."""
    return str(path).replace(f"{CONFIGS}{os.sep}", "" if by_command else "configs/")


def run(main: Callable[[], int | None]) -> None:
    """Call `main`, and exit with its code; input that the user can mend gives one sentence and exit code 1.

    Ctrl-C and SIGTERM give 130: both are raised as KeyboardInterrupt, also where a shell had SIGINT ignored.
    """
    from fastrcnn.errors import FastRCNNError

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        sys.exit(main())
    except FastRCNNError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: finished work is saved; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
