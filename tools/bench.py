"""Measure how far each part is from the arithmetic it needs, and from the same thing put together from torchvision.

  bench.py detect                 a 500x375 picture, 2,000 proposals, VGG16 with fc layers of 4096, random weights
  bench.py detect WEIGHTS IMAGE   your network on your picture, with proposals by selective search
  bench.py detect --busy 2        the same beside two busy programs of the lowest priority; so do the others
  bench.py train                  an iteration of N=2, R=128 on such pictures
  bench.py train --cached         the same from stored features: short side 400, fc layers of 1024, bfloat16
  bench.py systems                Table 4 of the paper: Fast R-CNN, with SVD, SPPnet and R-CNN, and their parts; of
                                  model L, or --network S or M
  bench.py systems IMAGE          the same of your picture, with proposals by selective search
  bench.py scale                  start, memory, checks and evaluation at 1,000 and 10,000 made pictures, or --pictures
  bench.py roi_pool | nms | evaluate | proposals | start
  bench.py --device cuda          detect, train, roi_pool and nms, one after the other, on a GPU; or name one of them

The floor is the arithmetic (multiply-adds of convolutions and fully connected layers, backward of trained layers only)
at the rate of a 4096^3 matrix product in the same precision, by torch's usual library or by oneDNN, whichever is the
faster. Everything is timed in turns within one run; figures are medians. The other words are of the CPU. On a GPU each
time is taken once the device has done its work, float32 is without TF32, and the memory is what tensors take at the
peak beside weights, gradients and momentum.
"""

import json
import sys
from functools import partial

from _common import keep_memory, parser, run

ON_A_GPU = ("detect", "train", "roi_pool", "nms")
TAKES = {"detect": (0, 2), "systems": (0, 1)}  # how many files
WORDS = ("detect", "train", "systems", "roi_pool", "nms", "evaluate", "proposals", "start", "scale")


def main() -> None:
    args = parser(__doc__)
    args.add_argument("what", choices=WORDS, nargs="?", help="default: " + ", ".join(ON_A_GPU))
    args.add_argument("files", metavar="FILE", nargs="*", help="detect: weights and a picture; systems: a picture")
    args.add_argument("--cached", action="store_true", help="train: from stored features")
    args.add_argument("--proposals", metavar="N", type=int, help="systems: of the picture (default 2000)")
    args.add_argument("--network", choices=("S", "M", "L"), help="systems: the paper's model (default L)")
    args.add_argument("--pictures", metavar="N", type=int, nargs="+", help="scale: how many (default 1000 10000)")
    args.add_argument("--rounds", type=int, default=7, help="turns whose median is given (default 7)")
    args.add_argument("--busy", metavar="N", type=int, default=0, help="beside so many busy programs of low priority")
    args.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args.add_argument("--small", action="store_true", help="small sizes, to try this tool")
    args.add_argument("--json", action="store_true", help="print JSON")
    args = args.parse_args()
    if len(args.files) not in TAKES.get(args.what, (0,)):
        sys.exit("error: bench.py detect takes WEIGHTS and IMAGE or neither, systems IMAGE or none, the others no file")
    if args.cached and args.what != "train":
        sys.exit("error: --cached goes with train")

    if args.proposals is not None and (args.what != "systems" or args.proposals < 1):
        sys.exit("error: --proposals N goes with systems, and is at least 1")

    if args.network is not None and args.what != "systems":
        sys.exit("error: --network goes with systems")

    if args.pictures is not None and (args.what != "scale" or min(args.pictures) < 2):
        sys.exit("error: --pictures N goes with scale, and is at least 2")

    if args.busy < 0:
        sys.exit("error: --busy N is at least 0")

    if args.device != "cpu" and (args.cached or args.what not in (None, *ON_A_GPU)):
        sys.exit(f"error: --device goes with {', '.join(ON_A_GPU)}; the others measure the CPU")

    from fastrcnn.config import CudaConfig
    from fastrcnn.device import choose_device, set_cuda

    from bench import detection, parts, scale, systems, training
    from bench.report import as_text, machine
    from bench.timing import busy_programs

    keep_memory()
    device = choose_device(args.device)
    set_cuda(CudaConfig())
    work = {
        "detect": partial(detection.detect, device=device),
        "train": partial(training.train, device=device),
        "systems": partial(
            systems.systems, proposals=args.proposals or 2000, network=args.network or "L", image=(*args.files, None)[0]
        ),
        "roi_pool": partial(parts.pooling, device=device),
        "nms": partial(parts.suppression, device=device),
        "evaluate": parts.evaluation,
        "proposals": parts.proposals,
        "start": parts.start,
        "scale": lambda _, small: scale.scale(args.pictures or ([20] if small else [1000, 10_000])),
    }
    with busy_programs(args.busy):
        if args.what == "detect" and args.files:
            result = detection.own(*args.files, args.rounds, device)
        elif args.cached:
            result = training.cached(args.rounds, args.small)
        elif args.what is None:
            result = {"parts": {what: work[what](args.rounds, args.small) for what in ON_A_GPU}}
        else:
            result = work[args.what](args.rounds, args.small)
    beside = {"busy programs beside": args.busy} if args.busy else {}
    result = {"machine": {**machine(device), **beside}, **result}
    print(json.dumps(result, indent=1) if args.json else as_text(result))


if __name__ == "__main__":
    run(main)
