"""Compress fc6 and fc7 of a weights file by truncated SVD (paper, section 3.1); every tool takes the result."""

from _common import parser, run


def main() -> None:
    p = parser(__doc__, weights="a weights file of tools/train.py")
    p.add_argument("output", metavar="OUTPUT", help="the compressed weights file")
    p.add_argument("--fc6", type=int, default=1024, metavar="RANK", help="rank of fc6; paper: 1024; 0 leaves it")
    p.add_argument("--fc7", type=int, default=256, metavar="RANK", help="rank of fc7; paper: 256; 0 leaves it")
    args = p.parse_args()

    from fastrcnn.model.svd import ROIS, compress_weights

    layers = compress_weights(args.weights, args.output, {"fc6": args.fc6, "fc7": args.fc7})
    print(f"layer  rank  parameters before      after  GFLOP at {ROIS} RoIs before   after")
    for found in layers:
        sizes, gflop = "{:>18,} {:>10,}".format(*found.parameters), "{:>29.1f} {:>7.1f}".format(*found.gflop)
        print(f"{found.layer:<5} {found.rank or 'all':>5} {sizes} {gflop}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
