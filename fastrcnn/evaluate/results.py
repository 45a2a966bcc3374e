"""What results.json says of an evaluation, so that it can be compared with others: its scores and their origin."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrcnn import config as configs
from fastrcnn.config import Config
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_bytes

RESULTS = "results.json"
AGAIN = "score its detections again: tools/test.py CONFIG DETECTIONS.json"


@dataclass(frozen=True)
class Origin:
    """What detections were made and scored with."""

    config: Config  # of the evaluation
    trained: Config | None  # of the weights' training; None where it is not known
    detections: str  # the file; a mere name lies beside results.json

    def to_json(self) -> dict[str, Any]:
        trained = configs.to_dict(self.trained) if self.trained else None
        return {"detections": self.detections, "config": configs.to_dict(self.config), "trained": trained}


def named_from(folder: str | Path, path: str | Path) -> str:
    """How Origin.detections names a file: a folder of results that is moved whole keeps its own."""
    path = Path(path).resolve()
    return path.name if path.parent == Path(folder).resolve() else str(path)


def trained_for(detections: str | Path) -> Config | None:
    """The configuration that the network of these detections was trained with, as the results beside them say."""
    try:
        numbers = json.loads((Path(detections).parent / RESULTS).read_bytes())
        known = numbers["detections"] == Path(detections).name and numbers["trained"]
        return configs.from_dict(numbers["trained"]) if known else None
    except (OSError, ValueError, TypeError, KeyError, FastRCNNError):  # none, or of an earlier version
        return None


@dataclass(frozen=True, eq=False)
class Results:
    """An evaluation as it was left in a folder."""

    path: Path  # results.json
    origin: Origin
    ap: dict[str, float | None]

    @property
    def detections(self) -> Path:
        return self.path.parent / self.origin.detections


def read_results(path: str | Path) -> Results:
    """Those of a results folder, of the folder of a run that holds one, or beside a detections.json.

    Raises FastRCNNError, naming the file, where there are none, or what a comparison needs is not in them.
    """
    path = Path(path)
    if not path.exists():
        raise FastRCNNError(f"{path}: no such file or folder; give a results folder of tools/test.py, or of a run")
    folders = [path, path / "results"] if path.is_dir() else [path.parent]
    found = next((folder / RESULTS for folder in folders if (folder / RESULTS).is_file()), None)
    if found is None:
        raise FastRCNNError(
            f"{path}: there is no {RESULTS}; give a results folder of tools/test.py, the folder of a run that was "
            "tested, or a detections.json that was scored"
        )
    try:
        numbers = json.loads(read_bytes(found, AGAIN))
        ap, detections = dict(numbers["ap"]), str(numbers["detections"])
        config, trained = (
            configs.from_dict(tree, str(found)) if tree else None for tree in (numbers["config"], numbers["trained"])
        )
        if config is None or not config.data.test:
            raise KeyError("config.data.test")
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise FastRCNNError(
            f"{found}: lacks what a comparison needs ({type(e).__name__}: {e}), as in earlier versions; {AGAIN}"
        ) from None
    results = Results(found, Origin(config, trained, detections), ap)
    if path.is_file() and path.name != RESULTS and path.resolve() != results.detections.resolve():
        raise FastRCNNError(f"{path}: {found} is not of this file but of {results.detections}; {AGAIN}")
    return results
