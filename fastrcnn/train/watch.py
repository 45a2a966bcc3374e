"""Watches a run: warns when training continues without getting anywhere, and says how long it will take."""

import logging
import math
import time
from collections import deque

from tqdm import tqdm

log = logging.getLogger(__name__)


class Watch:
    """Call `check` with each iteration's values."""

    WINDOW, RISE = 20, 10.0  # iterations in a running mean of the loss; how far above its lowest it is reported
    BARREN = 100  # iterations without a foreground RoI
    ESTIMATE_AFTER = 10  # iterations; the first is slower and does not count

    def __init__(self, first: int, last: int) -> None:
        """A run from iteration `first` to `last`."""
        self.first, self.last, self.started = first, last, 0.0
        self.losses: deque[float] = deque(maxlen=self.WINDOW)
        self.lowest, self.barren, self.warned = math.inf, 0, False

    def check(self, iteration: int, ids: list[str], values: dict[str, float]) -> None:
        """The values of train_step for one iteration, and the ids of its images."""
        self._estimate(iteration)
        self._foreground(iteration, ids, values["foreground"])
        self._divergence(iteration, values["loss"])

    def _estimate(self, iteration: int) -> None:
        if iteration == self.first:
            self.started = time.perf_counter()
        elif iteration == self.first + self.ESTIMATE_AFTER:
            seconds = (time.perf_counter() - self.started) / self.ESTIMATE_AFTER
            left = tqdm.format_interval(seconds * (self.last - iteration - 1))
            log.info("%.2f s an iteration: about %s to iteration %d", seconds, left, self.last)

    def _foreground(self, iteration: int, ids: list[str], count: float) -> None:
        self.barren = 0 if count else self.barren + 1
        if self.barren and self.barren % self.BARREN == 0:
            log.warning(
                "iteration %d: no foreground RoI for %d iterations (last images %s); the proposals may be of other "
                "images or in other coordinates: see tools/check_data.py",
                iteration,
                self.barren,
                ", ".join(ids),
            )

    def _divergence(self, iteration: int, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) < self.WINDOW:
            return
        mean = sum(self.losses) / self.WINDOW
        self.lowest = min(self.lowest, mean)
        if mean > self.RISE * self.lowest and not self.warned:
            self.warned = True
            log.warning(
                "iteration %d: the loss, %.3f over %d iterations, is over ten times its lowest, %.3f; lower solver.lr "
                "or set solver.clip_gradient",
                iteration,
                mean,
                self.WINDOW,
                self.lowest,
            )
