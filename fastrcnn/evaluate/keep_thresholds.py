"""The score thresholds of an evaluation, kept in the weights file for detection, if they fit how it will detect."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn import config as configs
from fastrcnn.config import Config
from fastrcnn.errors import FastRCNNError
from fastrcnn.evaluate.thresholds import Thresholds
from fastrcnn.model.score_thresholds import ScoreThresholds, read_metadata, store_thresholds
from fastrcnn.model.weights import FORMAT

log = logging.getLogger(__name__)


def keep_thresholds(config: Config, weights: Path, thresholds: Thresholds, images: int) -> None:
    """Store thresholds that were measured on config.data.test, in place of earlier ones; the log says what happened.

    Detection uses the settings in the weights: thresholds that were measured with others are not stored. Nor are any in
    a checkpoint, from which training resumes. Weights that cannot be written give a warning.
    """
    metadata = read_metadata(weights)
    if metadata["format"] != FORMAT:
        log.info("%s: is a checkpoint; score thresholds are stored in weights only", weights)
        return
    trained = configs.from_dict(metadata["config"], source=str(weights))
    here, there = _settings(config), _settings(trained)
    other = [name for name in here if here[name] != there[name]]
    if other:
        log.warning(
            "%s: the score thresholds are not stored: the weights detect with another %s than this evaluation",
            weights,
            ", ".join(other),
        )
        return
    best = zip(trained.classes, thresholds.best[1:], strict=True)
    scores = {name: found.score for name, found in best if found}
    if np.isnan(thresholds.overall_f1).all():  # no labelled object: nothing was measured
        return
    roots = [dataset.model_copy(update={"root": Path(dataset.root).name}) for dataset in config.data.test]
    data = " + ".join(dataset.label for dataset in roots)
    try:
        stored = store_thresholds(weights, ScoreThresholds(scores, data, images))
    except FastRCNNError as e:
        log.warning("%s; the score thresholds are in results.json only", e)
        return
    text = "%s: %s score thresholds of %d of %d classes, measured on %s (%d images), for detect --score auto"
    log.info(text, weights, "now holds" if stored else "holds the", len(scores), len(trained.classes), data, images)


def _settings(config: Config) -> dict[str, Any]:
    """What changes scores or how many detections there are, but for the proposals and the precision."""
    image, test = config.image, config.test
    settings = {f"test.{name}": value for name, value in test.model_dump().items() if name != "ap_rule"}
    return settings | {f"image.{name}": getattr(image, name) for name in ("test_short_side", "test_long_side")}
