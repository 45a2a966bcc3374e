"""The rows of the paper's tables, as configs/paper/ has them: what the paper says, what was run here, what is missing.

What was run here is read from the results.json files of tools/test.py below --runs; settings that are not those of the
row are said with each number.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from _common import CONFIGS, command_line, parser, run, shown

if TYPE_CHECKING:
    from fastrcnn.config import Config
    from fastrcnn.evaluate.results import Results


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--runs", metavar="FOLDER", default="runs", help="where results are looked for (default: runs)")
    args = p.parse_args()

    from fastrcnn.config_files import load

    results = found(Path(args.runs))
    for path in sorted((CONFIGS / "paper").glob("*.yaml")):
        config = load(path)
        if config.expected is None:
            continue
        number = "a curve" if config.expected.mAP is None else f"{config.expected.mAP:.1f}"
        print(f"paper/{path.name}: {config.expected.source}, {config.expected.row}: paper {number}")
        for line in [*here(config, results), *(f"missing: {text}" for text in missing(config, path))] or ["not run"]:
            print(f"  {line}")


def found(folder: Path) -> list["Results"]:
    """The results below a folder that are of a row of the paper; those that cannot be read are of none."""
    from fastrcnn.errors import FastRCNNError
    from fastrcnn.evaluate.results import RESULTS, read_results

    results = []
    for path in sorted(folder.rglob(RESULTS)):
        try:
            results.append(read_results(path))
        except FastRCNNError:
            continue
    return [result for result in results if result.origin.config.expected]


def here(config: "Config", results: list["Results"]) -> list[str]:
    """What was measured of this row, each with its pictures, and the settings that are others than the row's."""
    from fastrcnn.evaluate.results import Origin
    from fastrcnn.evaluate.runs import different_settings

    lines = []
    for result in results:
        scores = [value for value in result.ap.values() if value is not None]
        if result.origin.config.expected != config.expected or not scores:
            continue
        sets = ", ".join(dataset.label for dataset in result.origin.config.data.test)
        others = different_settings([Origin(config, None, ""), result.origin])
        text = ", ".join(f"{key}={value[1]}" for key, value in others.items())
        mean = 100 * sum(scores) / len(scores)
        lines.append(f"here {mean:.1f} on {sets} ({result.path.parent}){text and f'; with {text}'}")
    return lines


def missing(config: "Config", path: Path) -> list[str]:
    """What is not there yet that this row reads, and where it comes from."""
    from fastrcnn.annotations.read import absent
    from fastrcnn.model.start import what_to_fetch

    lines = [what_to_fetch(config) or ""]
    for dataset in [*config.data.train, *config.data.test]:
        if lacking := absent(dataset):
            lines.append(lacking)
        elif config.proposals.method != "dense" and dataset.proposals and not Path(dataset.proposals).exists():
            lines.append(f"{dataset.proposals}: {command_line('proposals', shown(path))}")
    return list(dict.fromkeys(filter(None, lines)))


if __name__ == "__main__":
    run(main)
