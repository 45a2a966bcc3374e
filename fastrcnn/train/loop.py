"""Training, from a configuration to a weights file; reads top to bottom."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn.annotations.problems import Problem, log_problems, refuse_errors
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.config_files import save
from fastrcnn.data.check_labels import label_findings
from fastrcnn.data.checks import files_in_both
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.data.loader import Batch, BatchDataset, batches
from fastrcnn.data.survey import Survey
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.files import lock, remove_leftovers
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.weights import BEST, WEIGHTS, build, initialise, save_weights, unfold_statistics, what_to_fetch
from fastrcnn.train.board import Board, check_installed
from fastrcnn.train.checkpoint import load_latest, restore, save_checkpoint
from fastrcnn.train.curves import plot_losses
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.log_file import log_file
from fastrcnn.train.metrics import Metrics, read_metrics
from fastrcnn.train.signals import Stop, stop_signals
from fastrcnn.train.solver import (
    check_head_first,
    check_rest_is_loaded,
    learn_only,
    make_optimizer,
    schedule,
    set_rate,
)
from fastrcnn.train.step import AFTER_STEP, first_batches, not_finite, start_head, train_step
from fastrcnn.train.validation import Evaluate, Validation
from fastrcnn.train.watch import Watch

log = logging.getLogger(__name__)

METRICS, CURVE, BOARD = "metrics.jsonl", "losses.png", "tensorboard"
REDRAWN = 60.0  # seconds after which the curve is drawn again; it takes less than one


@dataclass
class Run:
    """A run before its iteration `first`: all that iterations need."""

    config: Config
    folder: Path
    first: int
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    statistics: TargetStatistics  # on the model's device
    dataset: BatchDataset
    digest: str


def train(config: Config, resume: bool = False, evaluate: Evaluate | None = None) -> Path:
    """Train as the configuration says and return the weights file, config.output/model.safetensors.

    `evaluate` (evaluate.run.evaluate_weights) is called every train.eval_every iterations; the weights of the highest
    mAP are in best.safetensors. Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt. Raises FastRCNNError
    for wrong input, a folder that holds another run, and a loss, gradient or weight that is not finite; the last
    checkpoint then stays.
    """
    folder = Path(config.output)
    problems: list[Problem] = []
    if config.train.tensorboard:
        check_installed()
    with lock(folder / ".lock", "the run"), log_file(folder), _changes_listed(problems), stop_signals() as stop:
        _refuse_replacing(folder, resume)
        if resume:
            remove_leftovers(folder)
        validation = Validation(config, evaluate) if evaluate and config.train.eval_every else None
        run = prepare(config, resume, problems, stop)
        iterate(run, validation, stop)
        save_weights(folder / WEIGHTS, run.model, config, run.statistics)
        log.info("wrote %s", folder / WEIGHTS)
        return folder / WEIGHTS


def _refuse_replacing(folder: Path, resume: bool) -> None:
    if (folder / "config.yaml").exists():
        if not resume:
            raise FastRCNNError(f"{folder}: holds a run already; add --resume to resume it, or output=... for another")
        return
    for path in (folder / WEIGHTS, folder / BEST):
        if path.exists():
            raise FastRCNNError(f"{path}: is of no run in this folder and would be replaced; choose another output")


def prepare(
    config: Config, resume: bool, problems: list[Problem], stop: threading.Event, at_most: int | None = None
) -> Run:
    """Read the data, and make the network and its optimizer, or restore them from the latest checkpoint, of `at_most`
    so many iterations.

    `problems` takes what data.on_bad_box changed or left out.
    """
    folder, device = Path(config.output), choose_device(config.device)
    if not resume and (lacking := what_to_fetch(config)):  # before data is read, or even fetched
        raise FastRCNNError(lacking)
    images, survey = _open_data(config, problems)
    digest = survey.digest
    checkpoint = load_latest(folder, config, digest, at_most) if resume else None
    first = checkpoint.iteration if checkpoint else 0
    if first > config.solver.max_iterations:
        raise FastRCNNError(
            f"{folder}: has {first} iterations already; solver.max_iterations is only {config.solver.max_iterations}"
        )

    model = build(config)
    check_head_first(model, config.solver)
    learn_only(model, config.solver)
    if checkpoint is None:
        loaded = initialise(model, config)
        check_rest_is_loaded(model, config.solver, loaded)
        statistics = survey.statistics()
        if "bbox_pred" in loaded:  # a fresh one stays as train.prototxt starts it: N(0, 0.001), bias 0
            unfold_statistics(model, statistics)
    else:
        statistics = checkpoint.statistics
    model.to(device).train()
    optimizer = make_optimizer(model, config.solver)
    if checkpoint is not None:
        restore(checkpoint, model, optimizer)
        log.info("resuming from iteration %d", first)
    cache = None
    if config.cache_features:
        cache = FeatureCache(images.records, config, model)
        cache.make(model, device, stop)
    pixels = model.normalisation
    dataset = BatchDataset(images, config, pixels.mean, pixels.std, cache.features if cache else None)
    if checkpoint is None:
        seen_first = first_batches(dataset)
        start_head(model, loaded, seen_first, config.sampling.rois_per_image, device)
    return Run(config, folder, first, model, optimizer, statistics.to(device), dataset, digest)


def _open_data(config: Config, problems: list[Problem]) -> tuple[ImageSet, Survey]:
    """The training set; what is worth a look is logged. Raises FastRCNNError for labels that cannot be trained on."""
    survey = Survey(config)
    images = open_data(config.data.train, config, problems, survey.add, survey.known)
    survey.keep()
    findings = [*label_findings("train", images.records, problems, config), *survey.findings]
    refuse_errors(findings)
    log_problems(findings)
    log_problems(files_in_both(images.records, config))
    return images.for_training(config.data), survey


def iterate(run: Run, validation: Validation | None, stop: Stop) -> None:
    """All iterations that are left. Raises KeyboardInterrupt, with a checkpoint saved, once `stop` is set."""
    config, first, last = run.config, run.first, run.config.solver.max_iterations
    device = run.model.device
    images, classes = len(run.dataset.images), len(config.classes)
    log.info("%d images, %d classes, iterations %d to %d, on %s", images, classes, first, last, device)
    save(config, run.folder / "config.yaml")  # from here on it is a run: what was wrong before leaves none
    board = Board(run.folder / BOARD if config.train.tensorboard else None, first)
    metrics = Metrics(run.folder / METRICS, first, config.train.log_every, board)
    watch = Watch(first, last)
    loader = batches(run.dataset, first, last, config.data.workers, pin_memory=device.type == "cuda")
    bar = tqdm(loader, "training", total=last, initial=first, unit="it", mininterval=1, dynamic_ncols=True)
    if validation and metrics.evaluated and not validation.best:
        log.warning("%s: is not there any more; the best is chosen from the evaluations to come", run.folder / BEST)
    drawn = time.monotonic()
    with logging_redirect_tqdm(), contextlib.closing(bar), contextlib.closing(board):
        if validation and validation.due(first) and first not in metrics.evaluated:
            _evaluate(run, validation, metrics, first, stop)  # the run was stopped before this evaluation had ended
        for batch in bar:
            rate, values = one_iteration(run, batch.to(device))
            watch.check(batch.iteration, batch.ids, values)
            metrics.add(batch.iteration, len(batch.ids), rate, values)
            bar.set_postfix_str(metrics.line(), refresh=False)

            done = batch.iteration + 1
            due, stopping = validation is not None and validation.due(done), stop.is_set()
            save_now = due or stopping or done % config.train.checkpoint_every == 0 or done == last
            if save_now:
                board.flush()
                _save(run, batch)
            if validation and due and not stopping:
                _evaluate(run, validation, metrics, done, stop)
            if save_now or time.monotonic() - drawn > REDRAWN:
                _draw_curve(run.folder)
                drawn = time.monotonic()
            if stopping:
                raise KeyboardInterrupt


def one_iteration(run: Run, batch: Batch) -> tuple[float, dict[str, float]]:
    """One step on a batch on the model's device; its rate and what train_step returns."""
    factor = schedule(run.config.solver, batch.iteration)
    set_rate(run.optimizer, factor)
    return factor * run.config.solver.lr, train_step(run.model, run.optimizer, batch, run.statistics, run.config)


