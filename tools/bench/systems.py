"""Fast R-CNN, SPPnet and R-CNN on one picture, with this code on this machine: Table 4 and Figure 2 of the paper."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastrcnn.config import Config
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.fast_rcnn import FastRCNN

from bench.detection import detection_stages
from bench.made import RANKS, compressed, distinct_proposals, made_network, picture
from bench.timing import case, medians, products, rates, staged

FIVE_SCALES = [480, 576, 688, 864, 1200]  # of SPPnet, in the paper's Table 4, too
WARPED = 64  # proposals that R-CNN is timed on


def systems(rounds: int, small: bool, proposals: int) -> dict[str, Any]:
    """Seconds an image, in float32; R-CNN on some of the proposals, and its time multiplied."""
    size, some = (256, 8) if small else (4096, WARPED)
    part = min(some, proposals)
    with tempfile.TemporaryDirectory() as folder:
        path, boxes = picture(Path(folder)), distinct_proposals(count=proposals)
        if len(boxes) < proposals:
            raise FastRCNNError(f"--proposals: {len(boxes)} of other cells can be made, not {proposals}")
        made = partial(made_network, small, "float32", path, boxes)
        of_part = f"R-CNN, {part} of {proposals} proposals"
        networks: dict[str, Callable[[], tuple[FastRCNN, Config]]] = {
            "Fast R-CNN": made,
            "Fast R-CNN, SVD {}/{}".format(*RANKS[small]): partial(compressed, small, "float32", path, boxes),
            "SPPnet, five scales": partial(made, roi_features="spp"),
            of_part: partial(made_network, small, "float32", path, boxes[: 8 * part], roi_features="warp"),
        }
        detectors = {name: Detector(*make(), torch.device("cpu")) for name, make in networks.items()}
        image = detectors["SPPnet, five scales"].config.image
        image.test_long_side, image.test_short_side = 2000, FIVE_SCALES
        cases = {
            name: partial(d.detect, path, boxes[:part] if name == of_part else boxes) for name, d in detectors.items()
        }
        seconds = medians(rounds, {**cases, **products(size)})
        rate = rates(seconds, size)
        result: dict[str, Any] = {"rates": rate, "cases": {}, "stages": {}}
        whole = {name: seconds[name] * (proposals / part if name == of_part else 1) for name in cases}
        for name, work in cases.items():
            parts = staged(max(rounds // 2, 1), detection_stages(detectors[name]), work, rate["float32"])
            figures = case(seconds[name], parts["gflop"], rate["float32"], None)
            figures |= {"seconds an image": whole[name], "times as fast as R-CNN": whole[of_part] / whole[name]}
            figures["times as fast as SPPnet"] = whole["SPPnet, five scales"] / whole[name]
            result["cases"][name], result["stages"][name] = figures, parts["stages"]
        return result
