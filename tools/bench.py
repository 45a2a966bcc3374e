"""Measure how far each part is from the arithmetic it needs, and from the same thing put together from torchvision.

  bench.py detect                 a 500x375 picture, 2,000 proposals, VGG16 with fc layers of 4096, random weights
  bench.py detect WEIGHTS IMAGE   your network on your picture, with proposals by selective search
  bench.py train                  an iteration of N=2, R=128 on such pictures
  bench.py train --cached         the same from stored features: short side 400, fc layers of 1024, bfloat16
  bench.py roi_pool | nms | evaluate | proposals | start

The floor is the arithmetic (multiply-adds of convolutions and fully connected layers, backward of trained layers only)
at the rate of a 4096^3 matrix product in the same precision. Everything is timed in turns within one run; figures are
medians. On the CPU only.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

from _common import parser, run


def main() -> None:
    args = parser(__doc__)
    args.add_argument("what", choices=("detect", "train", "roi_pool", "nms", "evaluate", "proposals", "start"))
    args.add_argument("weights", metavar="WEIGHTS", nargs="?", help="detect: a weights file")
    args.add_argument("image", metavar="IMAGE", nargs="?", help="detect: a picture")
    args.add_argument("--cached", action="store_true", help="train: from stored features")
    args.add_argument("--rounds", type=int, default=7, help="turns whose median is told (default 7)")
    args.add_argument("--small", action="store_true", help="small sizes, to try this tool")
    args.add_argument("--json", action="store_true", help="print JSON")
    args = args.parse_args()
    if bool(args.weights) != bool(args.image) or (args.weights and args.what != "detect"):
        sys.exit("error: bench.py detect takes WEIGHTS and IMAGE or neither, the others take neither")
    if args.cached and args.what != "train":
        sys.exit("error: --cached goes with train")

    import _benchmarks as benchmarks

    if args.weights:
        result = benchmarks.own(args.weights, args.image, args.rounds)
    elif args.cached:
        result = benchmarks.cached(args.rounds, args.small)
    else:
        work = {
            "detect": benchmarks.detect,
            "train": benchmarks.train,
            "roi_pool": benchmarks.pooling,
            "nms": benchmarks.suppression,
            "evaluate": benchmarks.evaluation,
            "proposals": benchmarks.proposals,
            "start": benchmarks.start,
        }
        result = work[args.what](args.rounds, args.small)
    result = {"machine": machine(), **result}
    print(json.dumps(result, indent=1) if args.json else as_text(result))


def machine() -> dict[str, Any]:
    import torch
    import torchvision

    about = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in about if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def as_text(result: dict[str, Any]) -> str:
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    for name, rate in result.get("rates", {}).items():
        lines.append(f"rate of a matrix product, {name}: {rate:.0f} GFLOP/s")
    for name, values in result["cases"].items():
        lines.append(f"\n{name}: " + ", ".join(f"{key} {number(value)}" for key, value in values.items()))
        for row in result.get("stages", {}).get(name, ()):
            line = f"  {row['stage']:<14}{row['ms']:>10.1f} ms {row['share']:>6.1%} {row['gflop']:>8.1f} GFLOP"
            lines.append(line + (f"{row['floor / measured']:>8.2f}" if "floor / measured" in row else ""))
    lines.append("")
    lines += [f"{name}: {number(value)}" for name, value in result.get("checks", {}).items()]
    return "\n".join(lines)


def number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


if __name__ == "__main__":
    run(main)
