"""From a picture to named boxes: proposals, features, RoI pooling, fc6 and fc7, decoding, NMS (section 3)."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import closing
from copy import deepcopy
from functools import cached_property, partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.annotations.records import class_index
from fastrcnn.config import Config
from fastrcnn.detect.ahead import Ready, ahead, make_ready
from fastrcnn.detect.nms import best_of_each_class, select_detections
from fastrcnn.detect.views import Look, Rows, look_at
from fastrcnn.detections import Detections
from fastrcnn.device import set_cuda, tell_of_slow_type
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import prepare_image
from fastrcnn.inputs import Picture, as_pixels, as_rois
from fastrcnn.model import int8, onednn
from fastrcnn.model.backbones import without_batch_norm
from fastrcnn.model.fast_rcnn import REDUCED, FastRCNN, Features
from fastrcnn.model.roi_features import bins_first, unique_rois
from fastrcnn.model.score_thresholds import ScoreThresholds
from fastrcnn.model.weights import load_model
from fastrcnn.processes import cores
from fastrcnn.threads import one_thread

log = logging.getLogger(__name__)

BEST_OF_CLASS = 100  # RoIs of an image before NMS: max_per_image of test_net (fast-rcnn, lib/fast_rcnn/test.py)
Score: TypeAlias = float | int | str | None  # a number, `auto`, or None: test.score_threshold


def detection_settings(config: Config) -> dict[str, Any]:
    """The part of a configuration that detections depend on, as JSON has it.

    >>> detection_settings(detector.config)["classes"]
    ['dog', 'cat', 'horse']
    """
    tree = configs.to_dict(config)
    return {name: tree[name] for name in ("image", "proposals", "test", "precision", "cuda", "classes")}


class Detector:
    """A trained network at work.

    >>> detector = fastrcnn.load("model.safetensors")
    >>> found = detector.detect("street.jpg")

    It copies the model's weights, once, in its own precision, on its device, and those of fc6 in the order in which
    pooling for inference gives features. The model stays as it is, and what becomes of it later changes no detection.
    fastrcnn.load lets go of its model, so that only the copy stays in memory.
    """

    score_thresholds: ScoreThresholds | None = None

    def __init__(self, model: FastRCNN, config: Config, device: torch.device):
        """Raises FastRCNNError for a configuration with another number of classes than the model."""
        if len(config.classes) + 1 != model.num_classes:
            raise FastRCNNError(
                f"the configuration has {len(config.classes)} classes, the model {model.num_classes - 1}; give its own"
            )
        set_cuda(config.cuda)
        tell_of_slow_type(model.precision, device.type)
        self.config, self.device = config, device
        self.score_thresholds = model.score_thresholds
        self.model = _copied(model, device)

    @property
    def precision(self) -> str:
        """float32, bfloat16 or float16."""
        return self.model.precision

    @overload
    def detect(
        self,
        image: Picture,
        proposals: ArrayLike | Tensor | None = None,
        image_id: str | None = None,
        score: Score = None,
    ) -> Detections: ...

    @overload
    def detect(
        self,
        image: list[Picture] | tuple[Picture, ...],
        proposals: Sequence[ArrayLike | Tensor | None] | None = None,
        image_id: Sequence[str | None] | None = None,
        score: Score = None,
    ) -> list[Detections]: ...

    def detect(
        self, image: Any, proposals: Any = None, image_id: Any = None, score: Score = None
    ) -> Detections | list[Detections]:
        """Find objects in a picture, or in each of a list: see inputs.FORMS for what a picture may be.

        >>> found = detector.detect("street.jpg")
        >>> found = detector.detect(Image.open("street.jpg"), proposals=[[0, 0, 64, 48], [20, 10, 90, 60]])
        >>> one, other = detector.detect(["street.jpg", "street.jpg"])

        proposals [P, 4] are in image pixels, half open, and all are used; none are found where they are an empty list.
        Without them, selective search finds its own (seconds), its random order seeded by image_id, which for a file is
        its name without suffix. For a list of pictures, proposals and image_id are lists, too.

        score: a number takes the place of test.score_threshold; `auto` gives what scores at least the thresholds of the
        classes that tools/test.py measured and stored in the weights. Raises FastRCNNError for a file that is no
        picture, for pixels or proposals of another form, and as score_limits does.
        """
        if isinstance(image, list | tuple):
            return list(self.detect_many(image, proposals, image_id, score))
        self.score_limits(score)  # before any work
        return self._find(*self._making(image, proposals, image_id, cores())(), score)

    def detect_many(
        self,
        images: Iterable[Picture],
        proposals: Iterable[ArrayLike | Tensor | None] | None = None,
        ids: Iterable[str | None] | None = None,
        score: Score = None,
        threads: int | None = None,
    ) -> Generator[Detections, None, None]:
        """What `detect` finds in each of any number of pictures, in their order, when it is asked for.

        >>> photos = sorted(Path("photos").glob("*.jpg"))
        >>> for path, found in zip(photos, detector.detect_many(photos)):
        ...     drawn = found.plot(path, f"found_{path.name}")

        While the network is at one picture, the proposals of the next ones are searched by `threads` threads (all cores
        but one, at most 16); each holds one picture, and of `images`, which may be endless, so many and one more are
        taken before their turn. proposals and ids go with the images one by one; None among them, and score, are as for
        `detect`. Folders of pictures, as tools/detect.py takes them, are searched by processes, which yield to the
        network; here they would have to import the calling script.

        An error of picture k comes at k, after what was found before it, and starts with `images[k]`; one that
        `images` itself raises comes as it is. Left early, by `break` or Ctrl-C, it waits for what is searched at that
        moment and starts nothing more. Raises FastRCNNError as `detect` does, for one picture in place of many, and
        for other numbers of proposals or ids than of images.
        """
        if isinstance(images, str | Path | Image.Image) or (
            isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        ):
            raise FastRCNNError("images: is one picture; give a list of them, or any iterable, or call `detect`")
        columns: list[Iterator[Any]] = []
        given: Any
        for name, given in (("images", images), ("proposals", proposals), ("ids", ids)):
            if isinstance(images, Sized) and isinstance(given, Sized) and len(given) != len(images):
                raise FastRCNNError(f"{len(images)} images need as many {name}, not {len(given)}")
            try:
                columns.append(repeat(None) if given is None and name != "images" else iter(given))
            except TypeError:
                raise FastRCNNError(
                    f"{name}: is of type {type(given).__name__}; give a list, or any iterable"
                ) from None
        self.score_limits(score)  # before any work
        return self._find_each(ahead(self._making_each(*columns), threads), score)

    def _find_each(
        self, ready: Generator[Future[Ready], None, None], score: Score
    ) -> Generator[Detections, None, None]:
        with closing(ready):
            for k, future in enumerate(ready):
                try:
                    found = self._find(*future.result(), score)
                except FastRCNNError as e:
                    raise FastRCNNError(f"images[{k}]: {str(e).removeprefix('image: ')}") from None
                yield found

    def _making_each(self, images: Iterator[Picture], *columns: Iterator[Any]) -> Iterator[Callable[[], Ready]]:
        """What makes each picture ready, with its own entry of each column: proposals and ids."""
        for image in images:
            row = [value for column in columns for value in islice(column, 1)]
            if len(row) < len(columns):
                raise FastRCNNError("has no proposals or id of its own, as they ended before; give one for each image")
            yield self._making(image, *row)

    def _making(
        self, image: Picture, proposals: ArrayLike | Tensor | None, image_id: str | None, threads: int = 1
    ) -> Callable[[], Ready]:
        """What makes a picture ready, at any time: the arrays of the caller, who may fill them again, are copied."""
        own_id, source = "", image
        if isinstance(source, str | Path):
            own_id = Path(source).stem
        else:
            source = as_pixels(source).copy()
        boxes = None if proposals is None else as_rois(proposals).clone()
        name = own_id if image_id is None else image_id
        return partial(make_ready, source, boxes, name, self.config.proposals, threads)

    def score_limits(self, score: Score) -> Float32[np.ndarray, "K"]:
        """The score that a detection of each class must have, from index 1 on, for an argument of detect.

        >>> limits = detector.score_limits(0.3)

        Raises FastRCNNError for a number outside 0..1 or another word, and for `auto` with weights that hold no
        thresholds.
        """
        if score == "auto":
            return self._auto_limits
        if score is None:
            score = self.config.test.score_threshold
        if isinstance(score, str | bool) or not 0 <= score <= 1:  # nor NaN
            raise FastRCNNError(f"score is {score!r}; it must be auto or a number from 0 to 1")
        return np.full(len(self.config.classes) + 1, score, np.float32)

    @cached_property
    def _auto_limits(self) -> Float32[np.ndarray, "K"]:
        measured, otherwise = self.score_thresholds, self.config.test.score_threshold
        if measured is None:
            raise FastRCNNError(
                "score is auto, and these weights hold no score thresholds; measure them first: "
                "python tools/test.py CONFIG WEIGHTS"
            )
        without = [name for name in self.config.classes if name not in measured.scores]
        rest = f"; {otherwise} for classes of which nothing was found there: {', '.join(without)}" if without else ""
        log.info("score thresholds measured on %s, %d images%s", measured.data, measured.images, rest)
        return measured.limits(self.config.classes, otherwise)

    @torch.inference_mode()
    @one_thread()
    def _find(self, pixels: UInt8[np.ndarray, "H W 3"], proposals: ArrayLike | Tensor, score: Score) -> Detections:
        scores, boxes = self.classify(pixels, as_rois(proposals).to(self.device))
        test = self.config.test
        lowest = test.score_threshold if score is None or isinstance(score, str) else score
        limits = (lowest, test.nms_iou, test.max_detections)
        kept = select_detections(scores, boxes, *limits, test.soft_nms, test.box_voting)
        boxes_kept, classes, best = (part.cpu().numpy() for part in kept)
        found = Detections(boxes_kept, classes, best, tuple(self.config.classes))
        return found.above(self.score_limits(score)) if score == "auto" else found

    @torch.inference_mode()
    @one_thread()
    def best_of_each_class(
        self, image: Picture, proposals: ArrayLike | Tensor | None = None, image_id: str | None = None
    ) -> tuple[Detections, Float32[np.ndarray, "K _"]]:
        """For a choice among the detections of many pictures (test.detections_per_class): what NMS leaves of the best
        100 RoIs of each class, whatever they score, and the scores of these RoIs.

        >>> found, scores = detector.best_of_each_class("street.jpg")

        Arguments are those of `detect`. Scores are best first, -inf for background and where there is no box.
        """
        pixels, rois = self._making(image, proposals, image_id)()
        rows = self.classify(pixels, as_rois(rois).to(self.device))
        kept, top = best_of_each_class(*rows, self.config.test.nms_iou, BEST_OF_CLASS)
        found, classes, best = (part.cpu().numpy() for part in kept)
        return Detections(found, classes, best, tuple(self.config.classes)), top.cpu().numpy()

    @torch.inference_mode()
    @one_thread()
    def classify(self, image: UInt8[np.ndarray, "H W 3"], rois: Float32[Tensor, "R 4"]) -> Rows:
        """Probabilities and boxes of every RoI, and of the boxes of a second pass; see views.look_at.

        >>> scores, boxes = detector.classify(as_pixels("street.jpg"), torch.tensor([[0.0, 0, 64, 48]]))

        Boxes and RoIs are in image pixels, boxes clipped to the image.
        """
        return look_at(self._network, image, rois, self.config)

    def _network(self, image: UInt8[np.ndarray, "H W 3"], scale: float) -> Look:
        """The feature map of a picture at a scale, in what gives the rows of its RoIs."""
        normalisation = self.model.normalisation
        pixels = prepare_image(image, scale, normalisation.mean, normalisation.std).to(self.device)
        return partial(self._head, self.model.features([pixels]), scale)

    def _head(self, features: Features, scale: float, rois: Float32[Tensor, "R 4"]) -> Rows:
        """Probabilities of RoIs of one feature map, and boxes that are not clipped yet."""
        scores, deltas = self._after_fc7(self.model.siblings, features, scale, rois)
        return self.model.probabilities(scores), box_ops.decode(rois, deltas, self.model.config.size_to_last_pixel)

    def fc7(self, features: Features, scale: float, rois: Float32[Tensor, "R 4"]) -> Float32[Tensor, "R D"]:
        """What fc7 gives, D numbers, for RoIs (image pixels) of an image's feature maps, which are of it at a scale.

        >>> maps = detector.model.features([torch.zeros(3, 96, 128)])
        >>> len(detector.fc7(maps, 1.0, torch.tensor([[0.0, 0, 64, 48]])))
        1
        """
        return self._after_fc7(lambda x: (x,), features, scale, rois)[0]

    def _after_fc7(
        self,
        last: Callable[[Tensor], tuple[Tensor, ...]],
        features: Features,
        scale: float,
        rois: Float32[Tensor, "R 4"],
    ) -> list[Float32[Tensor, "R _"]]:
        model = self.model
        projected = model.project(rois, scale)
        # RoIs that round to the same cells have the same features: pool and multiply one of them for all.
        distinct, inverse = unique_rois(model.cells(projected))
        chunks = model.pool_for_inference(features, [projected[distinct]])
        parts = [last(model.fully_connected(pooled)) for pooled in chunks]
        return [torch.cat(part)[inverse] for part in zip(*parts, strict=True)]


def load_detector(config: Config, weights: str | Path, device: torch.device) -> tuple[Detector, Config]:
    """The network of a weights file at work under `config`, and the configuration that it was trained with.

    >>> again, trained = load_detector(detector.config, "model.safetensors", detector.device)

    Raises FastRCNNError as load_model does, and for weights of other classes.
    """
    model, trained = load_model(weights, config.precision, with_int8=True)
    if list(class_index(trained.classes)) != list(class_index(config.classes)):
        raise FastRCNNError(
            f"{weights}: was trained for the classes {', '.join(trained.classes)}; the configuration has "
            f"{', '.join(config.classes)}. Evaluate with the configuration of the training run"
        )
    return Detector(model, config, device), trained


def _copied(model: FastRCNN, device: torch.device) -> FastRCNN:
    """The model with weights of its own, each copied straight to what a detector needs."""
    reduced = ("backbone", "merge", "conv5", "fc6", "fc7") if model.precision in REDUCED else ()
    model = without_batch_norm(model)
    copies: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        dtype = REDUCED[model.precision] if name.partition(".")[0] in reduced else weight.dtype
        copy = weight.detach().to(device, dtype, copy=True)
        if name in ("fc6.weight", "fc6.V.weight"):
            copy = bins_first(copy, model.config.bins_per_roi) * model.feature_scale.to(copy)
        copies[id(weight)] = nn.Parameter(copy, requires_grad=False)
    copied = deepcopy(model, copies).to(device).eval()  # deepcopy takes what is in its memo for a copy made already
    copied.detects = True
    if copied.int8:
        int8.lay_out(copied)
    if device.type == "cpu" and onednn.faster_here():
        fully_connected = () if copied.int8 or model.precision in REDUCED else copied.fc_layers
        for name in (*fully_connected, "cls_score", "bbox_pred"):
            setattr(copied, name, onednn.by_onednn(getattr(copied, name)))
    return copied
