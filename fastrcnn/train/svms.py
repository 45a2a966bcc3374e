"""Linear SVMs in the place of softmax (section 5.4), trained after the fact with hard negative mining, as in R-CNN.

The network stays as it is: only cls_score is replaced, by one SVM on fc7 for each class. All numbers, and their order,
are those of tools/train_svms.py of the original code. There the IoU of a RoI with a class is 0 where an object of
another class overlaps it more; here it is its IoU with that class's objects, as in R-CNN.

Shapes: R RoIs of an image, M objects of the set, D outputs of fc7, K classes with background, N cached negatives.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn import config as configs
from fastrcnn.annotations.records import ImageRecord
from fastrcnn.boxes import iou
from fastrcnn.config import Config
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.data.sampling import SVM_IMAGES, PlannedImage
from fastrcnn.data.survey import Survey
from fastrcnn.detect.detector import Detector, detection_settings, load_detector
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock, read_tensors, refuse_overwrite, write_tensors
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model.score_thresholds import network_digest
from fastrcnn.model.weights import load_model, weights_file, write_model
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.signals import Stop, stop_signals

log = logging.getLogger(__name__)

PENALTY, POSITIVE_WEIGHT, BIAS_SCALE = 0.001, 2, 10.0  # of LinearSVC: C, class_weight, intercept_scaling
NORM, NORM_IMAGES = 20.0, 100  # features are scaled to this mean norm, measured on so many images
NEGATIVE_IOU = 0.3  # a negative overlaps the objects of its class by less
HARD, EASY = -1.0001, -1.1  # negatives that score more are cached, and those that score less after training dropped
RETRAIN = 2000  # a class is trained again when it has more new negatives than this
SAVED = 300.0  # seconds after which the state is saved again

FC7 = Callable[[int, Float32[Tensor, "R 4"]], Float32[np.ndarray, "R D"]]  # of RoIs of an image, given by its index


@dataclass
class Mining:
    """SVMs on the way: two passes over the images, the first for positives, the second for hard negatives.

    A negative is kept once, whatever number of classes it is hard for.
    """

    seed: int
    labels: Int64[np.ndarray, "M"]  # of all objects, in 1..K-1
    positives: Float32[np.ndarray, "M D"]  # their features, as far as the first pass has come
    norm: Float64[np.ndarray, "2"]  # sum of the norms of features, and of how many
    weight: Float32[np.ndarray, "K1 D"]  # of the K - 1 SVMs; they start at zero, so that all negatives are hard
    bias: Float32[np.ndarray, "K1"]
    negatives: Float32[np.ndarray, "N D"]
    cached: Bool[np.ndarray, "N K1"]  # which SVMs a negative is kept for
    new: Int64[np.ndarray, "K1"]  # negatives since the SVM was trained
    done: int = 0  # images finished, in both passes

    @classmethod
    def start(cls, labels: Int64[np.ndarray, "M"], classes: int, width: int, seed: int) -> "Mining":
        """Before the first image, for K - 1 classes and D outputs of fc7."""
        nothing, weight = np.zeros((0, width), np.float32), np.zeros((classes, width), np.float32)
        positives, cached = np.zeros((len(labels), width), np.float32), np.zeros((0, classes), bool)
        new = np.zeros(classes, np.int64)
        return cls(seed, labels, positives, np.zeros(2), weight, weight[:, 0].copy(), nothing, cached, new)

    def measure(self, x: Float32[np.ndarray, "R D"]) -> None:
        """Take an image's part in the mean norm."""
        self.norm += np.linalg.norm(x.astype(np.float64), axis=1).sum(), len(x)

    def mine(self, x: Float32[np.ndarray, "R D"], overlaps: Float32[np.ndarray, "R K1"]) -> None:
        """Cache the hard negatives of an image, given features and IoU with the objects of each class, and train the
        SVMs that have enough new ones."""
        hard = (x @ self.weight.T + self.bias > HARD) & (overlaps < NEGATIVE_IOU)
        rows = hard.any(axis=1)
        if rows.any():
            self.negatives = np.concatenate((self.negatives, x[rows]))
            self.cached = np.concatenate((self.cached, hard[rows]))
        self.new += hard.sum(axis=0)
        for k in np.flatnonzero(self.new > RETRAIN):
            self.retrain(int(k))

    def retrain(self, k: int) -> None:
        """Train the SVM at index k on all it has, and drop its easy negatives, unless all are easy."""
        rows = np.flatnonzero(self.cached[:, k])
        scale = NORM * self.norm[1] / self.norm[0]
        positives = self.positives[self.labels == k + 1]
        self.weight[k], self.bias[k], scores = fit(positives, self.negatives[rows], float(scale), self.seed)
        easy = scores < EASY
        if not easy.all():
            self.cached[rows[easy], k] = False
        kept = self.cached.any(axis=1)
        self.negatives, self.cached = self.negatives[kept], self.cached[kept]
        self.new[k] = 0


