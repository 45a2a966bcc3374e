"""The schema of a run: its defaults are the recipe of rbgirshick/fast-rcnn (VGG16, VOC 2007), limits stand beside them.

Numbers without another source are from lib/fast_rcnn/config.py and models/VGG16/{solver,train}.prototxt of the original
code. The text below a field is its description in configs/schema.json, which editors show (tools/config_schema.py
writes it). config_data.py and config_train.py have the sections on data and on training, config_recipes.py what
`recipe` stands for; config_files.py reads and writes YAML.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, model_validator

from fastrcnn.config_data import DataConfig
from fastrcnn.config_old import without_old_values
from fastrcnn.config_recipes import with_recipe
from fastrcnn.config_rules import (
    LARGEST,
    STORED,
    BelowOne,
    ConfigError,
    Count,
    CountOrZero,
    Fraction,
    PathText,
    Section,
    Text,
    faults,
)
from fastrcnn.config_train import SamplingConfig, SolverConfig, TrainConfig

__all__ = ["Config", "ConfigError", "from_dict", "to_dict"]


class ProposalsConfig(Section, title="proposals"):
    method: Literal["fast", "faster", "fastest", "quality", "dense"] = "fast"
    """Mode of selective search (Uijlings et al. 2013), as in OpenCV; faster and fastest are ours, and take half and
    a quarter of the time of fast: proposals/selective_search.py. Or dense: a grid of some 47,000 boxes over scale,
    aspect ratio and position (section 5.5), computed on the way: files of proposals are then neither made nor read."""
    max_per_image: Count | None = None
    """Boxes used of each image, the first; null: all of a .mat, .npz or .json file, as the original does; of our own
    search 2,000 (paper, section 2.3: R is typically around 2000), or 10,000 with `quality`, which finds about 5,500."""
    dense: Annotated[
        Annotated[Count, Tag("<number>")]
        | Annotated[Literal["replace"], Tag("<word>")]
        | Annotated[None, Tag("<null>")],
        Discriminator(lambda value: {str: "<word>", type(None): "<null>"}.get(type(value), "<number>")),
    ] = None
    """Section 5.5: a number adds so many dense boxes, drawn at random, to the proposals of each image; replace puts the
    nearest dense box in the place of each proposal."""
    min_size: Count = 2
    """Pixels; smaller proposals are left out, as in py-faster-rcnn."""
    long_side: Count = 500
    """Pixels. Selective search is not scale invariant, and a photograph of 12 megapixels would take it minutes: a
    larger image is searched at this size, which no VOC image exceeds (R-CNN, arXiv 1311.2524, section 4.2: 500
    wide)."""

    @model_validator(mode="after")
    def _dense_with_sparse(self) -> "ProposalsConfig":
        self.require(
            self.dense is None or self.method != "dense", "dense", "null with proposals.method dense", "method"
        )
        return self

    @property
    def search_cap(self) -> int:
        """The most boxes that selective search gives for an image."""
        return self.max_per_image or (10_000 if self.method == "quality" else 2000)

    def source(self, file: str | None) -> str | None:
        """Where the proposals of a data set come from that names this file; dense boxes need none."""
        return "dense boxes" if self.method == "dense" else file


class ImageConfig(Section, title="image"):
    train_short_side: Annotated[list[Count], Field(min_length=1)] = [600]
    """Scaled pixels; of several, one is drawn per image."""
    train_long_side: Count = 1000
    """Scaled pixels; an image whose long side would exceed this is scaled by it instead."""
    test_short_side: Annotated[list[Count], Field(min_length=1)] = [600]
    """Scaled pixels; several: multi-scale testing of section 3.3 (SPPnet's five: 480, 576, 688, 864, 1200)."""
    test_long_side: Count = 1000
    """Scaled pixels; five test scales want 2000."""
    flip: bool = True
    """The training set is doubled by horizontal flips."""

    @model_validator(mode="after")
    def _long_sides_leave_room(self, info: ValidationInfo) -> "ImageConfig":
        """A short side at most its long side. Of several test scales, those that an image of 4:3, VOC's most frequent
        shape, cannot reach would all be the same scale; 5/3 is the original's ratio of 1000 to 600 and 2000 to 1200."""
        for part, room in (("train", 1.0), ("test", 4 / 3 if len(self.test_short_side) > 1 else 1.0)):
            sides, key = f"{part}_short_side", f"{part}_long_side"
            largest = max(getattr(self, sides))
            fits = getattr(self, key) >= room * largest or info.context == STORED
            rule = f"{math.ceil(largest * 5 / 3)} for {sides} up to {largest}, or {sides} smaller"
            self.require(fits, key, rule, sides)
        return self


class ModelConfig(Section, title="model"):
    backbone: Literal["vgg16", "vgg_cnn_m_1024", "caffenet", "resnet50", "tiny"] = "vgg16"
    """L, M and S of the paper, a newer one, and tiny for trials and tests. M and S want pool_size 6 and freeze_up_to
    conv1, M fc_width [4096, 1024]. resnet50 has conv5, which halves pool_size, in place of fc6 and fc7; it wants
    pool_size 14 and freeze_up_to conv2_3, as Detectron."""
    weights: PathText | None = "IMAGENET1K_V1"
    """A name of torchvision's VGG16_Weights or ResNet50_Weights, a .safetensors file, or null: random."""
    normalisation: Literal["auto", "caffe", "torchvision"] = "auto"
    """Of pixels; auto asks the weights."""
    freeze_up_to: Text | None = "conv2_2"
    """Layers up to this one keep their weights; null trains all, a later layer freezes more."""
    fc_width: Annotated[
        Annotated[Count, Tag("<number>")] | Annotated[list[Count], Field(min_length=2, max_length=2), Tag("<numbers>")],
        Discriminator(lambda value: "<numbers>" if isinstance(value, list) else "<number>"),
    ] = 4096
    """Outputs of fc6 and fc7, or of each: [4096, 1024]; weights of another width are not taken over."""
    pool_layers: Annotated[list[Text], Field(min_length=1)] | None = None
    """Layers whose output RoIs are pooled from, merged to as many channels as the last has (skip pooling, as in ION,
    arXiv 1512.04143): such as [pool4, conv5_3]; null: the last alone. Of frozen layers only the last one's output is
    at hand: pool4 with freeze_up_to conv4_3."""
    roi_features: Literal["roi_pool", "roi_align", "spp", "warp"] = "roi_pool"
    """How RoIs become what fc6 takes. roi_pool: Fast R-CNN. roi_align: means of interpolated samples, nothing rounded
    (Mask R-CNN, arXiv 1703.06870). spp: a pyramid of bins (SPPnet, arXiv 1406.4729). warp: each RoI is cut out, warped
    to one size and goes through all layers on its own (R-CNN, arXiv 1311.2524); with 2,000 proposals that is 80 times
    the arithmetic."""
    pool_size: Count = 7
    """pool_size x pool_size bins for each RoI; for spp see pyramid."""
    pyramid: Annotated[list[Count], Field(min_length=1)] = [6, 3, 2, 1]
    """Of spp: bins on a side in each level; 50 bins in all (SPPnet, section 4.1)."""
    sampling_ratio: CountOrZero = 2
    """Of roi_align: samples on a side in each bin (Mask R-CNN, section 3: four in all); 0: one for each cell, or part
    of one, that a bin spans."""
    aligned: bool = True
    """Of roi_align: cell 0 has its centre half a cell from the edge of the picture; false, as in Mask R-CNN's first
    code: on the edge, and RoIs are at least one cell wide and high."""
    warp_size: Annotated[int, Field(ge=33, le=LARGEST)] = 224
    """Of warp: width and height in pixels, of which 16 on each side are context; R-CNN has 224 for VGG16, 227 for
    CaffeNet."""
    dropout: BelowOne = 0.5
    """After fc6 and fc7."""
    size_to_last_pixel: bool = False
    """Regression targets take a box's width and height to its last pixel, one less than everywhere here, as fast-rcnn
    does (lib/roi_data_layer/roidb.py, lib/fast_rcnn/test.py); false: as py-faster-rcnn (bbox_transform.py)."""

    @property
    def fc_widths(self) -> tuple[int, int]:
        """Outputs of fc6, and of fc7."""
        fc6, fc7 = self.fc_width if isinstance(self.fc_width, list) else (self.fc_width, self.fc_width)
        return fc6, fc7

    @property
    def bins(self) -> list[int]:
        """Bins on a side of what a RoI is pooled into; of a pyramid, for each level."""
        return self.pyramid if self.roi_features == "spp" else [self.pool_size]

    @property
    def bins_per_roi(self) -> int:
        """All of them."""
        return sum(size**2 for size in self.bins)

    @model_validator(mode="after")
    def _conv5_is_the_head(self) -> "ModelConfig":
        if self.backbone == "resnet50":
            rule = "a name of ResNet50_Weights or a file with backbone resnet50: its batch norm is not learnt"
            self.require(self.weights is not None, "weights", rule, "backbone")
            for key, default, value in (("fc_width", 4096, self.fc_width), ("dropout", 0.5, self.dropout)):
                rule = f"{default}, its default, with backbone resnet50, which has no fc6 and fc7"
                self.require(value == default, key, rule, "backbone")
            rule = "roi_pool, roi_align or warp with backbone resnet50: its conv5 takes one map of each RoI, no pyramid"
            self.require(self.roi_features != "spp", "roi_features", rule, "backbone")
            rule = "null with backbone resnet50: its conv5 takes features of conv4 alone"
            self.require(not self.pool_layers, "pool_layers", rule, "backbone")
        return self

    @model_validator(mode="after")
    def _one_map_or_several(self) -> "ModelConfig":
        rule = "null with model.roi_features spp or warp: SPPnet and R-CNN have features of the last layer alone"
        alone = self.roi_features in ("spp", "warp")
        self.require(not (alone and self.pool_layers), "pool_layers", rule, "roi_features")
        return self


class DetectionConfig(Section, title="test"):
    nms_iou: Fraction = 0.3
    """Of two detections of a class that overlap by more, the one with the lower score is dropped."""
    score_threshold: Fraction = 0.05
    """Detections that score less are dropped; this and max_detections as in py-faster-rcnn, lib/fast_rcnn/test.py."""
    max_detections: Count = 100
    """Per image, over all classes."""
    detections_per_class: Annotated[int, Field(ge=1, le=100)] | None = None
    """The choice of fast-rcnn (lib/fast_rcnn/test.py, test_net), with 40, in place of score_threshold and
    max_detections: the best 100 RoIs of each class of an image, and of these such as score more than a threshold for
    each class, which leaves so many an image on average over the whole test set; then NMS. tools/test.py does so; a
    picture on its own has no such threshold, and tools/detect.py uses score_threshold and max_detections."""
    bbox_regression: bool = True
    """false: detections have the boxes of their proposals, not those that bbox_pred gives (section 5.1)."""
    flip: bool = False
    """Look at the mirrored picture too, and take the mean of probabilities and boxes of each RoI: twice the time."""
    average_scales: bool = False
    """Of several image.test_short_side: look at each RoI in all, and take the mean, not in the one nearest 224^2."""
    second_pass: Count | None = None
    """So many of the best boxes, say 300, go through fc6 and fc7 again as RoIs; NMS sees the boxes of both passes, with
    the mean of their scores (after Gidaris and Komodakis 2015, section 4). null: one pass."""
    soft_nms: Literal["linear", "gaussian"] | None = None
    """Instead of dropping what overlaps a better detection, lower its score (Bodla et al. 2017): times 1 - IoU from
    nms_iou on, or times exp(-IoU^2 / 0.5), whatever nms_iou is; dropped is what falls to score_threshold, so set that
    low, as 0.001. null: drop."""
    box_voting: Annotated[float, Field(gt=0, le=1)] | None = None
    """Each detection gets the mean, weighted by score, of all boxes of its class that overlap it by this IoU or more
    (Gidaris and Komodakis 2015, section 4, with 0.5); its score stays. null: no voting."""
    ap_rule: Literal["11point", "area"] = "11point"
    """11point: VOC 2007 to 2009; area: VOC 2010 and later."""

    @model_validator(mode="after")
    def _one_choice_of_detections(self) -> "DetectionConfig":
        for key in ("soft_nms", "box_voting", "second_pass"):
            rule = "null with test.detections_per_class, which keeps boxes and scores as they are"
            self.require(None in (self.detections_per_class, getattr(self, key)), key, rule, "detections_per_class")
        rule = "null where test.bbox_regression is false: there are no other boxes to look at again"
        self.require(self.bbox_regression or self.second_pass is None, "second_pass", rule, "bbox_regression")
        return self


class CudaConfig(Section, title="cuda"):
    tf32: bool = False
    """Float32 convolutions and products with 10 bits of mantissa in place of 23: several times as fast on GPUs from
    Ampere on, and results that are no longer those of a CPU."""
    cudnn_benchmark: bool = False
    """cuDNN tries its ways of convolution for each new size of picture and takes the fastest, not the same in each run:
    worth it where few sizes come up."""


class ExpectedConfig(Section, title="expected"):
    """A row of the paper, which a run of configs/paper/ is to be compared with. Nothing is computed from it."""

    source: Text
    """The table, figure or section of the paper."""
    row: Text
    """What the paper calls the row, or what it varies."""
    mAP: Annotated[float, Field(ge=0, le=100)] | None = None
    """In per cent; null: the paper draws a curve."""


class Config(Section):
    """A run of Fast R-CNN."""

    classes: Annotated[list[Text], Field(min_length=1)]
    """The names of the object classes, without background, which is class 0."""
    recipe: Literal["fast-rcnn", "py-faster-rcnn"] | None = None
    """What else the keys say that a configuration does not write: as in rbgirshick/fast-rcnn (2015), or as in
    rbgirshick/py-faster-rcnn; see fastrcnn/config_recipes.py. null: the defaults."""
    data: DataConfig = DataConfig()
    proposals: ProposalsConfig = ProposalsConfig()
    image: ImageConfig = ImageConfig()
    model: ModelConfig = ModelConfig()
    sampling: SamplingConfig = SamplingConfig()
    solver: SolverConfig = SolverConfig()
    train: TrainConfig = TrainConfig()
    test: DetectionConfig = DetectionConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 3
    """Of all that is random; RNG_SEED of the original."""
    device: Text = "auto"
    """auto: cuda if there is one, else cpu."""
    cuda: CudaConfig = CudaConfig()
    """What is faster on a GPU at the price of equal results; without effect on a CPU."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of convolutions, fc6 and fc7; weights are kept, and all else is computed, in float32. float16 is for GPUs that
    lack bfloat16 (before Ampere), and slow on a CPU. Training then scales the loss so that small gradients are not
    lost, halves the scale and leaves out the step when one overflows, and doubles it after 2,000 good steps."""
    cache_features: bool = False
    """Compute the frozen layers once for each image, flip and scale, and train from disk."""
    cache_precision: Literal["int8"] | None = None
    """int8: compute and store them in int8, which takes half the time and half the disk that bfloat16 does; weights are
    rounded to 255 steps a channel, activations to 256. Where the processor has no instructions for it, and on a GPU, a
    line says so and it is as null. null: as `precision`; trained weights are those of a run without cache_features, to
    the bit."""
    feature_cache: PathText = "data/features"
    """Where; runs that freeze the same layers share it."""
    output: PathText = "runs/unnamed"
    """The run's folder; if a YAML file does not name one, runs/<name of the YAML file>."""
    expected: ExpectedConfig | None = None
    """What the paper says; a file does not take it over from its base."""

    @property
    def images_per_iteration(self) -> int:
        """Of all mini-batches that are accumulated, and of all ranks."""
        return self.sampling.images_per_batch * self.solver.accumulate

    def validating(self) -> "Config":
        """The same run with data.validation, if there is one, in place of data.test."""
        data = self.data.model_copy(update={"test": self.data.validation or self.data.test})
        return self.model_copy(update={"data": data})

    @model_validator(mode="before")
    @classmethod
    def _recipe_is_below(cls, tree: Any) -> Any:
        return with_recipe(tree)

    @model_validator(mode="after")
    def _names_differ(self) -> "Config":
        lowered = [name.strip().lower() for name in self.classes]
        self.require(all(lowered), "classes", "names that are not blank")
        twice = sorted({name for name in lowered if lowered.count(name) > 1})
        self.require(not twice, "classes", f"distinct without regard to case: {', '.join(twice)} is listed twice")
        background = {"background", "__background__"} & set(lowered)
        self.require(not background, "classes", "without background, which is always class 0")
        return self

    @model_validator(mode="after")
    def _head_comes_before_something(self) -> "Config":
        rule = "0 where model.freeze_up_to is null: convolutions that start at random have nothing to keep"
        self.require(not self.solver.head_iterations or bool(self.model.freeze_up_to), "solver.head_iterations", rule)
        return self

    @model_validator(mode="after")
    def _whole_pictures_have_features(self) -> "Config":
        warp = self.model.roi_features == "warp"
        rule = "false with model.roi_features warp: no layer sees the whole picture, and RoIs are drawn anew each time"
        self.require(not (warp and self.cache_features), "cache_features", rule, "model.roi_features")
        rule = "null with model.roi_features warp: all layers would run on every candidate"
        candidates = self.sampling.hard_candidates
        self.require(not (warp and candidates), "sampling.hard_candidates", rule, "model.roi_features")
        return self

    @model_validator(mode="after")
    def _what_is_cached_is_rounded(self) -> "Config":
        rule = "null, or cache_features true: layers that are computed in each iteration are not rounded"
        rounded = self.cache_precision is not None
        self.require(self.cache_features or not rounded, "cache_precision", rule, "cache_features")
        rule = f"null with model.backbone {self.model.backbone}: only layers of vgg16 and tiny have a form in int8"
        has = self.model.backbone in ("vgg16", "tiny")
        self.require(has or not rounded, "cache_precision", rule, "model.backbone")
        return self

    @model_validator(mode="after")
    def _scales_to_average(self) -> "Config":
        several = len(self.image.test_short_side) > 1
        rule = "false, or image.test_short_side a list of several scales to take the mean of"
        self.require(several or not self.test.average_scales, "test.average_scales", rule)
        return self

    @model_validator(mode="after")
    def _evaluation_has_images(self) -> "Config":
        rule = "null, or data.validation a list of data sets to evaluate on"
        some = bool(self.data.validation or self.data.test)
        self.require(self.train.eval_every is None or some, "train.eval_every", rule)
        return self


def from_dict(tree: Any, source: str = "config") -> Config:
    """A checked Config from nested dictionaries, such as the metadata of a weights file, also of earlier versions.

    `source` is the file that errors name. Raises ConfigError for an unknown key, a wrong type or an impossible value.
    """
    try:
        return Config.model_validate(without_old_values(tree)[0], context=STORED)
    except ValidationError as e:
        raise ConfigError(f"{source}: {faults(e, Config)[0].sentence()}") from None


def to_dict(section: Section) -> dict[str, Any]:
    """The whole configuration, or one section, as nested dictionaries; from_dict takes those of a configuration."""
    return section.model_dump()
