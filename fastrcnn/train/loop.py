"""Training, from a configuration to a weights file; reads top to bottom."""

import contextlib
import json
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn import config as configs
from fastrcnn.annotations.problems import Problem, log_problems
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.data.checks import files_in_both, quick_findings
from fastrcnn.data.image_set import open_data
from fastrcnn.data.loader import Batch, BatchDataset, batches
from fastrcnn.data.sampling import dropout_seed, target_statistics
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write, lock
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_start
from fastrcnn.model.losses import diagnostics, multi_task_loss
from fastrcnn.model.roi_features import project, roi_pool
from fastrcnn.model.weights import build, initialise, save_weights, unfold_statistics
from fastrcnn.train.checkpoint import data_digest, load_latest, restore, save_checkpoint
from fastrcnn.train.curves import plot_losses, read_metrics
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.solver import clip_gradient, make_optimizer, schedule, set_rate

log = logging.getLogger(__name__)

WEIGHTS, METRICS, CURVE = "model.safetensors", "metrics.jsonl", "losses.png"
ESTIMATE_AFTER = 10  # iterations
START_BATCHES = 4  # batches whose RoIs set the scale of fc6 and fc7 when these start at random


def train(config: Config, resume: bool = False, evaluate: Callable[[Path], float] | None = None) -> Path:
    """Train as the configuration says and return the weights file, config.output/model.safetensors.

    `evaluate` turns a weights file into mAP; it is called every train.eval_every iterations. Ctrl-C and SIGTERM save a
    checkpoint and raise KeyboardInterrupt. Raises FastRCNNError for wrong input, a folder that holds another run, and a
    loss or gradient that is not finite; the last checkpoint then stays.
    """
    folder = Path(config.output)
    problems: list[Problem] = []
    with lock(folder / ".lock", "the run"), _log_file(folder), _mended_boxes_listed(problems), _stop_signals() as stop:
        _refuse_other_run(folder, resume)
        images = open_data(config.data.train, config, problems).for_training(config.data)
        log_problems(quick_findings("train", images, config.classes))
        with contextlib.suppress(FastRCNNError):  # the test sets need not be there yet
            log_problems(files_in_both(config))
        digest = data_digest(images)
        checkpoint = load_latest(folder, config, digest) if resume else None

        device = choose_device(config.device)
        model = build(config)
        if checkpoint is None:
            has_fc = initialise(model, config)
            statistics = target_statistics(images, model.num_classes, config.sampling.foreground_iou, config.image.flip)
            unfold_statistics(model, statistics)
        else:
            model.normalisation, statistics = checkpoint.normalisation, checkpoint.statistics
        model.to(device).train()
        optimizer = make_optimizer(model, config.solver)
        if checkpoint is not None:
            restore(checkpoint, model, optimizer)
            log.info("going on from iteration %d", checkpoint.iteration)
        cache = FeatureCache(images.records, config, model) if config.cache_features else None
        if cache:
            cache.make(model, device, stop)
        pixels = model.normalisation
        dataset = BatchDataset(images, config, pixels.mean, pixels.std, cache)
        if checkpoint is None and not has_fc:
            _start_fully_connected(model, dataset, device)
        first = checkpoint.iteration if checkpoint else 0
        last = config.solver.max_iterations
        if first > last:
            raise FastRCNNError(f"{folder}: has {first} iterations already; solver.max_iterations is only {last}")
        log.info(
            "%d images, %d classes, iterations %d to %d, on %s", len(images), len(config.classes), first, last, device
        )

        configs.save(config, folder / "config.yaml")  # from here on it is a run: what was wrong before leaves none
        metrics = _Metrics(folder / METRICS, first, config.train.log_every)
        watch = _Watch()
        loader = batches(dataset, first, last, config.data.workers, pin_memory=device.type == "cuda")
        bar = tqdm(loader, "training", total=last, initial=first, unit="it", mininterval=1, dynamic_ncols=True)
        with logging_redirect_tqdm(), contextlib.closing(bar):
            for batch in bar:
                iteration = batch.iteration
                rate = schedule(config.solver, iteration)
                set_rate(optimizer, rate)
                values = train_step(model, optimizer, batch.to(device), statistics, config)
                watch.check(iteration, batch.ids, values)
                metrics.add(iteration, len(batch.ids), rate * config.solver.lr, values)
                bar.set_postfix_str(metrics.line(), refresh=False)
                if iteration == first:  # slower than those that follow
                    started = time.perf_counter()
                elif iteration == first + ESTIMATE_AFTER:
                    seconds = (time.perf_counter() - started) / ESTIMATE_AFTER
                    left = tqdm.format_interval(seconds * (last - iteration - 1))
                    log.info("%.2f s an iteration: about %s to iteration %d", seconds, left, last)

                done = iteration + 1
                save_now = done % config.train.checkpoint_every == 0 or done == last or stop
                if save_now:
                    save_checkpoint(folder, done, model, optimizer, statistics, config, digest)
                evaluate_now = config.train.eval_every and done % config.train.eval_every == 0
                if evaluate is not None and evaluate_now and not stop:
                    save_weights(folder / WEIGHTS, model, config, statistics)
                    mean_ap = evaluate(folder / WEIGHTS)
                    metrics.add_map(done, mean_ap)
                    log.info("iteration %d: mAP %.4f", done, mean_ap)
                if save_now:
                    plot_losses(read_metrics(folder / METRICS), folder / CURVE)
                if stop:
                    raise KeyboardInterrupt
        save_weights(folder / WEIGHTS, model, config, statistics)
        log.info("wrote %s", folder / WEIGHTS)
        return folder / WEIGHTS


