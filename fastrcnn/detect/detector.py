"""From a picture to named boxes: proposals, features, RoI pooling, fc6 and fc7, decoding, NMS (section 3)."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.config import Config
from fastrcnn.detect.inputs import Picture, as_pixels, as_rois
from fastrcnn.detect.nms import select_detections
from fastrcnn.detect.views import Look, Rows, look_at
from fastrcnn.detections import Detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import prepare_image
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.roi_features import bins_first, pool_for_inference, project, roi_cells, unique_rois
from fastrcnn.proposals.selective_search import selective_search


def detection_settings(config: Config) -> dict[str, Any]:
    """The part of a configuration that detections depend on, as JSON has it."""
    tree = configs.to_dict(config)
    return {name: tree[name] for name in ("image", "proposals", "test", "precision", "classes")}


class Detector:
    """A trained network at work.

    It copies the model's weights, once, in its own precision, on its device, and those of fc6 in the order in which
    pooling for inference gives features. The model stays as it is, and what becomes of it later changes no detection.
    fastrcnn.load lets go of its model, so that only the copy stays in memory.
    """

    def __init__(self, model: FastRCNN, config: Config, device: torch.device):
        """Raises FastRCNNError for a configuration with another number of classes than the model."""
        if len(config.classes) + 1 != model.num_classes:
            raise FastRCNNError(
                f"the configuration has {len(config.classes)} classes, the model {model.num_classes - 1}; give its own"
            )
        self.config, self.device, self.precision = config, device, model.precision
        self.model = _copied(model, device)

    @overload
    def detect(
        self, image: Picture, proposals: ArrayLike | Tensor | None = None, image_id: str | None = None
    ) -> Detections: ...

    @overload
    def detect(
        self,
        image: list[Picture] | tuple[Picture, ...],
        proposals: Sequence[ArrayLike | Tensor | None] | None = None,
        image_id: Sequence[str | None] | None = None,
    ) -> list[Detections]: ...

    def detect(self, image: Any, proposals: Any = None, image_id: Any = None) -> Detections | list[Detections]:
        """Find objects in a picture, or in each of a list: see inputs.FORMS for what a picture may be.

        proposals [P, 4] are in image pixels, half open, and all are used; none are found where they are an empty list.
        Without them, selective search finds its own (seconds), its random order seeded by image_id, which for a file is
        its name without suffix. For a list of pictures, proposals and image_id are lists, too. Raises FastRCNNError for
        a file that is no picture and for pixels or proposals of another form.
        """
        if not isinstance(image, list | tuple):
            return self._detect_one(image, proposals, image_id)
        boxes, ids = ([None] * len(image) if part is None else part for part in (proposals, image_id))
        if not len(image) == len(boxes) == len(ids):
            raise FastRCNNError(f"{len(image)} images need as many proposals and ids, not {len(boxes)} and {len(ids)}")
        return [self._detect_one(*one) for one in zip(image, boxes, ids, strict=True)]

    @torch.inference_mode()
    def _detect_one(self, image: Picture, proposals: ArrayLike | Tensor | None, image_id: str | None) -> Detections:
        if image_id is None:
            image_id = Path(image).stem if isinstance(image, str | Path) else ""
        pixels = as_pixels(image)
        if proposals is None:
            proposals = selective_search(pixels, image_id, self.config.proposals)
        scores, boxes = self.classify(pixels, as_rois(proposals).to(self.device))
        test = self.config.test
        limits = (test.score_threshold, test.nms_iou, test.max_detections)
        kept = select_detections(scores, boxes, *limits, test.soft_nms, test.box_voting)
        found, classes, best = (part.cpu().numpy() for part in kept)
        return Detections(found, classes, best, tuple(self.config.classes))

    @torch.inference_mode()
    def classify(self, image: UInt8[np.ndarray, "H W 3"], rois: Float32[Tensor, "R 4"]) -> Rows:
        """Probabilities and boxes of every RoI, and of the boxes of a second pass; see views.look_at.

        Boxes and RoIs are in image pixels, boxes clipped to the image.
        """
        return look_at(self._network, image, rois, self.config)

    def _network(self, image: UInt8[np.ndarray, "H W 3"], scale: float) -> Look:
        """The feature map of a picture at a scale, in what gives the rows of its RoIs."""
        normalisation = self.model.normalisation
        pixels = prepare_image(image, scale, normalisation.mean, normalisation.std).to(self.device)
        return partial(self._head, self.model.features([pixels]), scale)

    def _head(self, features: list[Float[Tensor, "C _ _"]], scale: float, rois: Float32[Tensor, "R 4"]) -> Rows:
        """Probabilities of RoIs of one feature map, and boxes that are not clipped yet."""
        model = self.model
        projected = project(rois, scale)
        # RoIs that round to the same cells have the same features: pool and multiply one of them for all.
        distinct, inverse = unique_rois(roi_cells(projected, 1 / model.stride))
        chunks = pool_for_inference(features, [projected[distinct]], model.config.pool_size, 1 / model.stride)
        parts = [model.siblings(model.fully_connected(pooled)) for pooled in chunks]
        scores, deltas = (torch.cat(part)[inverse] for part in zip(*parts, strict=True))
        return scores.softmax(dim=1), box_ops.decode(rois, deltas)


def _copied(model: FastRCNN, device: torch.device) -> FastRCNN:
    """The model with weights of its own, each copied straight to what a detector needs."""
    reduced = ("backbone", "fc6", "fc7") if model.precision == "bfloat16" else ()
    copies: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        dtype = torch.bfloat16 if name.partition(".")[0] in reduced else weight.dtype
        copy = weight.detach().to(device, dtype, copy=True)
        if name in ("fc6.weight", "fc6.V.weight"):
            copy = bins_first(copy, model.config.pool_size)
        copies[id(weight)] = nn.Parameter(copy, requires_grad=False)
    return deepcopy(model, copies).to(device).eval()  # deepcopy takes what is in its memo for a copy made already
