"""The schema of a run: its defaults are the recipe of rbgirshick/fast-rcnn (VGG16, VOC 2007), limits stand beside them.

Numbers without another source are from lib/fast_rcnn/config.py and models/VGG16/{solver,train}.prototxt of the original
code. The text below a field is its description in configs/schema.json, which editors show (tools/config_schema.py
writes it). fastrcnn/config_data.py has the section on data; fastrcnn/config_files.py reads and writes YAML.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from fastrcnn.config_data import DataConfig
from fastrcnn.config_old import without_old_values
from fastrcnn.config_rules import (
    STORED,
    BelowOne,
    ConfigError,
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    PathText,
    Positive,
    Section,
    Text,
    faults,
)

__all__ = ["Config", "ConfigError", "from_dict", "to_dict"]


class ProposalsConfig(Section, title="proposals"):
    method: Literal["fast", "quality"] = "fast"
    """Mode of selective search (Uijlings et al. 2013, as in OpenCV)."""
    max_per_image: Count | None = None
    """Boxes used of each image, the first; null: all of a .mat, .npz or .json file, as the original does; of our own
    search 2,000 (paper, section 2.3: R is typically around 2000), or 10,000 with `quality`, which finds about 5,500."""
    min_size: Count = 2
    """Pixels; smaller proposals are left out, as in py-faster-rcnn."""
    long_side: Count = 500
    """Pixels. Selective search is not scale invariant, and a photograph of 12 megapixels would take it minutes: a
    larger image is searched at this size, which no VOC image exceeds (R-CNN, arXiv 1311.2524, section 4.2: 500
    wide)."""

    @property
    def search_cap(self) -> int:
        """The most boxes that our own search gives for an image."""
        return self.max_per_image or {"fast": 2000, "quality": 10_000}[self.method]


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
    backbone: Literal["vgg16", "tiny"] = "vgg16"
    """tiny is for trials and tests."""
    weights: PathText | None = "IMAGENET1K_V1"
    """A name of torchvision's VGG16_Weights, a .safetensors file, or null: random."""
    normalisation: Literal["auto", "caffe", "torchvision"] = "auto"
    """Of pixels; auto asks the weights."""
    freeze_up_to: Text | None = "conv2_2"
    """Layers up to this one keep their weights; null trains all, a later layer freezes more."""
    fc_width: Count = 4096
    """Outputs of fc6 and fc7; weights of another width are not taken over."""
    pool_layers: Annotated[list[Text], Field(min_length=1)] | None = None
    """Layers whose output RoIs are pooled from, merged to as many channels as the last has (skip pooling, as in ION,
    arXiv 1512.04143): such as [pool4, conv5_3]; null: the last alone. Of frozen layers only the last one's output is
    at hand: pool4 with freeze_up_to conv4_3."""
    pool_size: Count = 7
    """RoI pooling gives pool_size x pool_size bins."""
    dropout: BelowOne = 0.5
    """After fc6 and fc7."""


class SamplingConfig(Section, title="sampling"):
    images_per_batch: Count = 2
    """N of the paper, section 2.3."""
    rois_per_batch: Count = 128
    """R of the paper, section 2.3; a multiple of images_per_batch."""
    foreground_fraction: Fraction = 0.25
    """At most this share of an image's RoIs is foreground."""
    foreground_iou: Fraction = 0.5
    """Foreground: IoU >= this."""
    background_iou: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.1, 0.5]
    """Background: IoU in [low, high)."""
    hard_candidates: Count | None = None
    """Online hard example mining (arXiv 1604.03540): so many RoIs of each image, drawn at random, are scored, and those
    of highest loss are learnt from; a large number means all. Background is then drawn from IoU 0 on. null: off."""

    @model_validator(mode="after")
    def _hard_examples_need_a_choice(self) -> "SamplingConfig":
        if self.hard_candidates is not None:
            rule = f"more than the {self.rois_per_image} RoIs of an image that are learnt from, such as 300, or null"
            more = self.hard_candidates > self.rois_per_image
            self.require(more, "hard_candidates", rule, "rois_per_batch", "images_per_batch")
            rule = "0.25, its default, with sampling.hard_candidates: the loss alone decides what is learnt from"
            self.require(self.foreground_fraction == 0.25, "foreground_fraction", rule, "hard_candidates")
            rule = "a list that starts with 0.0 or the default 0.1 with sampling.hard_candidates: it is taken as 0.0"
            self.require(self.background_iou[0] in (0.0, 0.1), "background_iou", rule, "hard_candidates")
        return self

    @model_validator(mode="after")
    def _rois_can_be_drawn(self) -> "SamplingConfig":
        n, (low, high) = self.images_per_batch, self.background_iou
        self.require(
            self.rois_per_batch % n == 0,
            "rois_per_batch",
            f"a multiple of sampling.images_per_batch ({n})",
            "images_per_batch",
        )
        self.require(low < high, "background_iou", "two numbers [low, high] with 0 <= low < high <= 1")
        at_most = f"at most sampling.foreground_iou ({self.foreground_iou}) at its upper end: no RoI can be both"
        self.require(high <= self.foreground_iou, "background_iou", at_most, "foreground_iou")
        return self

    @property
    def rois_per_image(self) -> int:
        """RoIs of each image in a batch, R / N of the paper."""
        return self.rois_per_batch // self.images_per_batch