def train_step(
    model: FastRCNN, optimizer: torch.optim.Optimizer, batch: Batch, statistics: TargetStatistics, config: Config
) -> dict[str, float]:
    """One iteration of SGD on one batch; returns its losses, gradient norm and diagnostics.

    Raises FastRCNNError when the loss or the gradient is not finite, before the weights are touched.
    """
    scores, deltas = model(
        _frozen_maps(model, batch), batch.rois, batch.scales, dropout_seed(config.seed, batch.iteration)
    )
    targets = statistics.normalise(batch.bbox_targets.cpu(), batch.labels.cpu()).to(deltas.device)
    losses = multi_task_loss(scores, deltas, batch.labels, targets, config.solver.bbox_loss_weight)
    loss = losses["loss_cls"] + losses["loss_bbox"]
    optimizer.zero_grad()
    loss.backward()
    norm = clip_gradient(model, config.solver.clip_gradient)
    values = {"loss": loss.item(), **{name: part.item() for name, part in losses.items()}, "gradient_norm": norm}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FastRCNNError(
            f"iteration {batch.iteration}: {bad[0]} is {values[bad[0]]} on images {', '.join(batch.ids)}; look at "
            "their boxes with tools/check_data.py, or lower solver.lr, or set solver.clip_gradient. The last "
            "checkpoint stays"
        )
    optimizer.step()
    return {**values, **diagnostics(scores, batch.labels)}


def _frozen_maps(model: FastRCNN, batch: Batch) -> list[torch.Tensor]:
    """Where training starts: the frozen layers' output, stored or computed now; the same numbers."""
    return batch.maps or [model.frozen_features(image) for image in batch.images]


def _refuse_other_run(folder: Path, resume: bool) -> None:
    """One run, one folder: it is started once, and later only resumed."""
    if (folder / "config.yaml").exists() and not resume:
        raise FastRCNNError(f"{folder}: holds a run already; add --resume to go on with it, or output=... for another")


@torch.no_grad()
def _start_fully_connected(model: FastRCNN, dataset: BatchDataset, device: torch.device) -> None:
    """Scale fc6 and fc7 by the features of the RoIs that training will see first."""
    pooled = []
    for batch in batches(dataset, 0, START_BATCHES, workers=0, pin_memory=False):
        batch = batch.to(device)
        rois = [project(boxes, scale) for boxes, scale in zip(batch.rois, batch.scales, strict=True)]
        features = model.trained_features(_frozen_maps(model, batch))
        pooled.append(roi_pool(features, rois, model.config.pool_size, 1 / model.stride).flatten(1))
    scaled_start(model, torch.cat(pooled))
    log.info("fc6 and fc7 start at random; pooled features are divided by %.2f", 1 / float(model.feature_scale))


