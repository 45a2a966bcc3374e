"""Fast R-CNN: find proposals, train, evaluate, detect, compress.

Each command is the file of the same name in tools/ (`check` is tools/check_data.py). CONFIG is a YAML file of yours, or
the name of one that comes with the package, such as voc07.yaml.
"""

import argparse
import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
NAMES = (
    "check proposals train test compare svms compress summary detect export convert import_weights configs paper demo "
    "bench"
).split()


def main() -> None:
    """The `fastrcnn` command, and `python tools COMMAND`: run one of the tools as if it had been started by itself."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in NAMES:
        del sys.argv[1]
        sys.path.insert(0, str(TOOLS))
        import _common

        _common.by_command = name
        runpy.run_path(str(_file(name)), run_name="__main__")
        return
    parser = argparse.ArgumentParser("fastrcnn", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands (COMMAND --help says more)")
    for name in NAMES:
        commands.add_parser(name, help=_file(name).read_text(encoding="utf-8").splitlines()[0].strip('"'))
    if not parser.parse_args().version:
        parser.error("name a command, such as: fastrcnn demo")
    import fastrcnn

    print(f"fastrcnn {fastrcnn.__version__}")


def _file(name: str) -> Path:
    return TOOLS / ("check_data.py" if name == "check" else f"{name}.py")


if __name__ == "__main__":
    main()
