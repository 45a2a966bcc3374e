"""Import weights of Caffe: an ImageNet network of the paper to start from, or one of its authors' detectors."""

from _common import CONFIGS, parser, run


def main() -> None:
    p = parser(__doc__)
    p.add_argument("source", metavar="FILE.caffemodel", help="of model S (CaffeNet), M (VGG_CNN_M_1024) or L (VGG16)")
    p.add_argument("output", metavar="OUT.safetensors", help="the file to write")
    p.add_argument("--network", choices="SML", help="the model; default: known by its first convolution")
    p.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="of a detector, in its order, no background; default: VOC's 20",
    )
    p.add_argument(
        "--recipe",
        choices=("fast-rcnn", "py-faster-rcnn"),
        default="fast-rcnn",
        help="the code that trained a detector (default: fast-rcnn); they measure boxes differently",
    )
    args = p.parse_args()

    from fastrcnn.config_files import load
    from fastrcnn.model.caffemodel import import_caffemodel

    classes = args.classes or load(CONFIGS / "voc07.yaml").classes
    done = import_caffemodel(args.source, args.output, classes, args.network, args.recipe)
    use = "a weights file, which detects" if done.detects else f"to start from: model.weights={args.output}"
    print(f"wrote {args.output}: model {done.network}, {use}")
    if done.left_out:
        print(f"left out, as the network has no such layers: {', '.join(done.left_out)}")


if __name__ == "__main__":
    run(main)
