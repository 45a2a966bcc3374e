"""Evaluate weights on the data.test sets of a configuration: VOC mAP, a table per class, curves and detections."""

from pathlib import Path

from _common import parser, run


def main() -> None:
    p = parser(__doc__, config=True, weights="a weights file, or a saved detections.json to score again")
    p.add_argument("--output", metavar="FOLDER", help="default: the results folder of the configuration's run")
    p.add_argument("--coco", action="store_true", help="also COCO's averages over IoU thresholds, by pycocotools")
    args = p.parse_intermixed_args()

    from fastrcnn.config_files import load
    from fastrcnn.evaluate.run import evaluate_detections, evaluate_weights

    config = load(args.config, args.overrides)
    folder = Path(args.output or Path(config.output) / "results")
    work = evaluate_detections if args.weights.endswith(".json") else evaluate_weights
    print(work(config, Path(args.weights), folder, with_coco=args.coco, with_report=True).table)


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command again to resume")
