"""Make a weights file smaller and detection faster: fc6 and fc7 by truncated SVD (paper, section 3.1), or all in int8.

  compress.py WEIGHTS OUTPUT                     SVD of ranks 1024 and 256, the paper's
  compress.py WEIGHTS OUTPUT --int8 CONFIG       int8, for a CPU; WEIGHTS may have SVD already
  compress.py WEIGHTS OUTPUT --int8 CONFIG --fc6 1024 --fc7 256    both

Every tool that detects takes the result.
"""

from pathlib import Path

from _common import keep_memory, parser, run


def main() -> None:
    p = parser(__doc__, weights="a weights file of tools/train.py")
    p.add_argument("output", metavar="OUTPUT", help="the compressed weights file")
    p.add_argument("--fc6", type=int, metavar="RANK", help="rank of fc6; default 1024, with --int8 0, which leaves it")
    p.add_argument("--fc7", type=int, metavar="RANK", help="rank of fc7; default 256, with --int8 0, which leaves it")
    p.add_argument(
        "--int8",
        metavar="CONFIG",
        help="int8, measured on pictures of data.train of this configuration: the training's",
    )
    p.add_argument("--pictures", type=int, metavar="N", help="--int8: of so many pictures (default 300)")
    p.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="--int8: of CONFIG, such as data.train=[...]")
    args = p.parse_intermixed_args()
    if not args.int8 and (args.overrides or args.pictures is not None):
        p.error("--pictures and KEY=VALUE belong to --int8 CONFIG")

    from fastrcnn.compress import PICTURES, compress_weights
    from fastrcnn.config_files import load
    from fastrcnn.model.svd import ROIS

    keep_memory()
    ranks = {
        name: rank if rank is not None else 0 if args.int8 else usual
        for name, rank, usual in (("fc6", args.fc6, 1024), ("fc7", args.fc7, 256))
    }
    config = load(args.int8, args.overrides) if args.int8 else None
    pictures = PICTURES if args.pictures is None else args.pictures
    done = compress_weights(args.weights, args.output, ranks, config, pictures)
    if any(ranks.values()):
        print(f"layer  rank  parameters before      after  GFLOP at {ROIS} RoIs before   after")
        for found in done.layers:
            sizes, gflop = "{:>18,} {:>10,}".format(*found.parameters), "{:>29.1f} {:>7.1f}".format(*found.gflop)
            print(f"{found.layer:<5} {found.rank or 'all':>5} {sizes} {gflop}")
    kind = f", in int8, activations measured on {done.pictures} pictures" if done.pictures else ""
    print(f"wrote {args.output}: {Path(args.output).stat().st_size / 1e6:.0f} MB{kind}")


if __name__ == "__main__":
    run(main)
