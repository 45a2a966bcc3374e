"""Measure how far each part is from the arithmetic it needs, and from the same thing put together from torchvision.

  bench.py detect                 a 500x375 picture, 2,000 proposals, VGG16 with fc layers of 4096, random weights
  bench.py detect WEIGHTS IMAGE   your network on your picture, with proposals by selective search
  bench.py train                  an iteration of N=2, R=128 on such pictures
  bench.py train --cached         the same from stored features: short side 400, fc layers of 1024, bfloat16
  bench.py systems                Table 4 of the paper: Fast R-CNN, with SVD, SPPnet and R-CNN, and their parts
  bench.py scale                  start, memory, checks and evaluation at 1,000 and 10,000 made pictures, or --pictures
  bench.py roi_pool | nms | evaluate | proposals | start

The floor is the arithmetic (multiply-adds of convolutions and fully connected layers, backward of trained layers only)
at the rate of a 4096^3 matrix product in the same precision. Everything is timed in turns within one run; figures are
medians. On the CPU only.
"""

import json
import sys
from functools import partial

from _common import parser, run

WORDS = ("detect", "train", "systems", "roi_pool", "nms", "evaluate", "proposals", "start", "scale")


def main() -> None:
    args = parser(__doc__)
    args.add_argument("what", choices=WORDS)
    args.add_argument("weights", metavar="WEIGHTS", nargs="?", help="detect: a weights file")
    args.add_argument("image", metavar="IMAGE", nargs="?", help="detect: a picture")
    args.add_argument("--cached", action="store_true", help="train: from stored features")
    args.add_argument("--proposals", metavar="N", type=int, help="systems: of the picture (default 2000)")
    args.add_argument("--pictures", metavar="N", type=int, nargs="+", help="scale: how many (default 1000 10000)")
    args.add_argument("--rounds", type=int, default=7, help="turns whose median is given (default 7)")
    args.add_argument("--small", action="store_true", help="small sizes, to try this tool")
    args.add_argument("--json", action="store_true", help="print JSON")
    args = args.parse_args()
    if bool(args.weights) != bool(args.image) or (args.weights and args.what != "detect"):
        sys.exit("error: bench.py detect takes WEIGHTS and IMAGE or neither, the others take neither")
    if args.cached and args.what != "train":
        sys.exit("error: --cached goes with train")

    if args.proposals is not None and (args.what != "systems" or args.proposals < 1):
        sys.exit("error: --proposals N goes with systems, and is at least 1")

    if args.pictures is not None and (args.what != "scale" or min(args.pictures) < 2):
        sys.exit("error: --pictures N goes with scale, and is at least 2")

    from bench import detection, parts, scale, systems, training
    from bench.report import as_text, machine

    if args.weights:
        result = detection.own(args.weights, args.image, args.rounds)
    elif args.cached:
        result = training.cached(args.rounds, args.small)
    else:
        work = {
            "detect": detection.detect,
            "train": training.train,
            "systems": partial(systems.systems, proposals=args.proposals or 2000),
            "roi_pool": parts.pooling,
            "nms": parts.suppression,
            "evaluate": parts.evaluation,
            "proposals": parts.proposals,
            "start": parts.start,
            "scale": lambda _, small: scale.scale(args.pictures or ([20] if small else [1000, 10_000])),
        }
        result = work[args.what](args.rounds, args.small)
    result = {"machine": machine(), **result}
    print(json.dumps(result, indent=1) if args.json else as_text(result))


if __name__ == "__main__":
    run(main)
