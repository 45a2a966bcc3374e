"""Find the proposals of a run's data sets by selective search, and print how many objects they cover.

For each data set of data.train, data.validation and data.test: a .safetensors file in `proposals` is made, or
completed, on all cores (a killed run resumes); files of other formats are only checked. Then recall at IoU 0.5
and 0.7 and average recall (over IoU 0.5 to 1) are printed.

A large set is searched in parts: under torchrun, which starts one for each of its ranks and joins them, or as jobs of
a batch queue with --part 1/8 to --part 8/8, which the same command without --part then joins.
"""

import argparse
import os

from _common import command_line, parser, run, shown


def arguments() -> argparse.Namespace:
    p = parser(__doc__, config=True)
    p.add_argument("--processes", type=int, metavar="N", help="how many images at a time; all cores by default")
    p.add_argument("--part", metavar="K/N", help="search only every Nth image from the Kth on; without recall")
    args = p.parse_intermixed_args()
    if args.part is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        p.error("--part: torchrun makes the parts itself; leave --part out, or start it without torchrun")
    return args


def main() -> None:
    args = arguments()

    from fastrcnn.config_files import load
    from fastrcnn.data.check_report import trials_text
    from fastrcnn.data.propose import propose, propose_part
    from fastrcnn.proposals.trial import SAMPLE, is_low, try_settings
    from fastrcnn.proposals.unfinished import Part

    part = None if args.part is None else Part.parse(args.part)
    config = load(args.config, args.overrides)
    if part:
        for done in propose_part(config, part, args.processes):
            print(f"{done.path}: part {part} is done: {done.images} images, {done.searched} of them searched now")
        join = command_line("proposals", shown(args.config), *args.overrides)
        print(f"when all {part.total} parts are done, join them; what a lost one lacks is then searched:\n{join}")
        return
    missed: list = []  # the records of data sets whose objects the proposals miss
    for found in propose(config, args.processes):
        recall, images = found.recall, len(found.records)
        at = ", ".join(f"{r:.3f} at IoU {t:g}" for t, r in zip(recall.thresholds, recall.overall(), strict=True))
        at += f", average recall {recall.average():.3f}"
        covered = f"recall of {len(recall.best_iou)} objects {at} ({recall.difficult} difficult ones left out)"
        if not len(recall.best_iou):
            covered = "recall not measured: there are no objects"
        print(f"{found.name}: {found.path}: {found.boxes / images:.0f} boxes an image in {images} images; {covered}")
        missed += found.records if is_low(recall) and found.searched else []
    if missed:
        count = min(SAMPLE, max(3, len(missed) // 9))  # trying takes some nine times as long: no longer than it took
        trials = try_settings(missed, config.proposals, count, args.processes)
        print(f"\nrecall is low: what no proposal covers is never found\n{trials_text(trials, config.proposals)}")


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command again to resume", parallel=True)
