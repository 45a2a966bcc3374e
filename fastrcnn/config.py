"""The schema of a run: dataclasses whose defaults are the recipe of rbgirshick/fast-rcnn (VGG16, VOC 2007).

A YAML file is a diff from these defaults. It may name a `base` file that it is a diff from in turn, and any key can be
overridden on the command line (`solver.max_iterations=100`). Numbers without another source are from
lib/fast_rcnn/config.py and models/VGG16/{solver,train}.prototxt of the original code.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastrcnn.errors import FastRCNNError


class ConfigError(FastRCNNError):
    """A configuration that cannot be: names the file, the key and the nearest valid key or value."""


@dataclass
class DataSetConfig:
    """One set of annotated images. `train` and `test` are lists of these; several are joined in one run.

    Paths are relative to the working folder.
    """

    format: str = "voc"  # voc: root/{Annotations,ImageSets/Main,JPEGImages}; folder: images with XML beside or apart
    root: str = "data/VOCdevkit/VOC2007"  # voc: the folder of one year; folder: where the images are
    split: str = ""  # voc: a list in ImageSets/Main, such as trainval; folder: a text file of image names, or all
    annotations: str = ""  # folder: where the XML files are, if not beside the images
    proposals: str = ""  # .safetensors of tools/proposals.py, .mat as published, .npz or .json of one's own
    download: bool = False  # voc: fetch the archive through torchvision when root is absent


@dataclass
class DataConfig:
    train: list[DataSetConfig] = field(default_factory=lambda: [DataSetConfig(split="trainval")])
    test: list[DataSetConfig] = field(default_factory=lambda: [DataSetConfig(split="test")])
    xml_origin: int = 1  # coordinate of the first pixel in the XML files: 1 as in VOC, 0 as some tools write
    on_unknown_class: str = "error"  # error | ignore: an object whose class is not in `classes`
    on_bad_box: str = "error"  # error | clip | skip: a box that is empty, inside out or leaves its image
    drop_difficult: bool = False  # True is the paper's "07\diff" rows and py-faster-rcnn
    drop_empty: bool = False  # True leaves images without objects out of training
    workers: int = 1  # loader processes; 0 loads in the training process; the batches are the same for any number


@dataclass
class ProposalsConfig:
    method: str = "fast"  # selective search: fast | quality (Uijlings et al. 2013, as in OpenCV)
    max_per_image: int = 2000  # paper, section 2.3: R is typically around 2000
    min_size: int = 2  # pixels; smaller proposals are left out, as in py-faster-rcnn
    # Pixels. Selective search is not scale invariant, and a photograph of 12 megapixels would take it minutes: a larger
    # image is searched at this size, which no VOC image exceeds (R-CNN, arXiv 1311.2524, section 4.2: 500 wide).
    long_side: int = 500


@dataclass
class ImageConfig:
    train_short_side: list[int] = field(default_factory=lambda: [600])  # several: one drawn per image
    train_long_side: int = 1000
    test_short_side: list[int] = field(default_factory=lambda: [600])  # several: section 3.3's multi-scale testing
    test_long_side: int = 1000
    flip: bool = True  # the training set is doubled by horizontal flips


@dataclass
class ModelConfig:
    backbone: str = "vgg16"  # vgg16 | tiny
    weights: str = "IMAGENET1K_V1"  # a name of torchvision's VGG16_Weights, a .safetensors file, or "" for random
    normalisation: str = "auto"  # auto | caffe | torchvision: pixels in; auto asks the weights
    freeze_up_to: str = "conv2_2"  # layers up to this one keep their weights; "" trains all, a later layer freezes more
    fc_width: int = 4096  # outputs of fc6 and fc7; weights of another width are not taken over
    pool_size: int = 7  # RoI pooling gives pool_size x pool_size bins
    dropout: float = 0.5  # after fc6 and fc7


@dataclass
class SamplingConfig:
    images_per_batch: int = 2  # N
    rois_per_batch: int = 128  # R
    foreground_fraction: float = 0.25
    foreground_iou: float = 0.5  # foreground: IoU >= this
    background_iou: list[float] = field(default_factory=lambda: [0.1, 0.5])  # background: IoU in [low, high)


@dataclass
class SolverConfig:
    lr: float = 0.001
    backbone_lr: float = 0.0  # rate of the trained convolutions; 0: the same as lr
    steps: list[int] = field(default_factory=lambda: [30000])
    gamma: float = 0.1
    max_iterations: int = 40000
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_lr_factor: float = 2.0
    bias_weight_decay: float = 0.0
    warmup_iterations: int = 0  # rate grows linearly from a tenth
    clip_gradient: float = 0.0  # bound on the norm of the whole gradient; 0: none
    bbox_loss_weight: float = 1.0  # lambda of the multi-task loss, paper section 2.3


@dataclass
class TrainConfig:
    log_every: int = 20  # `display` of solver.prototxt
    checkpoint_every: int = 1000
    eval_every: int = 0  # iterations between evaluations on data.test; 0: none


@dataclass
class TestConfig:
    nms_iou: float = 0.3
    score_threshold: float = 0.05  # this and max_detections as in py-faster-rcnn, lib/fast_rcnn/test.py
    max_detections: int = 100  # per image, over all classes
    ap: str = "11point"  # 11point (VOC 2007 to 2009) | area (VOC 2010 and later)


@dataclass
class Config:
    classes: list[str] = field(default_factory=list)  # without background, which is class 0
    data: DataConfig = field(default_factory=DataConfig)
    proposals: ProposalsConfig = field(default_factory=ProposalsConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    seed: int = 3  # RNG_SEED
    device: str = "auto"  # auto: cuda if there is one, else cpu
    precision: str = "float32"  # float32 | bfloat16 (convolutions, fc6 and fc7 only)
    cache_features: bool = False  # compute the frozen layers once for each image, flip and scale, and train from disk
    feature_cache: str = "data/features"  # where; runs that freeze the same layers share it
    output: str = ""  # the run's folder; "": runs/<name of the YAML file>


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, its bases and `key=value` overrides into a checked Config.

    Raises ConfigError for a missing or malformed file, an unknown key, a wrong type or an impossible value.
    """
    path = Path(path)
    tree = _read_with_bases(path, ())
    tree.setdefault("output", f"runs/{path.stem}")
    for override in overrides:
        _apply_override(tree, override)
    return from_dict(tree, source=str(path))


