"""What a run has given, for the program that started it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from fastrcnn.config import Config
from fastrcnn.model.weights import BEST
from fastrcnn.train.curves import points
from fastrcnn.train.metrics import read_metrics
from fastrcnn.train.progress import METRICS


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A finished run; the folder of `weights` holds the rest."""

    weights: Path
    best: Path | None  # the weights of the highest mAP of train.eval_every, if it evaluated
    iterations: int
    # By name in metrics.jsonl (loss, loss_cls, loss_bbox, lr, map, ...): iterations and the means up to them.
    curves: dict[str, Float64[np.ndarray, "M 2"]]

    @property
    def best_map(self) -> float | None:
        """The best mAP (0..1) of train.eval_every; None if nothing was evaluated."""
        values = self.curves["map"][:, 1] if "map" in self.curves else np.empty(0)
        return float(np.nanmax(values)) if np.isfinite(values).any() else None


def read_result(weights: Path, config: Config) -> TrainingResult:
    """The result of a run that has ended, from its folder. Raises FastRCNNError as read_metrics does."""
    metrics = read_metrics(weights.parent / METRICS)
    names = dict.fromkeys(name for record in metrics for name in record if name != "iteration")
    curves = {name: points(metrics, name) for name in names}
    best = weights.with_name(BEST)
    return TrainingResult(weights, best if best.exists() else None, config.solver.max_iterations, curves)
