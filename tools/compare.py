"""Is one run better than another? AP of each class, how far it differs, and what these pictures can tell of it.

A RUN is a results folder of tools/test.py, the folder of a run that holds one, or a scored detections.json; all of them
of one test set. With more than two, each is compared with the first. Which differences other pictures would show,
too, is found by a paired bootstrap over the pictures: see fastrcnn/evaluate/compare.py.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _common import parser, run

if TYPE_CHECKING:
    from fastrcnn.evaluate.runs import Comparison


def main() -> None:
    p = parser(__doc__)
    p.add_argument("runs", metavar="RUN", nargs="+", help="two or more; the others are compared with the first")
    p.add_argument("--html", metavar="FILE", help="also write the comparison as a page for a browser")
    args = p.parse_args()
    if len(args.runs) < 2:
        sys.exit("error: compare.py takes two runs or more")

    from fastrcnn.evaluate.results import read_results
    from fastrcnn.evaluate.runs import compare_runs, comparison_page
    from fastrcnn.files import atomic_write

    if args.html:
        refuse_other_than_page(Path(args.html))
    comparison = compare_runs([read_results(path) for path in args.runs])
    print(as_text(comparison, args.runs))
    if args.html:
        with atomic_write(Path(args.html)) as file:
            file.write(comparison_page(comparison, args.runs))
        print(f"wrote {args.html}")


def refuse_other_than_page(path: Path) -> None:
    """Raise FastRCNNError for a file that is there and is no page: results, detections, annotations, anything."""
    from fastrcnn.errors import FastRCNNError

    if path.exists() and not (path.is_file() and path.read_bytes()[:15].lower() == b"<!doctype html>"):
        raise FastRCNNError(f"{path}: is there already and is no page; choose another file for --html")


def as_text(comparison: "Comparison", names: list[str]) -> str:
    """The runs, the settings that differ, a table for each run but the first, and the verdicts."""
    from fastrcnn.evaluate.runs import MARK, letter, row_names, shown_value, verdicts

    letters = [letter(i) for i in range(len(names))]
    lines = [f"{'':3}{'mAP':8}{'95 %':20}{comparison.image_count} pictures"]
    for short, name, (mean, *_) in zip(letters, names, comparison.own, strict=True):
        lines.append(f"{short:3}{mean.value:<8.4f}{f'{mean.low:.4f} to {mean.high:.4f}':20}{name}")
    rows = [["setting", *letters], *([key, *map(shown_value, row)] for key, row in comparison.settings.items())]
    lines += ["", *aligned(rows)] if comparison.settings else ["", "all settings are equal"]
    titles = row_names(comparison)
    for i, differences in enumerate(comparison.differences, start=1):
        rows = [["class", "A", letters[i], f"{letters[i]} - A", "95 %"]]
        columns = (titles, comparison.own[0], comparison.own[i], differences)
        for title, a, b, difference in [*zip(*columns, strict=True)][1:] + [next(zip(*columns, strict=True))]:
            rows.append([title, f"{a.value:.4f}", f"{b.value:.4f}", f"{difference.value:+.4f}"])
            rows[-1].append(f"{difference.low:+.4f} to {difference.high:+.4f}{' *' * difference.excludes_zero}")
            if a.value != a.value:
                rows[-1][1:] = ["no objects"]
        lines += ["", *aligned(rows)]
    return "\n".join([*lines, "", MARK, *verdicts(comparison)])


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines in which the columns stand below each other."""
    count = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(count)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


if __name__ == "__main__":
    run(main)
