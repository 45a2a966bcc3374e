"""List, show and copy the configurations that come with fastrcnn."""

import re
from pathlib import Path

from _common import CONFIGS, command, parser, run


def main() -> None:
    p = parser(__doc__)
    commands = p.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", help="each with the first line of its header (the default)")
    commands.add_parser("show", help="print one").add_argument("name", metavar="NAME", help="such as voc07.yaml")
    copy = commands.add_parser("copy", help="write a copy of one, to edit; nothing is overwritten")
    copy.add_argument("name", metavar="NAME", help="such as voc07.yaml")
    copy.add_argument("to", metavar="TO", nargs="?", default=".", help="a file or an existing folder (default: here)")
    args = p.parse_args()

    if args.command == "show":
        print(shipped(args.name).read_text(encoding="utf-8"), end="")
    elif args.command == "copy":
        print(f"wrote {copy_config(args.name, args.to)}")
    else:
        paths = sorted(CONFIGS.rglob("*.yaml"))
        names = [path.relative_to(CONFIGS).as_posix() for path in paths]
        width = max(map(len, names))
        for name, path in zip(names, paths, strict=True):
            print(f"{name:{width}}  {headline(path)}")


def shipped(name: str) -> Path:
    """The path of a configuration by its name, with or without .yaml. Raises FastRCNNError for an unknown name."""
    from fastrcnn.errors import FastRCNNError

    path = CONFIGS / name if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise FastRCNNError(
            f"{name}: no configuration of this name comes with fastrcnn; `{command('configs')}` lists them"
        )
    return path


def copy_config(name: str, to: str) -> Path:
    """Copy a configuration into the folder or the file `to`; the path written. Raises FastRCNNError if it exists."""
    from fastrcnn.errors import FastRCNNError

    source = shipped(name)
    target = Path(to) / source.name if Path(to).is_dir() else Path(to)
    text = source.read_text(encoding="utf-8").replace("$schema=", f"$schema={source.parent.as_posix()}/", 1)
    try:
        with target.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise FastRCNNError(f"{target}: exists already and is left as it is; name another file") from None
    except OSError as e:
        raise FastRCNNError(f"{target}: cannot be written: {e.strerror}") from None
    return target


def headline(path: Path) -> str:
    """The start of a YAML file's header, up to the first colon, semicolon or full stop."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = " ".join(line.lstrip("# ") for line in lines if line.startswith("#") and "$schema=" not in line)
    return re.split(r"[.:;](?: |$)", header)[0]


if __name__ == "__main__":
    run(main)
