"""From a picture to named boxes: proposals, features, RoI pooling, fc6 and fc7, decoding, NMS (section 3)."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.config import Config
from fastrcnn.detect.inputs import Picture, as_pixels, as_rois
from fastrcnn.detect.nms import select_detections
from fastrcnn.detections import Detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_scale, prepare_image
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.roi_features import bins_first, pool_for_inference, project, roi_cells, unique_rois
from fastrcnn.proposals.selective_search import selective_search

CANONICAL_AREA = 224**2  # scaled pixels; a RoI is looked at in the scale that brings it nearest (section 3.3, SPPnet)


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
    def classify(
        self, image: UInt8[np.ndarray, "H W 3"], rois: Float32[Tensor, "R 4"]
    ) -> tuple[Float32[Tensor, "R K"], Float32[Tensor, "R K 4"]]:
        """Every RoI's probabilities and boxes; boxes and RoIs in image pixels, boxes clipped to the image."""
        height, width = image.shape[:2]
        settings = self.config.image
        scales = [image_scale(width, height, side, settings.test_long_side) for side in settings.test_short_side]
        level = nearest_scale(rois, scales)
        scores = rois.new_zeros(len(rois), len(self.config.classes) + 1)
        boxes = rois.new_zeros(*scores.shape, 4)
        for index, scale in enumerate(scales):
            chosen = (level == index).nonzero().squeeze(1)
            if len(chosen):
                scores[chosen], boxes[chosen] = self._one_scale(image, rois[chosen], scale)
        return scores, box_ops.clip(boxes, width, height)

    def _one_scale(
        self, image: UInt8[np.ndarray, "H W 3"], rois: Float32[Tensor, "R 4"], scale: float
    ) -> tuple[Float32[Tensor, "R K"], Float32[Tensor, "R K 4"]]:
        """Probabilities of RoIs looked at in one scale, and boxes that are not clipped yet."""
        model, normalisation = self.model, self.model.normalisation
        pixels = prepare_image(image, scale, normalisation.mean, normalisation.std).to(self.device)
        features = model.features([pixels])
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


def nearest_scale(rois: Float32[Tensor, "R 4"], scales: list[float]) -> Int64[Tensor, "R"]:
    """The index of the scale that brings each RoI's area (image pixels) nearest 224^2; the first of equals
    (fast-rcnn lib/fast_rcnn/test.py, _project_im_rois)."""
    squares = rois.new_tensor(scales).square()
    return (box_ops.area(rois)[:, None] * squares - CANONICAL_AREA).abs().argmin(dim=1)
