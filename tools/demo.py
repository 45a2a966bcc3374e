"""Fast R-CNN from nothing to detections in minutes: draws pictures, then runs the tools on them as a user would."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import _common
from _common import CONFIGS, TOOLS, command, parser, run, shown

CONFIG, DATA, RUN = CONFIGS / "demo.yaml", Path("data/shapes"), Path("runs/demo")
TRAIN, TEST, SEED = 300, 100, 1
SHOWN = 12  # test pictures on the contact sheet
LEAST_MAP = 0.80  # what this network reaches on pictures it has not seen; less means that something is broken


def main() -> None:
    parser(__doc__).parse_args()

    from fastrcnn.data.shapes import make_shapes
    from fastrcnn.drawing import contact_sheet, write_image
    from fastrcnn.errors import FastRCNNError
    from fastrcnn.images import read_image

    started = time.monotonic()
    print(f"Drawing {TRAIN} pictures to train on and {TEST} to test on, into {DATA}")
    make_shapes(DATA, TRAIN, TEST, SEED)
    shutil.rmtree(RUN, ignore_errors=True)  # the demo's own, made again each time
    weights, compressed, found = RUN / "model.safetensors", RUN / "compressed.safetensors", RUN / "detections"
    tool("proposals", CONFIG)
    tool("train", CONFIG)
    tool("test", CONFIG, weights)
    tool("compress", weights, compressed, "--fc6", 64, "--fc7", 32)
    tool("test", CONFIG, compressed, "--output", RUN / "results_compressed")
    ids = (DATA / "ImageSets/Main/test.txt").read_text(encoding="utf-8").split()[:SHOWN]
    tool("detect", weights, *(DATA / f"JPEGImages/{i}.jpg" for i in ids), "--output", found)
    sheet = RUN / "detections.png"
    write_image(sheet, contact_sheet([read_image(found / f"{i}.jpg") for i in ids], columns=4, titles=ids))

    before, after = (
        json.loads((RUN / folder / "results.json").read_text(encoding="utf-8"))["map"]
        for folder in ("results", "results_compressed")
    )
    seconds = time.monotonic() - started
    print(f"\nDone in {seconds:.0f} s. mAP on {TEST} pictures it has not seen: {before:.3f}; compressed: {after:.3f}")
    for path, what in (
        (sheet, f"detections on {SHOWN} of them"),
        (RUN / "results/precision_recall.png", "precision and recall of each class"),
        (RUN / "losses.png", "the losses of training"),
        (weights, "the network, its class list and its settings"),
    ):
        print(f"  {str(path):42} {what}")
    print(f"\nNext, a picture of your own:  {command('detect')} {weights} PICTURE")
    print(f"Next, PASCAL VOC or boxes of your own:  {command('configs')}, and README.md")
    if before < LEAST_MAP:
        raise FastRCNNError(f"{weights}: mAP is {before:.3f}; it should be at least {LEAST_MAP}")


def tool(name: str, *args: object) -> None:
    """Run one of the tools, showing the command; stop with its exit code if it fails."""
    words = [*map(str, args)]
    spoken = [shown(word) for word in words]
    spoken = spoken if len(words) < 8 else [*spoken[:2], "...", *spoken[-2:]]
    print(f"\n$ {command(name)} {' '.join(spoken)}", flush=True)
    start = [TOOLS, name] if _common.by_command else [TOOLS / f"{name}.py"]
    code = subprocess.run([sys.executable, *start, *words], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run(main)
