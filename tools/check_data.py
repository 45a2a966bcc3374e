"""Check all annotations, images and proposals of a run before training.

Reads every file that CONFIG names, in parallel, and prints what is wrong, with file, object and remedy, the objects of
each class, and how many objects the proposals cover. Exit code 1 if training would be wrong, 0 if all are remarks.
"""

import argparse
from pathlib import Path

from _common import parser, run


def arguments() -> argparse.Namespace:
    p = parser(__doc__, config=True)
    p.add_argument("--processes", type=int, metavar="N", help="how many images at a time; all cores by default")
    p.add_argument("--all", action="store_true", help="list every finding, not the first ten of each kind")
    p.add_argument(
        "--proposals-sample", type=int, metavar="N", help="try other settings of the search on N pictures of data.train"
    )
    p.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw labels, batches and histograms there")
    return p.parse_intermixed_args()


def main() -> int:
    args = arguments()

    from fastrcnn.config_files import load
    from fastrcnn.data.check_report import report_text, trials_text
    from fastrcnn.data.checks import check, readable

    config = load(args.config, args.overrides)
    report = check(config, args.processes)
    print(report_text(report, per_kind=None if args.all else 10))
    if args.proposals_sample:
        from fastrcnn.proposals.trial import try_settings

        records = readable(report, "train")
        trials = try_settings(records, config.proposals, args.proposals_sample, args.processes)
        print(f"\n{trials_text(trials, config.proposals)}")
    if args.pictures:
        from fastrcnn.data.sheets import write_sheets

        written = write_sheets(report, config, args.pictures)
        print(f"\ndrawn: {', '.join(map(str, written)) or 'nothing, as there is no image'}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    run(main)
