"""Find objects in pictures: draws boxes with class and score, and writes all detections as JSON."""

from _common import parser, run


def main() -> None:
    args = parser(__doc__, weights="a weights file of tools/train.py or tools/compress.py")
    args.add_argument("images", metavar="IMAGE", nargs="+", help="pictures, or folders of them")
    args.add_argument("--output", default="detections", metavar="FOLDER", help="where pictures and JSON go")
    args.add_argument("--proposals", metavar="FILE", help="proposals of these pictures; default: selective search")
    args.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="draw what scores at least this (default 0.5)"
    )
    args.add_argument("--device", default="auto")
    args.add_argument("--precision", choices=("float32", "bfloat16"), help="default: the one of training")
    args = args.parse_args()

    import fastrcnn
    from fastrcnn.detect.pictures import detect_pictures

    detector = fastrcnn.load(args.weights, args.device, args.precision)
    summary = detect_pictures(detector, args.images, args.output, args.score, args.proposals)
    for line in summary:
        print(line)


if __name__ == "__main__":
    run(main, "finished pictures and their detections are saved")
