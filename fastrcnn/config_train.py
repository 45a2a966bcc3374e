"""The part of a run's schema that says how the network learns: RoIs of a batch, SGD, what is written on the way.

Numbers without another source are those that config.py names.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from fastrcnn.config_rules import STORED, BelowOne, Count, CountOrZero, Fraction, NotNegative, Positive, Section, Text


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
    aspect_grouping: bool = False
    """A batch holds images that are all as wide as high or wider, or all higher (py-faster-rcnn, ASPECT_GROUPING of
    lib/fast_rcnn/config.py); one batch of an epoch may hold both, where the numbers do not come out even."""
    target_std: Annotated[list[Positive], Field(min_length=4, max_length=4)] | None = None
    """Targets (dx, dy, dw, dh) are divided by these for all classes, their mean taken as 0: [0.1, 0.1, 0.2, 0.2] in
    BBOX_NORMALIZE_STDS of py-faster-rcnn and in most ports. null: measured for each class, as in the original."""

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
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's SGD with momentum, or AdamW (arXiv 1711.05101), which learns more in few iterations. Its rates are
    some twenty times lower, and its weight_decay is 1 where that of SGD is 0.0005: see voc07_laptop.yaml."""
    lr: Positive = 0.001
    """Learning rate."""
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
    """Of SGD; of AdamW its beta1."""
    weight_decay: NotNegative = 0.0005
    """Of weights."""
    bias_lr_factor: NotNegative = 2.0
    """Biases learn at this times the rate."""
    bias_weight_decay: NotNegative | None = 0.0
    """Of biases; null: as weight_decay, which is what py-faster-rcnn's train.prototxt says, and the paper."""
    warmup_iterations: CountOrZero = 0
    """The rate grows linearly from a tenth in these."""
    clip_gradient: Positive | None = None
    """Bound on the norm of the whole gradient; null: none."""
    accumulate: Count = 1
    """So many mini-batches make one iteration, one after the other: the same weights, up to rounding, as from one that
    is so many times as large, in the memory of one. `iter_size` of Caffe."""
    bbox_loss_weight: NotNegative = 1.0
    """Lambda of the multi-task loss, paper section 2.3; 0: classification only (section 5.1)."""
    train_only: Annotated[list[Text], Field(min_length=1)] | None = None
    """Layers that learn; all others stay as model.weights has them, to the bit. [bbox_pred] is the second stage of
    stage-wise training (section 5.1; models/VGG16/piecewise of the original), dropout included. null: all that are not
    frozen."""

    @model_validator(mode="after")
    def _rates_suit_the_optimizer(self, info: ValidationInfo) -> "SolverConfig":
        """Where a file changes the optimizer of its base, numbers for the other one would stay. The bounds are ours."""
        adamw, backbone_lr = self.optimizer == "adamw", self.lr if self.backbone_lr is None else self.backbone_lr
        rule = "below 0.001 with solver.optimizer=adamw, such as 0.0002 for lr and 0.00003 for backbone_lr"
        for key, rate in (("lr", self.lr), ("backbone_lr", backbone_lr)):
            # A step moves each weight by its rate: of fc6 a tenth of its size at 0.001.
            self.require(not adamw or rate < 0.001, key, rule, "optimizer")
        unchecked = adamw or info.context == STORED  # weights may be older than these rules
        rule = "below 0.1 with solver.optimizer=sgd, such as 0.0005: more would take all weights to 0"
        self.require(unchecked or self.weight_decay < 0.1, "weight_decay", rule, "optimizer")
        rule = f"at least a hundredth of solver.lr ({self.lr:g}) with solver.optimizer=sgd, such as half of it, or null"
        self.require(unchecked or backbone_lr >= self.lr / 100, "backbone_lr", rule, "optimizer", "lr")
        return self

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

    @model_validator(mode="after")
    def _what_is_chosen_learns(self) -> "SolverConfig":
        rule = "0 with solver.train_only, which says for the whole run what learns"
        self.require(not (self.train_only and self.head_iterations), "head_iterations", rule, "train_only")
        rule = "greater than 0 where solver.train_only is bbox_pred alone: it learns from this loss only"
        learns = self.train_only != ["bbox_pred"] or self.bbox_loss_weight > 0
        self.require(learns, "bbox_loss_weight", rule, "train_only")
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
