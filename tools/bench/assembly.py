"""Fast R-CNN put together from torchvision's detection parts, as one would without this package: what bench.py compares
with. Same weights, same resized images, given proposals, float32, default memory layout."""

import copy

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_pool

from fastrcnn.config import Config
from fastrcnn.model.fast_rcnn import FastRCNN


class GivenProposals(nn.Module):
    """In the place of a region proposal network."""

    proposals: list[Tensor]

    def forward(self, images: ImageList, features: dict, targets: object = None) -> tuple[list[Tensor], dict]:
        return self.proposals, {}


class ResizedImages(GeneralizedRCNNTransform):
    """Takes images that are normalised and resized already."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0] * 3, image_std=[1] * 3, size_divisible=1)

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> tuple[ImageList, list[dict] | None]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        return ImageList(self.batch_images(images, size_divisible=1), sizes), targets


class RoIPool(nn.Module):
    """torchvision's roi_pool on boxes whose ends become inclusive by one unscaled pixel, as the original's are."""

    def __init__(self, pool_size: int, stride: int):
        super().__init__()
        self.pool_size, self.stride, self.scale = pool_size, stride, 1.0

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        end = boxes[0].new_tensor([0, 0, self.scale, self.scale])
        return roi_pool(features["0"], [b - end for b in boxes], self.pool_size, 1 / self.stride)


class Assembly(GeneralizedRCNN):
    """Call `detect` with a resized image, or the module itself, in training mode, with images and targets."""

    def __init__(self, model: FastRCNN, config: Config, device: torch.device):
        model = copy.deepcopy(model).to(device)
        backbone = model.backbone.to(memory_format=torch.contiguous_format)
        head, predictor = TwoMLPHead(1, 1), FastRCNNPredictor(1, 1)
        head.fc6, head.fc7 = model.fc6, model.fc7
        head.fc6.weight.data *= model.feature_scale
        predictor.cls_score, predictor.bbox_pred = model.cls_score, model.bbox_pred
        per_image = config.sampling.rois_per_batch // config.sampling.images_per_batch
        heads = RoIHeads(
            RoIPool(model.config.pool_size, model.stride),
            head,
            predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=per_image,
            positive_fraction=config.sampling.foreground_fraction,
            bbox_reg_weights=(1.0, 1.0, 1.0, 1.0),
            score_thresh=config.test.score_threshold,
            nms_thresh=config.test.nms_iou,
            detections_per_img=config.test.max_detections,
        )
        super().__init__(backbone, GivenProposals(), heads, ResizedImages())
        self.device = device

    def place(self, proposals: list[Tensor], scale: float) -> None:
        """The proposals [P, 4] (image pixels, half open) of the images to come, and scaled pixels per image pixel."""
        self.rpn.proposals = [boxes.to(self.device) * scale for boxes in proposals]
        self.roi_heads.box_roi_pool.scale = scale

    def detect(self, image: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """boxes [D, 4] (image pixels), classes [D], scores [D] of one resized image [3, H, W]."""
        (found,) = self([image])
        return found["boxes"] / scale, found["labels"], found["scores"]
