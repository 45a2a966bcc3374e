"""What the writers of all formats share: a record's files stand under its id."""

from pathlib import Path, PurePosixPath

from fastrcnn.errors import FastRCNNError


def file_of(folder: Path, record_id: str, suffix: str) -> Path:
    """folder/<id><suffix>. Raises FastRCNNError for an id that leads out of the folder."""
    parts = PurePosixPath(record_id).parts
    if not parts or record_id.startswith("/") or ".." in parts or "\0" in record_id:
        raise FastRCNNError(f"{folder}: the id {record_id!r} cannot be a file there; rename the picture")
    return folder / (record_id + suffix)


def write_text(path: Path, text: str) -> None:
    """Write one of many small files, in UTF-8 with "\\n" on every system; not synced one by one to the disk.

    Raises FastRCNNError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except UnicodeEncodeError:
        raise FastRCNNError(f"{path}: holds a name that is no text; rename the class or the picture") from None
    except (OSError, ValueError) as e:
        raise FastRCNNError(f"{path}: cannot be written: {e}; free space or choose another folder") from None


def shortest(value: float) -> str:
    """The shortest text that is read as the same float64; 12 and not 12.0, as people write pixels."""
    return str(int(value)) if value.is_integer() else repr(value)
