"""Training, from a configuration to a weights file; reads top to bottom."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn.annotations.problems import Problem, log_problems
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config
from fastrcnn.config_files import save
from fastrcnn.data.check_labels import label_findings, refuse_errors
from fastrcnn.data.checks import files_in_both
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.data.loader import Batch, BatchDataset, batches
from fastrcnn.data.survey import Survey
from fastrcnn.device import choose_device
from fastrcnn.errors import FastRCNNError, NotFiniteError
from fastrcnn.files import lock
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.weights import WEIGHTS, build, initialise, save_weights, unfold_statistics
from fastrcnn.train.checkpoint import load_latest, restore, save_checkpoint
from fastrcnn.train.curves import plot_losses
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.log_file import log_file
from fastrcnn.train.metrics import Metrics, read_metrics
from fastrcnn.train.signals import stop_signals
from fastrcnn.train.solver import check_head_first, make_optimizer, schedule, set_rate
from fastrcnn.train.step import first_batches, not_finite, start_fully_connected, train_step
from fastrcnn.train.watch import Watch

log = logging.getLogger(__name__)

METRICS, CURVE = "metrics.jsonl", "losses.png"
Evaluate = Callable[[Path], float]  # a weights file -> mAP


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

    `evaluate` turns a weights file into mAP; it is called every train.eval_every iterations. Ctrl-C and SIGTERM save a
    checkpoint and raise KeyboardInterrupt. Raises FastRCNNError for wrong input, a folder that holds another run, and a
    loss, gradient or weight that is not finite; the last checkpoint then stays.
    """
    folder = Path(config.output)
    problems: list[Problem] = []
    with lock(folder / ".lock", "the run"), log_file(folder), _changes_listed(problems), stop_signals() as stop:
        run = prepare(config, resume, problems, stop)
        iterate(run, evaluate, stop)
        save_weights(folder / WEIGHTS, run.model, config, run.statistics)
        log.info("wrote %s", folder / WEIGHTS)
        return folder / WEIGHTS


def prepare(config: Config, resume: bool, problems: list[Problem], stop: threading.Event) -> Run:
    """Read the data, and make the network and its optimizer, or restore them from the latest checkpoint.

    `problems` takes what data.on_bad_box changed or left out.
    """
    folder, device = Path(config.output), choose_device(config.device)
    if (folder / "config.yaml").exists() and not resume:
        raise FastRCNNError(f"{folder}: holds a run already; add --resume to resume it, or output=... for another")
    images, survey = _open_data(config, problems)
    digest = survey.digest
    checkpoint = load_latest(folder, config, digest) if resume else None
    first = checkpoint.iteration if checkpoint else 0
    if first > config.solver.max_iterations:
        raise FastRCNNError(
            f"{folder}: has {first} iterations already; solver.max_iterations is only {config.solver.max_iterations}"
        )

    model = build(config)
    check_head_first(model, config.solver)
    if checkpoint is None:
        loaded = initialise(model, config)
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
        if not {"fc6", "fc7"} <= loaded:
            start_fully_connected(model, seen_first, config.sampling.rois_per_image, device)
    return Run(config, folder, first, model, optimizer, statistics.to(device), dataset, digest)


def _open_data(config: Config, problems: list[Problem]) -> tuple[ImageSet, Survey]:
    """The training set; what is worth a look is logged. Raises FastRCNNError for labels that cannot be trained on."""
    survey = Survey(config)
    images = open_data(config.data.train, config, problems, survey.add)
    findings = [*label_findings("train", images.records, problems, config), *survey.findings]
    refuse_errors(findings)
    log_problems(findings)
    log_problems(files_in_both(images.records, config))
    return images.for_training(config.data), survey


def iterate(run: Run, evaluate: Evaluate | None, stop: threading.Event) -> None:
    """All iterations that are left. Raises KeyboardInterrupt, with a checkpoint saved, once `stop` is set."""
    config, first, last = run.config, run.first, run.config.solver.max_iterations
    device = run.model.device
    images, classes = len(run.dataset.images), len(config.classes)
    log.info("%d images, %d classes, iterations %d to %d, on %s", images, classes, first, last, device)
    save(config, run.folder / "config.yaml")  # from here on it is a run: what was wrong before leaves none
    metrics, watch = Metrics(run.folder / METRICS, first, config.train.log_every), Watch(first, last)
    loader = batches(run.dataset, first, last, config.data.workers, pin_memory=device.type == "cuda")
    bar = tqdm(loader, "training", total=last, initial=first, unit="it", mininterval=1, dynamic_ncols=True)
    with logging_redirect_tqdm(), contextlib.closing(bar):
        for batch in bar:
            rate = schedule(config.solver, batch.iteration)
            set_rate(run.optimizer, rate)
            values = train_step(run.model, run.optimizer, batch.to(device), run.statistics, config)
            watch.check(batch.iteration, batch.ids, values)
            metrics.add(batch.iteration, len(batch.ids), rate * config.solver.lr, values)
            bar.set_postfix_str(metrics.line(), refresh=False)

            done = batch.iteration + 1
            save_now = done % config.train.checkpoint_every == 0 or done == last
            if save_now:
                _save(run, batch)
            evaluate_now = config.train.eval_every and done % config.train.eval_every == 0
            if evaluate is not None and evaluate_now and not stop.is_set():
                save_weights(run.folder / WEIGHTS, run.model, config, run.statistics)
                mean_ap = evaluate(run.folder / WEIGHTS)
                metrics.add_map(done, mean_ap)
                log.info("iteration %d: mAP %.4f", done, mean_ap)
            stopping = stop.is_set()  # perhaps only since the evaluation
            if stopping and not save_now:
                _save(run, batch)
            if stopping or save_now:
                plot_losses(read_metrics(run.folder / METRICS), run.folder / CURVE)
            if stopping:
                raise KeyboardInterrupt


def _save(run: Run, batch: Batch) -> None:
    """A checkpoint after this batch. Raises NotFiniteError in place of one that no run could resume from."""
    done = batch.iteration + 1
    try:
        save_checkpoint(run.folder, done, run.model, run.optimizer, run.statistics, run.config, run.digest)
    except NotFiniteError:
        raise not_finite(batch, "a weight or its momentum is no longer finite, after a step") from None


@contextlib.contextmanager
def _changes_listed(problems: list[Problem]) -> Iterator[None]:
    """However the run ends, what data.on_bad_box changed or left out is reported last."""
    try:
        yield
    finally:
        for problem in problems:
            if problem.outcome in ("clipped", "skipped"):
                log.warning("%s: %s", problem.outcome, problem)
