"""What a run shows and leaves in its folder while it trains: bar, metrics, curve, checkpoints, evaluations.

Of several ranks the first alone has it.
"""

import logging
import time
from typing import TYPE_CHECKING

from fastrcnn.config_files import save
from fastrcnn.data.loader import Batch
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.model.weights import BEST
from fastrcnn.train.board import Board
from fastrcnn.train.checkpoint import save_checkpoint
from fastrcnn.train.curves import plot_losses
from fastrcnn.train.metrics import Metrics, read_metrics
from fastrcnn.train.step import AFTER_STEP, not_finite
from fastrcnn.train.validation import Validation
from fastrcnn.train.watch import Watch

if TYPE_CHECKING:
    from tqdm import tqdm

    from fastrcnn.train.loop import Run

log = logging.getLogger(__name__)

METRICS, CURVE, BOARD = "metrics.jsonl", "losses.png", "tensorboard"
REDRAWN = 60.0  # seconds after which the curve is drawn again; it takes less than one


class Progress:
    """Of one run, from its iteration `first` on; `bar` is the progress bar."""

    def __init__(self, run: "Run", validation: Validation | None, bar: "tqdm") -> None:
        self.run, self.validation, self.bar = run, validation, bar
        config, last = run.config, run.config.solver.max_iterations
        images, classes = len(run.dataset.images), len(config.classes)
        log.info("%d images, %d classes, iterations %d to %d, on %s", images, classes, run.first, last, run.where)
        save(config, run.folder / "config.yaml")  # from here on it is a run: what was wrong before leaves none
        self.board = Board(run.folder / BOARD if config.train.tensorboard else None, run.first)
        self.metrics = Metrics(run.folder / METRICS, run.first, config.train.log_every, self.board)
        self.watch, self.drawn = Watch(run.first, last), time.monotonic()
        if validation and self.metrics.evaluated and not validation.best:
            log.warning("%s: is not there any more; the best is chosen from the evaluations to come", run.folder / BEST)

    def evaluation_missing(self) -> bool:
        """Whether the run was stopped before an evaluation at its first iteration had ended."""
        due = self.validation is not None and self.validation.due(self.run.first)
        return due and self.run.first not in self.metrics.evaluated

    def add(self, batch: Batch, rate: float, values: dict[str, float]) -> None:
        """One iteration, at this rate, and what train_step gave."""
        self.watch.check(batch.iteration, batch.ids, values)
        self.metrics.add(batch.iteration, len(batch.ids), rate, values)
        self.bar.set_postfix_str(self.metrics.line(), refresh=False)
        if time.monotonic() - self.drawn > REDRAWN:
            self.draw()

    def save(self, batch: Batch) -> None:
        """A checkpoint after this batch. Raises NotFiniteError in place of one that no run could resume from."""
        run = self.run
        self.board.flush()
        try:
            done = batch.iteration + 1
            save_checkpoint(
                run.folder, done, run.model, run.optimizer, run.statistics, run.config, run.digest, run.scaler
            )
        except NotFiniteError:
            raise not_finite(batch, AFTER_STEP) from None

    def evaluate(self, done: int) -> None:
        """An evaluation of the weights as they are."""
        assert self.validation is not None
        began = time.perf_counter()
        found = self.validation.measure(self.run.model, self.run.statistics, done, self.run.ranks)
        self.metrics.add_map(done, found.mean_ap, self.validation.best, time.perf_counter() - began)
        self.board.pictures(done, self.validation.records, found.detections)
        self.board.flush()

    def draw(self) -> None:
        """The curve; one that cannot be replaced, as a viewer on Windows may hold it, is no reason to stop."""
        try:
            plot_losses(read_metrics(self.run.folder / METRICS), self.run.folder / CURVE)
        except FastRCNNError as e:
            log.warning("%s", e)
        self.drawn = time.monotonic()

    def close(self) -> None:
        self.board.close()
