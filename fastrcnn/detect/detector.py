"""From a picture to named boxes: proposals, features, RoI pooling, fc6 and fc7, decoding, NMS (section 3)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastrcnn import boxes as box_ops
from fastrcnn.config import Config
from fastrcnn.detect.nms import select_detections
from fastrcnn.detections import Detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.roi_features import bins_first, pool_for_inference, project, roi_cells, unique_rois
from fastrcnn.proposals.selective_search import selective_search

CANONICAL_AREA = 224**2  # scaled pixels; a RoI is looked at in the scale that brings it nearest (section 3.3, SPPnet)


class Detector:
    """A trained network at work.

    The model becomes the detector's: its weights are converted once, here, to its precision and to the order in which
    pooling for inference gives features.
    """

    def __init__(self, model: FastRCNN, config: Config, device: torch.device):
        self.config, self.device = config, device
        self.model = model.to(device).eval().requires_grad_(False)
        if model.precision == "bfloat16":
            for part in (model.backbone, model.fc6, model.fc7):
                part.to(torch.bfloat16)
        first = model.fc6 if isinstance(model.fc6, nn.Linear) else model.fc6.V
        first.weight = nn.Parameter(bins_first(first.weight, model.config.pool_size), requires_grad=False)

    @torch.inference_mode()
    def detect(
        self, image: str | Path | np.ndarray, proposals: np.ndarray | None = None, image_id: str | None = None
    ) -> Detections:
        """Find objects in a picture: a file, or upright RGB pixels uint8 [H, W, 3].

        proposals [P, 4] are in image pixels, half open; without them, selective search finds its own (seconds), its
        random order seeded by image_id. Raises FastRCNNError for a file that is no picture and pixels or proposals of
        another form.
        """
        if isinstance(image, str | Path):
            image_id = image_id or Path(image).stem
            image = read_image(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise FastRCNNError(f"image: is {image.dtype} {list(image.shape)}; give uint8 [H, W, 3], RGB")
        if proposals is None:
            proposals = selective_search(image, image_id or "", self.config.proposals)
        proposals = np.asarray(proposals, np.float32)
        if proposals.ndim != 2 or proposals.shape[1] != 4 or not np.isfinite(proposals).all():
            raise FastRCNNError(f"proposals: are {list(proposals.shape)}; give finite numbers [P, 4]")
        rois = torch.from_numpy(proposals[: self.config.proposals.max_per_image]).to(self.device)
        if not bool(box_ops.nonempty(rois).all()):
            raise FastRCNNError("proposals: some have no width or height; leave them out")

        scores, boxes = self.classify(image, rois)
        test = self.config.test
        kept = select_detections(scores, boxes, test.score_threshold, test.nms_iou, test.max_detections)
        boxes, classes, scores = (part.cpu().numpy() for part in kept)
        return Detections(boxes, classes, scores, tuple(self.config.classes))

    @torch.inference_mode()
    def classify(self, image: np.ndarray, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Every RoI's probabilities and boxes: pixels uint8 [H, W, 3], rois [R, 4] image pixels ->
        scores [R, K], boxes [R, K, 4] image pixels, clipped to the image; both float32."""
        height, width = image.shape[:2]
        settings = self.config.image
        scales = [image_scale(width, height, side, settings.test_long_side) for side in settings.test_short_side]
        level = nearest_scale(rois, scales)
        scores = rois.new_zeros(len(rois), self.model.num_classes)
        deltas = rois.new_zeros(len(rois), 4 * self.model.num_classes)
        for index, scale in enumerate(scales):
            chosen = (level == index).nonzero().squeeze(1)
            if len(chosen):
                scores[chosen], deltas[chosen] = self._one_scale(image, rois[chosen], scale)
        boxes = box_ops.clip(box_ops.decode(rois, deltas), width, height)
        return scores.softmax(dim=1), boxes

    def _one_scale(self, image: np.ndarray, rois: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Raw scores [R, K] and deltas [R, 4 * K] of RoIs looked at in one scale."""
        model, normalisation = self.model, self.model.normalisation
        pixels = prepare_image(image, scale, normalisation.mean, normalisation.std).to(self.device)
        features = model.features([pixels])
        projected = project(rois, scale)
        # RoIs that round to the same cells have the same features: pool and multiply one of them for all.
        distinct, inverse = unique_rois(roi_cells(projected, 1 / model.stride))
        chunks = pool_for_inference(features, [projected[distinct]], model.config.pool_size, 1 / model.stride)
        parts = [model.siblings(model.fully_connected(pooled)) for pooled in chunks]
        scores, deltas = (torch.cat(part)[inverse] for part in zip(*parts, strict=True))
        return scores, deltas


def nearest_scale(rois: Tensor, scales: list[float]) -> Tensor:
    """The index of the scale that brings each RoI's area nearest 224^2, [R, 4] image pixels -> [R] int64; the first of
    equals (fast-rcnn lib/fast_rcnn/test.py, _project_im_rois)."""
    squares = rois.new_tensor(scales).square()
    return (box_ops.area(rois)[:, None] * squares - CANONICAL_AREA).abs().argmin(dim=1)
