"""The part of a run's schema that says which images and boxes there are, and what their numbers mean."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fastrcnn.config_rules import Count, CountOrZero, PathText, Section, Text


class SplitConfig(Section, title="split"):
    """A part of a data set that has no parts of its own."""

    part: Literal["train", "val", "test"]
    """The part to take."""
    of: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=2, max_length=3)]
    """Share of the images of each part: [train, test] or [train, val, test]."""
    seed: CountOrZero = 0
    """Another seed gives other parts."""

    @model_validator(mode="after")
    def _shares_are_of_one_whole(self) -> "SplitConfig":
        self.require(math.isclose(sum(self.of), 1, abs_tol=1e-6), "of", "two or three shares whose sum is 1")
        self.require(self.part in self.parts, "part", f"one of {', '.join(self.parts)}, which `of` gives shares", "of")
        return self

    @property
    def parts(self) -> dict[str, float]:
        """The share of each part."""
        names = ("train", "test") if len(self.of) == 2 else ("train", "val", "test")
        return dict(zip(names, self.of, strict=True))


def _kind_of_split(value: Any) -> str:
    if value is None:
        return "<null>"
    return "<part>" if isinstance(value, dict | SplitConfig) else "<names>" if isinstance(value, list) else "<name>"


class DataSetConfig(Section, title="data set"):
    """One set of annotated images. `train`, `validation` and `test` are lists of these, each joined to one.

    Paths are relative to the working folder; ~ and environment variables are expanded in YAML files.
    """

    format: Literal["voc", "folder", "coco", "yolo"] = "voc"
    """voc: root/{Annotations,ImageSets/Main,JPEGImages}; folder: images with XML files beside them or apart; coco: one
    JSON file; yolo: data.yaml or a file of names, and a text file of boxes for each image."""
    root: PathText = "data/VOCdevkit/VOC2007"
    """voc: the folder of one year; else: where the images are."""
    split: Annotated[
        Annotated[PathText, Tag("<name>")]
        | Annotated[list[PathText], Field(min_length=1), Tag("<names>")]
        | Annotated[SplitConfig, Tag("<part>")]
        | Annotated[None, Tag("<null>")],
        Discriminator(_kind_of_split),
    ] = None
    """voc: a list in ImageSets/Main, such as trainval; folder: a text file of image names, or null: all images; coco,
    yolo: train, val or test, where the set has several. Several names are joined. {part: train, of: [0.8, 0.2]} takes a
    part of all images: which one an image is in depends on what its file holds alone."""
    annotations: PathText | None = None
    """voc, folder: where the XML files are; coco: the JSON file; yolo: the labels or data.yaml; null: where they
    usually are, as beside the images."""
    proposals: PathText | None = None
    """.safetensors of tools/proposals.py, .mat as published, .npz or .json of one's own; null, in data.test alone: each
    evaluation searches for them anew."""
    download: bool = False
    """voc: fetch the archive through torchvision when root is absent."""
    source: Text | None = None
    """Where the data set comes from, in words: files, address, where to unpack them. Told when it is absent."""

    @model_validator(mode="after")
    def _voc_has_a_list(self) -> "DataSetConfig":
        rule = "the name of a list in ImageSets/Main, such as trainval"
        self.require(self.format != "voc" or self.split is not None, "split", rule, "format")
        return self

    @property
    def label(self) -> str:
        """The root and the split, as messages name a data set."""
        part = f"{self.split.part} of {self.split.of}" if isinstance(self.split, SplitConfig) else ""
        return f"{self.root} {part or ', '.join(self.split_names)}".strip()

    @property
    def split_names(self) -> list[str]:
        """The lists or parts that `split` names; none: all images."""
        if isinstance(self.split, str):
            return [self.split]
        return self.split if isinstance(self.split, list) else []


PARTS = ("train", "validation", "test")  # the lists of data sets in DataConfig


class DataConfig(Section, title="data"):
    train: list[DataSetConfig] = [DataSetConfig(split="trainval")]
    """Data sets to train on, joined."""
    validation: list[DataSetConfig] = []
    """Data sets on which train.eval_every chooses the best weights, joined; without any it does so on `test`."""
    test: list[DataSetConfig] = []
    """Data sets to evaluate on, joined; without any, training works and evaluation does not."""
    xml_origin: Annotated[int, Field(ge=0, le=1)] = 1
    """Coordinate of the first pixel in the XML files: 1 as in VOC, 0 as some tools write."""
    boxes_drawn_on: Literal["upright", "stored"] | None = None
    """Boxes of pictures that EXIF turns: drawn on the picture upright, or as its pixels are stored, and then turned
    with it; null: upright, but an error for a picture whose size is stated as it is stored."""
    on_unknown_class: Literal["error", "ignore"] = "error"
    """An object whose class is not in `classes`: stop, or leave the object out."""
    on_bad_box: Literal["error", "clip", "skip"] = "error"
    """A box that is empty, inside out or leaves its image: stop, clip it to the image, or leave the object out."""
    on_unreadable_image: Literal["error", "skip"] = "error"
    """An image file that is missing or cannot be decoded: stop, or leave the image out. To know, skip decodes all."""
    on_unlabelled_image: Literal["error", "skip", "empty"] | None = None
    """An image without annotations: stop, leave it out, or take it as one without objects; null: error for voc where
    other images have some, empty for folder and yolo. A coco file names its images: others are not in the set."""
    limit: Count | None = None
    """Only the first images of each data set, so many, to try a run the whole way."""
    drop_difficult: bool = False
    """Train without objects marked difficult: the paper's "07\\diff" rows and py-faster-rcnn."""
    drop_empty: bool = False
    """Train without images that hold no objects."""
    workers: CountOrZero = 1
    """Loader processes; 0 loads in the training process; the batches are the same for any number."""
