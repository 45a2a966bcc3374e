"""Evaluate weights on the data.test sets of a configuration: VOC mAP, a table per class, curves and detections."""

from pathlib import Path

from _common import keep_memory, parser, run


def main() -> None:
    p = parser(__doc__, config=True, weights="a weights file, or a saved detections.json to score again")
    p.add_argument("--output", metavar="FOLDER", help="default: the results folder of the configuration's run")
    p.add_argument("--coco", action="store_true", help="also COCO's averages over IoU thresholds, by pycocotools")
    args = p.parse_intermixed_args()

    import fastrcnn
    from fastrcnn.config_files import load
    from fastrcnn.ranks import joined

    keep_memory()
    config = load(args.config, args.overrides)
    folder = Path(config.output) / "results" if args.output is None else Path(args.output)
    with joined(config.device) as ranks:
        if ranks.world > 1 and not args.weights.endswith(".json"):
            from fastrcnn.evaluate.detect_set import detect_part

            detect_part(config, args.weights, folder, ranks)
        if ranks.main:
            print(fastrcnn.evaluate(config, args.weights, folder, with_coco=args.coco).table)


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command again to resume", parallel=True)
