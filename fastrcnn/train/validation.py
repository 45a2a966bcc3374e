"""Evaluations on the way: mAP every train.eval_every iterations, and the weights that gave the highest so far.

At each of them a checkpoint is written first, best.safetensors next, if the weights are the best, and the line of
metrics.jsonl last. So a run that is killed anywhere in between resumes at this evaluation, and ends with the same best.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from fastrcnn.annotations.problems import Problem, refuse_errors
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config, from_dict
from fastrcnn.data.check_labels import nothing_labelled
from fastrcnn.data.image_set import open_data
from fastrcnn.detections import DetectedImage
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import read_tensors
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.weights import BEST, save_weights
from fastrcnn.ranks import Ranks

log = logging.getLogger(__name__)

RESULTS = "evaluation"  # the folder of the newest results; those of tools/test.py are not touched
CANDIDATE = "weights.safetensors"  # in it, while it is evaluated; a killed evaluation resumes by it


@runtime_checkable  # by the tests
class Evaluated(Protocol):
    """What an evaluation found."""

    @property
    def mean_ap(self) -> float: ...  # 0..1, or NaN

    @property
    def detections(self) -> Sequence[DetectedImage]: ...


# evaluate.run.evaluate_on_ranks: detects in config.data.test with a weights file, scores, writes results to a folder;
# the first of several ranks alone has what was found.
Evaluate = Callable[[Config, Path, Path, Ranks], Evaluated | None]


class Best(NamedTuple):
    """The evaluation whose weights are in best.safetensors; the earliest of equals."""

    iteration: int  # iterations done
    mean_ap: float


class Validation:
    """The evaluations of one run. `best` is that of the highest mAP so far."""

    def __init__(self, config: Config, evaluate: Evaluate) -> None:
        """Reads all labels and proposals, so that what is wrong with them is said before training, not on the way.

        Raises FastRCNNError for what open_data refuses, for images without an object to measure mAP on, and for a file
        in the place of best.safetensors that is none.
        """
        self.config, self.evaluate, self.folder = config, evaluate, Path(config.output)
        part = "validation" if config.data.validation else "test"
        problems: list[Problem] = []
        self.records = open_data(config.validating().data.test, config, problems).records
        nothing = nothing_labelled(part, self.records, problems, config.classes)
        refuse_errors([nothing] if nothing else [])
        if not any((~record.difficult).any() for record in self.records):
            raise FastRCNNError(
                f"data.{part}: has no labelled object that mAP could be measured on; name a labelled data set as "
                "data.validation, or set train.eval_every to null"
            )
        if part == "test":
            log.warning(
                "%s is chosen on data.test, so its mAP there will be too high to be reported; name other labelled "
                "images as data.validation",
                BEST,
            )
        self.best = self._read_best()

    def _read_best(self) -> Best | None:
        """What best.safetensors says of itself; None if there is none yet."""
        path = self.folder / BEST
        if not path.exists():
            return None
        try:
            _, metadata = read_tensors(path)
            best = Best(int(metadata["training"]["iteration"]), float(metadata["training"]["map"]))
            chosen_by = _measure(from_dict(metadata["config"], source=str(path)))
        except (FastRCNNError, KeyError, TypeError, ValueError, OverflowError) as e:
            raise FastRCNNError(
                f"{path}: is not the best weights of a run, or is damaged ({' '.join(str(e).split())}); move it "
                "elsewhere: it would be replaced"
            ) from None
        if chosen_by != _measure(self.config):
            log.warning(
                "%s: was chosen on other data sets or settings of `test` than today's, and stays the best", path
            )
        return best

    def due(self, done: int) -> bool:
        """Whether there is an evaluation after so many iterations."""
        every = self.config.train.eval_every
        return every is not None and done > 0 and done % every == 0

    def measure(self, model: FastRCNN, statistics: TargetStatistics, done: int, ranks: Ranks) -> Evaluated:
        """Evaluate the weights after `done` iterations, and write best.safetensors if no mAP so far was as high.

        The other ranks call help_measure. Raises FastRCNNError as `evaluate` does, and when the weights cannot be
        written.
        """
        candidate = self.folder / RESULTS / CANDIDATE
        save_weights(candidate, model, self.config, statistics, {"iteration": done})
        found = help_measure(self.config, self.evaluate, ranks)
        assert found is not None
        with contextlib.suppress(OSError):  # nobody is to take it for the weights of the run
            candidate.unlink()
        if found.mean_ap > (self.best.mean_ap if self.best else -1):
            training = {"iteration": done, "map": found.mean_ap}
            save_weights(self.folder / BEST, model, self.config, statistics, training)
            self.best = Best(done, found.mean_ap)
        known = f"; best so far: {self.best.mean_ap:.4f} at iteration {self.best.iteration}" if self.best else ""
        log.info("iteration %d: mAP %.4f%s", done, found.mean_ap, known)
        return found


def help_measure(config: Config, evaluate: Evaluate, ranks: Ranks) -> Evaluated | None:
    """This rank's share of an evaluation, once the first rank has saved the weights; it alone is given the result."""
    ranks.wait()
    folder = Path(config.output) / RESULTS
    return evaluate(config.validating(), folder / CANDIDATE, folder, ranks)


def _measure(config: Config) -> tuple[object, ...]:
    """What mAP depends on besides the weights, as far as a resumed run may change it."""
    return config.validating().data.test, config.test