def from_dict(tree: dict[str, Any], source: str = "config") -> Config:
    """A checked Config from nested dictionaries; `source` is the file that errors name."""
    _check_keys(tree, Config, source, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(tree, flags={"allow_objects": False}))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as e:
        key = e.full_key or "?"
        raise ConfigError(f"{source}: {key}: {str(e).splitlines()[0]}") from None
    _check_values(config, source)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The whole configuration as nested dictionaries that from_dict takes back."""
    return dataclasses.asdict(config)


def save(config: Config, path: str | Path) -> None:
    """Write the resolved configuration as YAML."""
    from fastrcnn.files import atomic_write

    with atomic_write(path) as file:
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True).encode())


MAX_VALUES = 100_000  # in a YAML file with all aliases written out; no configuration comes near


def _parse(text: str) -> Any:
    """yaml.safe_load, but a few lines of aliases to aliases, which stand for more than memory holds, are refused."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _values(root, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases (*name) stand for more than {MAX_VALUES} values; write them out")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _values(node: yaml.Node, counted: dict[int, float]) -> float:
    """How many values a node stands for; infinitely many if it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = math.inf
        mapping = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if mapping else node.value
        counted[id(node)] = 1 + sum(_values(child, counted) for child in children)
    return counted[id(node)]


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: is its own base; remove one of the `base` keys")
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; see configs/ for those that come with it") from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(e).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, not {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: must be the name of a YAML file")
    return _merge(_read_with_bases(path.parent / base, (*seen, path.resolve())), tree)


def _merge(base: dict, diff: dict) -> dict:
    """`diff` over `base`; mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in diff.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(tree: dict, override: str) -> None:
    """Set one dotted key, `data.train.0.root=/voc`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key=value, such as solver.max_iterations=100")
    try:
        value = _parse(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    parts = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, list):
            node = _list_item(node, part, override)
            continue
        missing = not isinstance(node.get(part), dict | list)
        if missing:
            node[part] = _default_of(parts[: depth + 1])
        node = node[part]
    if isinstance(node, list):
        _list_item(node, parts[-1], override)
        node[int(parts[-1])] = value
    else:
        node[parts[-1]] = value


def _list_item(items: list, index: str, override: str) -> Any:
    if not index.isdecimal() or int(index) >= len(items):
        raise ConfigError(f"override {override!r}: {index} is not one of the list's positions 0 to {len(items) - 1}")
    return items[int(index)]


def _default_of(parts: list[str]) -> Any:
    """The default of a list-valued key, so that data.train.0.root can be set on it; else an empty mapping."""
    node: Any = Config()
    for part in parts:
        node = getattr(node, part, None)
    return [dataclasses.asdict(item) for item in node] if isinstance(node, list) and node else {}


def _check_keys(tree: Any, schema: type, source: str, prefix: str) -> None:
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: {prefix.rstrip('.') or 'the file'}: must be a mapping, not {tree!r}")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in tree.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{source}: unknown key {prefix}{key}; the nearest valid key is {prefix}{near}")
        kind = fields[key].type
        if dataclasses.is_dataclass(kind):
            _check_keys(value, kind, source, f"{prefix}{key}.")
        elif get_origin(kind) is not list:
            _check_single(value, source, f"{prefix}{key}")
        elif not isinstance(value, list):
            raise ConfigError(f"{source}: {prefix}{key}: must be a list, not {value!r}")
        else:
            for i, item in enumerate(value):
                if kind == list[DataSetConfig]:
                    _check_keys(item, DataSetConfig, source, f"{prefix}{key}.{i}.")
                else:
                    _check_single(item, source, f"{prefix}{key}.{i}")


def _check_single(value: Any, source: str, key: str) -> None:
    if isinstance(value, dict | list):
        raise ConfigError(f"{source}: {key}: must be a single value, not {value!r}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{source}: {key}: is too large a number")


CHOICES = {
    "data.on_unknown_class": ("error", "ignore"),
    "data.on_bad_box": ("error", "clip", "skip"),
    "data.xml_origin": (0, 1),
    "proposals.method": ("fast", "quality"),
    "model.backbone": ("vgg16", "tiny"),
    "model.normalisation": ("auto", "caffe", "torchvision"),
    "test.ap": ("11point", "area"),
    "precision": ("float32", "bfloat16"),
}
POSITIVE = (
    "proposals.max_per_image proposals.min_size proposals.long_side image.train_long_side image.test_long_side "
    "model.fc_width model.pool_size sampling.images_per_batch sampling.rois_per_batch solver.lr solver.gamma "
    "solver.max_iterations train.log_every train.checkpoint_every test.max_detections"
).split()
NOT_NEGATIVE = (
    "data.workers solver.backbone_lr solver.weight_decay solver.bias_lr_factor solver.bias_weight_decay "
    "solver.warmup_iterations solver.clip_gradient solver.bbox_loss_weight train.eval_every seed"
).split()
FRACTIONS = (
    "sampling.foreground_fraction sampling.foreground_iou test.nms_iou test.score_threshold model.dropout "
    "solver.momentum"
).split()


def _check_values(config: Config, source: str) -> None:
    def value(key: str) -> Any:
        node: Any = config
        for part in key.split("."):
            node = getattr(node, part)
        return node

    def require(ok: bool, key: str, rule: str) -> None:
        if not ok:
            raise ConfigError(f"{source}: {key} is {value(key)!r}; it must be {rule}")

    for key, choices in CHOICES.items():
        require(value(key) in choices, key, "one of " + ", ".join(str(c) for c in choices))
    for key in POSITIVE:
        require(math.isfinite(value(key)) and value(key) > 0, key, "greater than 0")
    for key in NOT_NEGATIVE:
        require(math.isfinite(value(key)) and value(key) >= 0, key, "0 or greater")
    for key in FRACTIONS:
        require(0 <= value(key) <= 1, key, "between 0 and 1")
    for key in ("model.dropout", "solver.momentum"):
        require(value(key) < 1, key, "less than 1")

    require(len(config.classes) > 0, "classes", "the names of the object classes, at least one")
    lowered = [name.strip().lower() for name in config.classes]
    require(all(lowered), "classes", "names that are not empty")
    twice = sorted({name for name in lowered if lowered.count(name) > 1})
    require(not twice, "classes", f"distinct without regard to case: {', '.join(twice)} stands twice")
    background = [name for name in lowered if name in ("background", "__background__")]
    require(not background, "classes", "without background, which is always class 0")

    for name in ("train", "test"):
        for i, dataset in enumerate(getattr(config.data, name)):
            key = f"data.{name}.{i}"
            if dataset.format not in ("voc", "folder", "coco", "yolo"):
                rule = "one of voc, folder, coco, yolo"
                raise ConfigError(f"{source}: {key}.format is {dataset.format!r}; it must be {rule}")
            if dataset.format == "voc" and not dataset.split:
                raise ConfigError(f"{source}: {key}.split is empty; name a list of ImageSets/Main, such as trainval")
    for key in ("image.train_short_side", "image.test_short_side"):
        require(len(value(key)) > 0 and min(value(key)) > 0, key, "a list of sizes in pixels, such as [600]")
    n, r = config.sampling.images_per_batch, config.sampling.rois_per_batch
    require(r % n == 0, "sampling.rois_per_batch", f"a multiple of sampling.images_per_batch ({n})")
    bounds = config.sampling.background_iou
    ordered = len(bounds) == 2 and 0 <= bounds[0] < bounds[1] <= 1
    require(ordered, "sampling.background_iou", "two numbers [low, high] with 0 <= low < high <= 1")
    foreground = config.sampling.foreground_iou
    require(
        ordered and bounds[1] <= foreground,
        "sampling.background_iou",
        f"at most sampling.foreground_iou ({foreground}) at its upper end: no RoI can be both",
    )
    steps = config.solver.steps
    require(steps == sorted(set(steps)) and all(s > 0 for s in steps), "solver.steps", "growing iteration numbers")
