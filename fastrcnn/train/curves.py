"""The metrics of a run, drawn as curves."""

from pathlib import Path

import numpy as np
from jaxtyping import Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastrcnn.files import atomic_write

LOSSES = {"loss": "total", "loss_cls": "classification", "loss_bbox": "boxes"}  # key in the metrics: name in the plot


def plot_losses(metrics: list[dict], path: str | Path) -> None:
    """Write a PNG of the losses against the iteration: total with its running mean, and its two parts.

    `metrics` are records with `iteration` and any of `loss`, `loss_cls`, `loss_bbox`, `map`. Where there is a `map`
    (0..1), a second panel shows it, and which was best (`best_iteration` and `best_map` of the last).
    Raises FastRCNNError if the file cannot be written.
    """
    evaluated = points(metrics, "map")
    figure = Figure(figsize=(9, 6 if len(evaluated) else 4.5), layout="constrained")
    if len(evaluated):
        losses, scores = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        scores.plot(*evaluated.T, "o-", color="tab:red")
        scores.set(ylabel="mAP", ylim=(0, 1))
        _mark_best(scores, metrics)
    else:
        losses = scores = figure.subplots()
    _draw_losses(losses, metrics)
    scores.set_xlabel("iteration")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _mark_best(axes: Axes, metrics: list[dict]) -> None:
    best = [(m["best_iteration"], m["best_map"]) for m in metrics if m.get("best_map") is not None][-1:]
    for iteration, value in best:
        axes.plot(iteration, value, "o", color="black", markersize=14, fillstyle="none")
        axes.set_title(f"best: {value:.4f} at iteration {iteration}", fontsize=10)


def _draw_losses(axes: Axes, metrics: list[dict]) -> None:
    for (key, name), colour in zip(LOSSES.items(), ("tab:gray", "tab:blue", "tab:orange"), strict=True):
        curve = points(metrics, key)
        if not len(curve):
            continue
        axes.plot(*curve.T, color=colour, linewidth=0.8, alpha=0.6, label=name)
        if key == "loss":
            reach = len(curve) // 40
            axes.plot(curve[:, 0], running_mean(curve[:, 1], reach), color="black", label="total, running mean")
    axes.set(ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def running_mean(values: Real[np.ndarray, "M"], reach: int) -> Real[np.ndarray, "M"]:
    """The mean of each value and of up to `reach` values on each side of it."""
    if not len(values):
        return values
    window, middle = np.ones(2 * reach + 1), slice(reach, reach + len(values))
    return np.convolve(values, window)[middle] / np.convolve(np.ones(len(values)), window)[middle]


def points(metrics: list[dict], key: str) -> np.ndarray:
    """The points (iteration, value) of one key, float64 [M, 2], by iteration.

    A run that was killed and resumed records some iterations twice: the last time counts.
    """
    values = {record["iteration"]: record[key] for record in metrics if key in record}
    return np.array(sorted(values.items()), dtype=np.float64).reshape(-1, 2)
