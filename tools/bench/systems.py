"""Fast R-CNN, SPPnet and R-CNN on one picture, with this code on this machine: Table 4 and Figure 2 of the paper."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastrcnn.config import Config, ProposalsConfig
from fastrcnn.detect.detector import Detector
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.proposals.dense import find_proposals

from bench.detection import detection_case
from bench.made import RANKS, Training, compressed, distinct_proposals, made_config, made_network, picture
from bench.timing import Case, measured

FIVE_SCALES = [480, 576, 688, 864, 1200]  # of SPPnet, in the paper's Table 4, too
FEWEST = 16  # proposals of a picture: the scale of random layers is taken from every eighth
WARPED = 64  # proposals that R-CNN is timed on
STEP = "Fast R-CNN, an iteration of training"
ITERATIONS = 40_000  # of the paper, section 4.2


def systems(rounds: int, small: bool, proposals: int, network: str, image: str | None = None) -> dict[str, Any]:
    """Seconds an image, in float32, of the paper's `network`; R-CNN on some of the proposals, and its time multiplied;
    and the hours that training takes. Of a made picture, or of the file `image`, with at most as many proposals of
    selective search; the iteration of training is of made pictures."""
    size, some = (256, 8) if small else (4096, WARPED)
    with tempfile.TemporaryDirectory() as folder:
        if image is None:
            path, boxes = picture(Path(folder)), distinct_proposals(count=proposals)
            if len(boxes) < proposals:
                raise FastRCNNError(f"--proposals: {len(boxes)} of other cells can be made, not {proposals}")
        else:
            path = Path(image)
            boxes = find_proposals(read_image(path), path.stem, ProposalsConfig(max_per_image=proposals))
            if len(boxes) < FEWEST:
                raise FastRCNNError(
                    f"{image}: selective search finds {len(boxes)} proposals in it, at least {FEWEST} are needed; "
                    "give a picture with more to see, or a larger --proposals"
                )
        proposals = len(boxes)
        part = min(some, proposals)
        make_one = partial(made_network, small, "float32", path, network=network)
        made = partial(make_one, boxes)
        of_part = f"R-CNN, {part} of {proposals} proposals"
        networks: dict[str, Callable[[], tuple[FastRCNN, Config]]] = {
            "Fast R-CNN": made,
            "Fast R-CNN, SVD {}/{}".format(*RANKS[small]): partial(compressed, small, "float32", path, boxes, network),
            "SPPnet, five scales": partial(made, roi_features="spp"),
            of_part: partial(make_one, boxes[: 8 * part], roi_features="warp"),
        }
        detectors = {name: Detector(*make(), torch.device("cpu")) for name, make in networks.items()}
        sides = detectors["SPPnet, five scales"].config.image
        sides.test_long_side, sides.test_short_side = 2000, FIVE_SCALES
        cases = {
            name: detection_case(d, path, boxes[:part] if name == of_part else boxes) for name, d in detectors.items()
        }
        training = Training(Path(folder), made_config(small, "float32", network=network))
        step = Case(partial(training.step, training.batch(0)), training.stages, "float32", 2)
        result = measured(rounds, size, {**cases, STEP: step}, {})
        figures = result["cases"]
        figures[STEP]["hours of training"] = figures[STEP]["ms"] / 3.6e6 * ITERATIONS
        seconds = {name: figures[name]["ms"] / 1e3 * (proposals / part if name == of_part else 1) for name in cases}
        for name, whole in seconds.items():
            figures[name] |= {"seconds an image": whole, "times as fast as R-CNN": seconds[of_part] / whole}
            figures[name]["times as fast as SPPnet"] = seconds["SPPnet, five scales"] / whole
        return result