def _save(run: Run, batch: Batch) -> None:
    """A checkpoint after this batch. Raises NotFiniteError in place of one that no run could resume from."""
    done = batch.iteration + 1
    try:
        save_checkpoint(run.folder, done, run.model, run.optimizer, run.statistics, run.config, run.digest)
    except NotFiniteError:
        raise not_finite(batch, AFTER_STEP) from None


def _evaluate(run: Run, validation: Validation, metrics: Metrics, done: int, stop: Stop) -> None:
    """An evaluation of the weights as they are, for which there is a checkpoint: a signal stops it at once."""
    began = time.perf_counter()
    stop.at_once = True
    try:
        if stop.is_set():
            raise KeyboardInterrupt
        found = validation.measure(run.model, run.statistics, done)
        metrics.add_map(done, found.mean_ap, validation.best, time.perf_counter() - began)
        metrics.board.pictures(done, validation.records, found.detections)
        metrics.board.flush()
    finally:
        stop.at_once = False


def _draw_curve(folder: Path) -> None:
    """A picture that cannot be replaced, as a viewer on Windows may hold it, is no reason to stop."""
    try:
        plot_losses(read_metrics(folder / METRICS), folder / CURVE)
    except FastRCNNError as e:
        log.warning("%s", e)


@contextlib.contextmanager
def _changes_listed(problems: list[Problem]) -> Iterator[None]:
    """However the run ends, what data.on_bad_box changed or left out is reported last."""
    try:
        yield
    finally:
        for problem in problems:
            if problem.outcome in ("clipped", "skipped"):
                log.warning("%s: %s", problem.outcome, problem)
