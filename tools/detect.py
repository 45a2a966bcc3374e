"""Find objects in pictures: draws boxes with class and score, and writes all detections as JSON."""

import argparse
import contextlib
from collections import Counter

from _common import keep_memory, parser, run


def score(text: str) -> float | str:
    """Of --score."""
    with contextlib.suppress(ValueError):
        if text == "auto" or 0 <= float(text) <= 1:
            return text if text == "auto" else float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 0 to 1")


def main() -> None:
    p = parser(__doc__, weights="a weights file of tools/train.py or tools/compress.py")
    p.add_argument("images", metavar="IMAGE", nargs="+", help="pictures, or folders, with their sub-folders")
    p.add_argument("--output", default="detections", metavar="FOLDER", help="where pictures and JSON go")
    p.add_argument("--proposals", metavar="FILE", help="proposals of these pictures; default: selective search")
    p.add_argument(
        "--search",
        choices=("fast", "faster", "fastest", "quality"),
        help="selective search in this mode (see proposals.method); default: the one of training",
    )
    p.add_argument(
        "--score",
        type=score,
        default=0.5,
        metavar="S",
        help="draw what scores at least this (default 0.5), or auto: at least the threshold of its class that "
        "tools/test.py measured and stored in the weights",
    )
    p.add_argument(
        "--format",
        choices=("json", "voc", "yolo", "coco", "csv"),
        nargs="+",
        action="extend",
        default=[],
        help="also write what scores at least S as labels, to be corrected in a labelling tool; JSON is always written",
    )
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="default: the one of training")
    args = p.parse_args()
    if args.search and args.proposals:
        p.error("--search and --proposals exclude each other: proposals of a file are not searched for")

    import fastrcnn
    from fastrcnn.detect.pictures import detect_pictures

    keep_memory()
    detector = fastrcnn.load(args.weights, args.device, args.precision)
    if args.search:
        detector.config.proposals.method = args.search
    formats = [name for name in dict.fromkeys(args.format) if name != "json"]
    done = detect_pictures(detector, args.images, args.output, args.score, args.proposals, args.weights, formats)
    for image, drawn in zip(done.images, done.drawn, strict=True):
        counts = Counter(image.found.above(detector.score_limits(args.score)).names)
        print(f"{drawn}: " + (", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing above the score"))
    failed = f"; {len(done.failed)} could not be used, see the messages above" if done.failed else ""
    for name, place in zip(formats, done.labels, strict=True):
        what = "all that scores enough" if place.is_file() else f"labels as {name}; the pictures belong there"
        print(f"{place}: {what}")
    print(f"{done.json}: all detections of {len(done.images)} pictures{failed}")


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command again to resume")