def fit(
    positives: Float32[np.ndarray, "p D"], negatives: Float32[np.ndarray, "n D"], scale: float, seed: int
) -> tuple[Float64[np.ndarray, "D"], float, Float64[np.ndarray, "n"]]:
    """An SVM trained on features times `scale`: weights and bias for features without it, scores of the negatives."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    svm = LinearSVC(
        C=PENALTY,
        class_weight={1: POSITIVE_WEIGHT, -1: 1},
        intercept_scaling=BIAS_SCALE,
        loss="hinge",
        dual=True,
        random_state=seed % 2**32,
    )
    x = np.concatenate((positives, negatives)).astype(np.float64) * scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # liblinear ends after 1,000 passes, as in the original
        svm.fit(x, np.repeat([1, -1], [len(positives), len(negatives)]))
    return svm.coef_[0] * scale, float(svm.intercept_[0]), svm.decision_function(x[len(positives) :])


def train_svms(config: Config, weights: str | Path, output: str | Path) -> Path:
    """Train SVMs on the images of config.data.train, and write the weights with them in cls_score to `output`.

    Pictures are seen as at test: config.image's one test scale, no flips. Killed, the same call resumes and gives the
    same weights: the state is in a file beside `output`, at least every 5 minutes. Ctrl-C and SIGTERM save it and raise
    KeyboardInterrupt. Raises FastRCNNError, before any work, for wrong input and where scikit-learn is not installed.
    """
    try:
        import sklearn.svm  # noqa: F401
    except ImportError:
        raise FastRCNNError('SVMs need scikit-learn; pip install "fastrcnn[svm]"') from None
    output, weights = Path(output), weights_file(weights)
    refuse_overwrite([weights, *(s.proposals for s in config.data.train if s.proposals)], [output])
    if len(config.image.test_short_side) > 1:
        raise FastRCNNError(
            "image.test_short_side: SVMs are trained at one scale; give one (detection may use several)"
        )
    with lock(output.with_name(f".{output.name}.lock"), f"the weights file {output.name}"), stop_signals() as stop:
        survey = Survey(config)
        images = open_data(config.data.train, config, None, survey.add, survey.known).for_training(config.data)
        survey.keep()
        labels = np.concatenate([record.classes for record in images.records])
        without = [name for k, name in enumerate(config.classes, start=1) if not (labels == k).any()]
        if without:
            raise FastRCNNError(
                f"data.train has no object of {', '.join(without)}, and an SVM needs some; add pictures"
            )
        detector, trained = load_detector(config, weights, choose_device(config.device))
        mining = Mining.start(labels, len(config.classes), detector.model.cls_score.in_features, config.seed)
        key = {"weights": network_digest(weights).hex(), "data": survey.digest, "seed": config.seed}
        key |= {"cache_features": config.cache_features}  # which may change the last bits
        state = State(output.with_name(f"{output.name}.partial"), key | detection_settings(config))
        state.restore(mining)
        _both_passes(mining, images, fc7_of(detector, config, weights, images.records, stop), state, stop)
        for k, name in enumerate(config.classes):
            if not mining.cached[:, k].any():
                raise FastRCNNError(f"no proposal is a negative of {name}: all overlap its objects; add other pictures")
            mining.retrain(k)
        _write(output, mining, weights, trained)
        state.path.unlink(missing_ok=True)
    return output


def _both_passes(mining: Mining, images: ImageSet, fc7: FC7, state: "State", stop: Stop) -> None:
    count, saved = len(images), time.monotonic()
    ends = np.cumsum([len(record.boxes) for record in images.records])
    rng = np.random.default_rng((mining.seed, SVM_IMAGES))
    measured = set(rng.permutation(count)[:NORM_IMAGES].tolist())
    bar = tqdm(
        range(mining.done, 2 * count), "training SVMs", 2 * count, initial=mining.done, unit="image", mininterval=1
    )
    with logging_redirect_tqdm():
        for step in bar:
            second, index = divmod(step, count)
            record, proposals = images[index]
            objects = torch.from_numpy(record.boxes)
            rois = torch.cat((objects, torch.from_numpy(proposals))) if second or index in measured else objects
            if len(rois):
                x = fc7(index, rois)
                if second:
                    mining.mine(x, class_overlaps(rois, objects, record.classes, len(mining.bias)))
                else:
                    mining.positives[ends[index] - len(objects) : ends[index]] = x[: len(objects)]
                if not second and index in measured:
                    mining.measure(x)
            mining.done = step + 1
            if stop.is_set() or time.monotonic() - saved > SAVED:
                state.save(mining)
                saved = time.monotonic()
            if stop.is_set():
                raise KeyboardInterrupt


def class_overlaps(
    rois: Float32[Tensor, "R 4"], objects: Float32[Tensor, "G 4"], classes: Int64[np.ndarray, "G"], count: int
) -> Float32[np.ndarray, "R K1"]:
    """The highest IoU of each RoI with an object of each of `count` classes, from 1 on; 0 without any."""
    overlaps = np.zeros((len(rois), count), np.float32)
    of_objects = iou(rois, objects).numpy()
    for k in set(classes.tolist()):
        overlaps[:, k - 1] = of_objects[:, classes == k].max(axis=1)
    return overlaps


def fc7_of(detector: Detector, config: Config, weights: Path, records: Sequence[ImageRecord], stop: Stop) -> FC7:
    """What gives fc7 of RoIs (image pixels) of an image; the frozen layers come from the feature cache, if there is
    one, which is that of training."""
    side, model = config.image.test_short_side[0], detector.model
    seen = {"train_short_side": [side], "train_long_side": config.image.test_long_side, "flip": False}
    cache = None
    if config.cache_features:
        # Its own copy of the network: the detector's weights are in other types and orders than training's.
        trained = load_model(weights, config.precision)[0].to(detector.device)
        image = config.image.model_copy(update=seen)
        cache = FeatureCache(records, config.model_copy(update={"image": image}), trained)
        cache.make(trained, detector.device, stop)

    @torch.inference_mode()
    def fc7(index: int, rois: Float32[Tensor, "R 4"]) -> Float32[np.ndarray, "R D"]:
        record = records[index]
        scale = image_scale(record.width, record.height, side, config.image.test_long_side)
        if cache:
            maps = cache.features(PlannedImage(index, False, side, ())).to(detector.device)
        else:
            pixels = prepare_image(read_image(record.path), scale, model.normalisation.mean, model.normalisation.std)
            maps = model.frozen_features(pixels.to(detector.device))
        features = model.trained_features([maps])
        return detector.fc7(features, scale, rois.to(detector.device)).cpu().numpy()

    return fc7


@dataclass(frozen=True)
class State:
    """The file of an unfinished training; `key` is all that it depends on."""

    path: Path
    key: dict[str, Any]

    NAMES = ("positives", "norm", "weight", "bias", "negatives", "cached", "new")

    def save(self, mining: Mining) -> None:
        """Atomically. Raises FastRCNNError when there is no room."""
        tensors = {name: torch.from_numpy(getattr(mining, name)) for name in self.NAMES}
        write_tensors(self.path, tensors, {"key": self.key, "done": mining.done})

    def restore(self, mining: Mining) -> None:
        """Go on from what an earlier call saved under the same key."""
        if not self.path.exists():
            return
        tensors, about = read_tensors(self.path)
        if about.get("key") != self.key:
            log.info("%s: is of other work, and is started again", self.path)
            return
        for name in self.NAMES:
            setattr(mining, name, tensors[name].numpy())
        mining.done = about["done"]
        log.info("%s: resuming after %d images of two passes", self.path, mining.done)


def _write(output: Path, mining: Mining, weights: Path, trained: Config) -> None:
    model, _ = load_model(weights)
    for layer, own in ((model.cls_score.weight, mining.weight), (model.cls_score.bias, mining.bias)):
        layer.data[0], layer.data[1:] = 0, torch.from_numpy(own)
    model.svms = True
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "feature_scale"}
    write_model(output, tensors, configs.to_dict(trained), model.normalisation, feature_scale=1.0, svms=True)