class SolverConfig(Section, title="solver"):
    lr: Positive = 0.001
    """Rate of SGD."""
    backbone_lr: Positive | None = None
    """Rate of the trained convolutions; null: as lr."""
    schedule: Literal["step", "linear", "cosine"] = "step"
    """How the rate falls: in steps (the paper), or evenly or as half a cosine from the end of the warm-up to 0 at
    max_iterations."""
    steps: list[Count] = [30000]
    """Schedule `step`: iterations at which the rate is multiplied by gamma, growing."""
    gamma: Positive = 0.1
    """Schedule `step`: what the rate is multiplied by at each."""
    max_iterations: Count = 40000
    """Where training ends."""
    head_iterations: CountOrZero = 0
    """In the first so many, only the fully connected layers learn: a random head would change the convolutions for
    nothing (Kumar et al. 2022, arXiv 2202.10054)."""
    momentum: BelowOne = 0.9
    """Of SGD."""
    weight_decay: NotNegative = 0.0005
    """Of weights."""
    bias_lr_factor: NotNegative = 2.0
    """Biases learn at this times the rate."""
    bias_weight_decay: NotNegative = 0.0
    """Of biases."""
    warmup_iterations: CountOrZero = 0
    """The rate grows linearly from a tenth in these."""
    clip_gradient: Positive | None = None
    """Bound on the norm of the whole gradient; null: none."""
    bbox_loss_weight: NotNegative = 1.0
    """Lambda of the multi-task loss, paper section 2.3."""

    @model_validator(mode="after")
    def _steps_grow(self) -> "SolverConfig":
        self.require(self.steps == sorted(set(self.steps)), "steps", "growing iteration numbers")
        return self

    @model_validator(mode="after")
    def _iterations_remain(self) -> "SolverConfig":
        end = self.max_iterations
        for key in ("head_iterations", "warmup_iterations")[: 1 if self.schedule == "step" else 2]:
            self.require(getattr(self, key) < end, key, f"less than solver.max_iterations ({end})", "max_iterations")
        return self


class TrainConfig(Section, title="train"):
    log_every: Count = 20
    """Iterations; `display` of solver.prototxt."""
    checkpoint_every: Count = 1000
    """Iterations."""
    eval_every: Count | None = None
    """Iterations between evaluations, on data.validation, or data.test if there is none; null: none."""
    tensorboard: bool = False
    """Also write the metrics, and pictures of each evaluation, for TensorBoard: pip install "fastrcnn[tensorboard]"."""


class DetectionConfig(Section, title="test"):
    nms_iou: Fraction = 0.3
    """Of two detections of a class that overlap by more, the one with the lower score is dropped."""
    score_threshold: Fraction = 0.05
    """Detections that score less are dropped; this and max_detections as in py-faster-rcnn, lib/fast_rcnn/test.py."""
    max_detections: Count = 100
    """Per image, over all classes."""
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


class Config(Section):
    """A run of Fast R-CNN."""

    classes: Annotated[list[Text], Field(min_length=1)]
    """The names of the object classes, without background, which is class 0."""
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
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is for convolutions, fc6 and fc7 only."""
    cache_features: bool = False
    """Compute the frozen layers once for each image, flip and scale, and train from disk."""
    feature_cache: PathText = "data/features"
    """Where; runs that freeze the same layers share it."""
    output: PathText = "runs/unnamed"
    """The run's folder; if a YAML file does not name one, runs/<name of the YAML file>."""

    def validating(self) -> "Config":
        """The same run with data.validation, if there is one, in place of data.test."""
        data = self.data.model_copy(update={"test": self.data.validation or self.data.test})
        return self.model_copy(update={"data": data})

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