class _Metrics:
    """Means over log_every iterations, one JSON line each. Lines past the iteration a run resumes from are cut."""

    def __init__(self, path: Path, first: int, log_every: int):
        self.path, self.log_every = path, log_every
        kept = [m for m in read_metrics(path) if m["iteration"] <= first] if path.exists() else []
        with atomic_write(path) as file:
            file.write("".join(json.dumps(m) + "\n" for m in kept).encode())
        self.pending: list[dict[str, float]] = []
        self.recent: deque[dict[str, float]] = deque(maxlen=log_every)
        self.images, self.since = 0, time.perf_counter()

    def add(self, iteration: int, images: int, lr: float, values: dict[str, float]) -> None:
        self.pending.append(values)
        self.recent.append(values)
        self.images += images
        if (iteration + 1) % self.log_every == 0:
            seconds = time.perf_counter() - self.since
            means = {name: _mean([v[name] for v in self.pending]) for name in values}
            rate = round(self.images / seconds, 3)
            self._write({"iteration": iteration + 1, **means, "lr": lr, "images_per_second": rate})
            self.pending, self.images, self.since = [], 0, time.perf_counter()

    def add_map(self, iteration: int, value: float) -> None:
        self._write({"iteration": iteration, "map": None if math.isnan(value) else value})
        self.since = time.perf_counter()

    def line(self) -> str:
        """What the progress bar shows: means over the last log_every iterations."""

        def mean(name: str) -> float:
            return _mean([v[name] for v in self.recent]) or 0.0

        rate = self.images / max(time.perf_counter() - self.since, 1e-9)
        return (
            f"loss {mean('loss'):.3f} = cls {mean('loss_cls'):.3f} + bbox {mean('loss_bbox'):.3f}, "
            f"fg {mean('fg_accuracy'):.2f}, {rate:.2f} images/s"
        )

    def _write(self, metrics: dict[str, object]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as e:
            raise FastRCNNError(f"{self.path}: cannot be written: {e.strerror}; free space and --resume") from None


def _mean(values: list[float]) -> float | None:
    """The mean of what is a number; an iteration without foreground has no foreground accuracy."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None


class _Watch:
    """Warns of training that goes on but goes nowhere."""

    WINDOW, RISE, BARREN = 20, 10.0, 100  # iterations in a running mean; its rise; iterations without foreground

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=self.WINDOW)
        self.lowest, self.barren, self.warned = math.inf, 0, False

    def check(self, iteration: int, ids: list[str], values: dict[str, float]) -> None:
        self.barren = 0 if values["foreground"] else self.barren + 1
        if self.barren and self.barren % self.BARREN == 0:
            log.warning(
                "iteration %d: no foreground RoI for %d iterations (last images %s); the proposals may be of other "
                "images or in other coordinates: see tools/check_data.py",
                iteration,
                self.barren,
                ", ".join(ids),
            )
        self.losses.append(values["loss"])
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


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that Ctrl-C or SIGTERM puts a signal into: an iteration is finished, never cut in two.

    A second Ctrl-C stops at once. Outside the main thread, signals are left alone.
    """
    received: list[int] = []

    def handler(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.info("stopping after this iteration; once more stops at once, without saving")

    before = {}
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _mended_boxes_listed(problems: list[Problem]) -> Iterator[None]:
    """However the run ends, what data.on_bad_box changed or left out is told last."""
    try:
        yield
    finally:
        for problem in problems:
            if problem.outcome in ("clipped", "skipped"):
                log.warning("%s: %s", problem.outcome, problem)


class _LogFile(logging.FileHandler):
    """A log that a full disk ends, not the run: a checkpoint that finds no room will say so and stop it in order."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger("fastrcnn").removeHandler(self)
        with contextlib.suppress(OSError):  # what is buffered has no room either
            self.close()
        log.warning("%s: cannot be written any more; free space", self.baseFilename)


@contextlib.contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    """Everything logged under `fastrcnn` also goes to folder/log.txt."""
    handler = _LogFile(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fastrcnn")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
