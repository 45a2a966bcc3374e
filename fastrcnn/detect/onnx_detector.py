"""Detection from an ONNX file, in onnxruntime: the network comes from the file, all around it from the Detector."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from fastrcnn import config as configs
from fastrcnn.config import Config
from fastrcnn.detect.detector import Detector
from fastrcnn.detect.views import Look, Rows
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import METADATA_KEY, read_bytes
from fastrcnn.images import prepare_image
from fastrcnn.model.score_thresholds import ScoreThresholds

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SUFFIX = ".onnx"
FORMAT = "fastrcnn onnx 1"


class OnnxDetector(Detector):
    """A network of tools/export.py at work on the CPU, in float32, in as many threads as torch uses."""

    def __init__(self, session: "InferenceSession", config: Config, score_thresholds: ScoreThresholds | None = None):
        self.session, self.config, self.score_thresholds = session, config, score_thresholds
        self.device = torch.device("cpu")

    @property
    def precision(self) -> str:
        return "float32"

    def _network(self, image: UInt8[np.ndarray, "H W 3"], scale: float) -> Look:
        pixels = prepare_image(image, scale, (0, 0, 0), (1, 1, 1)).permute(1, 2, 0)  # the graph normalises
        inputs = {"image": pixels.numpy(), "scale": np.array(scale)}

        def look(rois: Float32[Tensor, "R 4"]) -> Rows:
            scores, boxes = map(
                torch.from_numpy, self.session.run(["scores", "boxes"], inputs | {"rois": rois.numpy()})
            )
            return scores, boxes

        return look


def load_onnx(path: str | Path, device: str = "auto", precision: str | None = None) -> OnnxDetector:
    """The detector of a file of tools/export.py.

    Raises FastRCNNError for a file that is not whole or not ours, a device or precision that it does not have, and
    where onnxruntime is not installed.
    """
    for name, asked, has in (("device", device, ("auto", "cpu")), ("precision", precision, (None, "float32"))):
        if asked not in has:
            raise FastRCNNError(f"{path}: is run on the CPU in float32; leave {name} {asked} out, or load the weights")
    return open_onnx(read_bytes(path, missing="no such file"), path)


def open_onnx(data: bytes, path: str | Path) -> OnnxDetector:
    """The same from the bytes of a file; `path` is named in errors."""
    try:
        import onnxruntime
    except ImportError:
        raise FastRCNNError(f'{path}: needs onnxruntime; pip install "fastrcnn[onnx]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised
    try:
        session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"))
    except Exception as e:  # onnxruntime's classes have no common base
        reason = " ".join(str(e).split())[:200]
        raise FastRCNNError(f"{path}: is not a whole ONNX file ({reason}); make or fetch it again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FastRCNNError(f"{path}: is an ONNX file of another program; tools/export.py writes those that this needs")
    try:
        measured = about.get("score_thresholds")
        thresholds = ScoreThresholds.from_json(measured) if measured else None
        return OnnxDetector(session, configs.from_dict(about["settings"], source=str(path)), thresholds)
    except (KeyError, TypeError, ValueError) as e:
        raise FastRCNNError(f"{path}: its metadata is damaged ({e!r}); make or fetch the file again") from None
