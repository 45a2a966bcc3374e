"""Compress fc6 and fc7 of a weights file by truncated SVD (paper, section 3.1); every tool takes the result."""

from _common import parser, run


def main() -> None:
    args = parser(__doc__, weights="a weights file of tools/train.py")
    args.add_argument("output", metavar="OUTPUT", help="the compressed weights file")
    args.add_argument("--fc6", type=int, default=1024, metavar="RANK", help="rank of fc6; paper: 1024; 0 leaves it")
    args.add_argument("--fc7", type=int, default=256, metavar="RANK", help="rank of fc7; paper: 256; 0 leaves it")
    args = args.parse_args()

    from fastrcnn.model.svd import compress_weights

    for line in compress_weights(args.weights, args.output, {"fc6": args.fc6, "fc7": args.fc7}):
        print(line)


if __name__ == "__main__":
    run(main)
