"""Find the proposals of a run's data sets by selective search, and print how many objects they cover.

For each data set of data.train and data.test: a .safetensors file in `proposals` is made, or completed, on all cores (a
killed run resumes); files of other formats are only checked. Then recall at IoU 0.5 and 0.7 is printed.
"""

import argparse

from _common import parser, run


def arguments() -> argparse.Namespace:
    p = parser(__doc__, config=True)
    p.add_argument("--processes", type=int, metavar="N", help="how many images at a time; all cores by default")
    return p.parse_intermixed_args()


def main() -> None:
    args = arguments()

    from fastrcnn.annotations.ids import distinct_ids
    from fastrcnn.annotations.read import read_data_sets
    from fastrcnn.config_files import load
    from fastrcnn.data.check_labels import nothing_labelled, refuse_errors
    from fastrcnn.data.check_report import trials_text
    from fastrcnn.errors import FastRCNNError
    from fastrcnn.proposals.fit import open_proposals
    from fastrcnn.proposals.make import make_proposals
    from fastrcnn.proposals.recall import proposal_recall
    from fastrcnn.proposals.trial import SAMPLE, is_low, try_settings

    config = load(args.config, args.overrides)
    by_path: dict[str, list] = {}  # several data sets may share one file
    labelled, left_out = [], []  # the records of data.train, and what is wrong with them
    for part in ("train", "test"):
        for i, dataset in enumerate(getattr(config.data, part)):
            key = f"data.{part}.{i}"
            if not dataset.proposals:
                raise FastRCNNError(
                    f"{args.config}: {key}.proposals is not set; name a file, such as proposals.safetensors"
                )
            problems: list = []
            records = read_data_sets([dataset], config.data, config.classes, problems)
            if part == "train":
                labelled += records
                left_out += problems
            by_path.setdefault(dataset.proposals, []).append((f"{key} ({dataset.label})", dataset, records))

    nothing = nothing_labelled("train", labelled, left_out, config.classes)
    refuse_errors([nothing] if nothing else [])

    missed: list = []  # the records of data sets whose objects the proposals miss
    for path, sets in by_path.items():
        names, datasets, records_of = zip(*sets, strict=True)
        distinct, _ = distinct_ids(datasets, records_of)  # an image of both parts is searched once
        if path.endswith(".safetensors"):
            make_proposals([r for records in distinct for r in records], path, config.proposals, args.processes)
        for name, records in zip(names, records_of, strict=True):
            proposals = open_proposals(path, records, config.proposals)
            recall = proposal_recall((record, proposals[record.id]) for record in records)
            count = sum(len(proposals[record.id]) for record in records)
            at = ", ".join(f"{r:.3f} at IoU {t:g}" for t, r in zip(recall.thresholds, recall.overall(), strict=True))
            covered = f"recall of {len(recall.best_iou)} objects {at} ({recall.difficult} difficult ones left out)"
            if not len(recall.best_iou):
                covered = "recall not measured, for want of objects"
            print(f"{name}: {path}: {count / len(records):.0f} boxes an image in {len(records)} images; {covered}")
            missed += records if is_low(recall) and path.endswith(".safetensors") else []
    if missed:
        count = min(SAMPLE, max(3, len(missed) // 9))  # trying takes some nine times as long: no longer than it took
        trials = try_settings(missed, config.proposals, count, args.processes)
        print(f"\nrecall is low: what no proposal covers is never found\n{trials_text(trials, config.proposals)}")


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command again to resume")
