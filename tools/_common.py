"""What every tool shares: its arguments, its log, and errors as one sentence."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable


def parser(description: str, config: bool = False, weights: str | None = None) -> argparse.ArgumentParser:
    """A parser. With `config`, it takes CONFIG first and `key=value` overrides last; `weights` is WEIGHTS' help."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config:
        result.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo.yaml")
    if weights:
        result.add_argument("weights", metavar="WEIGHTS", help=weights)
    if config:
        result.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="solver.max_iterations=100")
    return result


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
