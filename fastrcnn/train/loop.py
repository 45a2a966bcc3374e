"""Training, from a configuration to a weights file; reads top to bottom."""

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn.annotations.problems import Problem, log_problems, refuse_errors
from fastrcnn.annotations.read import absent
from fastrcnn.boxes import TargetStatistics
from fastrcnn.config import Config, to_dict
from fastrcnn.data.check_labels import label_findings
from fastrcnn.data.checks import files_in_both
from fastrcnn.data.image_set import ImageSet, open_data
from fastrcnn.data.loader import Batch, BatchDataset, batches, on_device
from fastrcnn.data.survey import Survey
from fastrcnn.device import choose_device, set_cuda, tell_of_slow_type
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import lock, remove_leftovers
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.start import initialise, unfold_statistics, what_to_fetch
from fastrcnn.model.weights import BEST, WEIGHTS, build, save_weights
from fastrcnn.ranks import ALONE, Ranks, joined
from fastrcnn.train.board import check_installed
from fastrcnn.train.checkpoint import load_latest, restore
from fastrcnn.train.feature_cache import FeatureCache
from fastrcnn.train.log_file import log_file
from fastrcnn.train.progress import Progress
from fastrcnn.train.signals import Stop, stop_signals
from fastrcnn.train.solver import (
    UNSCALED,
    check_head_first,
    check_rest_is_loaded,
    learn_only,
    make_optimizer,
    make_scaler,
    schedule,
    set_rate,
)
from fastrcnn.train.step import first_batches, start_head, train_step
from fastrcnn.train.validation import Evaluate, Validation, help_measure

log = logging.getLogger(__name__)


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
    ranks: Ranks = ALONE
    scaler: torch.amp.GradScaler = UNSCALED
    evaluate: Evaluate | None = None  # every train.eval_every iterations

    @property
    def where(self) -> str:
        """The device, and how many ranks have one like it."""
        return f"{self.model.device.type}, {self.ranks.world} ranks" if self.ranks.world > 1 else str(self.model.device)


def train(config: Config, resume: bool = False, evaluate: Evaluate | None = None) -> Path:
    """Train as the configuration says and return the weights file, config.output/model.safetensors.

    `evaluate` (evaluate.run.evaluate_on_ranks) is called every train.eval_every iterations; the weights of the highest
    mAP are in best.safetensors. Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt. Raises FastRCNNError
    for wrong input, a folder that holds another run, and a loss, gradient or weight that is not finite; the last
    checkpoint then stays.
    """
    folder = Path(config.output)
    problems: list[Problem] = []
    if config.train.tensorboard:
        check_installed()
    with joined(config.device) as ranks, contextlib.ExitStack() as held:
        stop = held.enter_context(stop_signals(again_at_once=ranks.world == 1))
        _refuse_too_many(config, ranks)
        resume = resume or (ranks.restarts > 0 and (folder / "config.yaml").exists())
        validation = None
        if ranks.main:
            for held_by_one in (lock(folder / ".lock", "the run"), log_file(folder), _changes_listed(problems)):
                held.enter_context(held_by_one)
            _refuse_replacing(folder, resume)
            if resume:
                remove_leftovers(folder)
            validation = Validation(config, evaluate) if evaluate and config.train.eval_every else None
        ranks.wait()
        run = prepare(config, resume, problems, stop, ranks=ranks)
        run.evaluate = evaluate if config.train.eval_every else None
        iterate(run, validation, stop)
        if ranks.main:
            save_weights(folder / WEIGHTS, run.model, config, run.statistics)
            log.info("wrote %s", folder / WEIGHTS)
        return folder / WEIGHTS


def _refuse_too_many(config: Config, ranks: Ranks) -> None:
    images, per_batch = config.images_per_iteration, config.sampling.images_per_batch
    if ranks.world > images:
        enough = math.ceil(ranks.world / per_batch)
        raise FastRCNNError(
            f"solver.accumulate: {ranks.world} ranks cannot share {images} images, an iteration of "
            f"sampling.images_per_batch {per_batch} x solver.accumulate {config.solver.accumulate}; start at most "
            f"{images} ranks, or set solver.accumulate={enough}: more images in each iteration"
        )


def _refuse_replacing(folder: Path, resume: bool) -> None:
    if (folder / "config.yaml").exists():
        if not resume:
            raise FastRCNNError(f"{folder}: holds a run already; add --resume to resume it, or output=... for another")
        return
    for path in (folder / WEIGHTS, folder / BEST):
        if path.exists():
            raise FastRCNNError(f"{path}: is of no run in this folder and would be replaced; choose another output")


def prepare(
    config: Config,
    resume: bool,
    problems: list[Problem],
    stop: threading.Event,
    at_most: int | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Read the data, and make the network and its optimizer, or restore them from the latest checkpoint, of `at_most`
    so many iterations.

    `problems` takes what data.on_bad_box changed or left out.
    """
    folder, device = Path(config.output), choose_device(config.device, ranks)
    set_cuda(config.cuda)
    tell_of_slow_type(config.precision, device.type)
    if not resume and (lacking := what_to_fetch(config)):  # before data is read, or even fetched
        raise FastRCNNError(lacking)
    with ranks.one_first():
        images, survey = _open_data(config, problems)
    digest = survey.digest
    _refuse_other_data(config, digest, ranks)
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
    optimizer, scaler = make_optimizer(model, config.solver), make_scaler(model)
    if checkpoint is not None:
        restore(checkpoint, model, optimizer, scaler)
        log.info("resuming from iteration %d", first)
    cache = None
    if config.cache_features:
        cache = FeatureCache(images.records, config, model)
        cache.make(model, device, stop, ranks)
    pixels = model.normalisation
    of_pictures = pixels.mean, pixels.std, cache.features if cache else None
    if checkpoint is None:
        seen_first = first_batches(BatchDataset(images, config, *of_pictures))
        start_head(model, loaded, seen_first, config.sampling.rois_per_image, device)
    dataset = BatchDataset(images, config, *of_pictures, ranks.rank, ranks.world)
    return Run(config, folder, first, model, optimizer, statistics.to(device), dataset, digest, ranks, scaler)


def _refuse_other_data(config: Config, digest: str, ranks: Ranks) -> None:
    """Raise FastRCNNError where ranks read other data or settings: they would add up gradients of different runs."""
    free = {"output": "", "feature_cache": "", "data": None}  # where things are may differ between machines
    settings = str({**to_dict(config), **free})
    seen = ranks.gather((digest, settings))
    for rank, (other, its_settings) in enumerate(seen):
        what = "data" if other != seen[0][0] else "settings" if its_settings != seen[0][1] else None
        if what:
            raise FastRCNNError(
                f"rank {rank}: has other {what} than rank 0; give all machines the same files, configuration and "
                "version of fastrcnn"
            )


def _open_data(config: Config, problems: list[Problem]) -> tuple[ImageSet, Survey]:
    """The training set; what is worth a look is logged. Raises FastRCNNError for labels that cannot be trained on."""
    for dataset in config.data.test:
        if not dataset.download and (lacking := absent(dataset)):
            log.warning("data.test: %s; training does without it, an evaluation does not", lacking)
    survey = Survey(config)
    images = open_data(config.data.train, config, problems, survey.add, survey.known)
    survey.keep()
    findings = [*label_findings("train", images.records, problems, config), *survey.findings]
    refuse_errors(findings)
    log_problems(findings)
    log_problems(files_in_both(images.records, config))
    return images.for_training(config.data), survey


def iterate(run: Run, validation: Validation | None, stop: Stop) -> None:
    """All iterations that are left. Raises KeyboardInterrupt, with a checkpoint saved, once `stop` is set on a rank."""
    config, ranks, first, last = run.config, run.ranks, run.first, run.config.solver.max_iterations
    device, every = run.model.device, config.train.eval_every
    loaded = batches(run.dataset, first, last, config.data.workers, pin_memory=device.type == "cuda")
    bar = tqdm(
        on_device(loaded, device),
        "training",
        last,
        initial=first,
        unit="it",
        mininterval=1,
        dynamic_ncols=True,
        disable=not ranks.main,
    )
    with logging_redirect_tqdm(), contextlib.closing(bar), contextlib.ExitStack() as open_files:
        progress = open_files.enter_context(contextlib.closing(Progress(run, validation, bar))) if ranks.main else None
        if ranks.any(progress is not None and progress.evaluation_missing()):
            _evaluate(run, progress, first, stop)
        for batch in bar:
            if batch.iteration == first:
                ranks.wait()  # the first batch takes some ranks longer than others
            rate, values = one_iteration(run, batch)
            done = batch.iteration + 1
            due, stopping = bool(run.evaluate and every) and done % every == 0, ranks.any(stop.is_set())
            save_now = due or stopping or done % config.train.checkpoint_every == 0 or done == last
            if progress:
                progress.add(batch, rate, values)
                if save_now:
                    progress.save(batch)
            if due and not stopping:
                _evaluate(run, progress, done, stop)
            if progress and save_now:
                progress.draw()
            if save_now:
                ranks.wait()
            if stopping:
                raise KeyboardInterrupt


def _evaluate(run: Run, progress: Progress | None, done: int, stop: Stop) -> None:
    """All ranks evaluate the weights as they are, for which there is a checkpoint: a signal stops them at once."""
    assert run.evaluate is not None
    with stop.at_once():
        if progress:
            progress.evaluate(done)
        else:
            help_measure(run.config, run.evaluate, run.ranks)


def one_iteration(run: Run, batch: Batch) -> tuple[float, dict[str, float]]:
    """One step on a batch on the model's device; its rate and what train_step returns."""
    factor = schedule(run.config.solver, batch.iteration)
    set_rate(run.optimizer, factor)
    values = train_step(run.model, run.optimizer, batch, run.statistics, run.config, run.ranks, run.scaler)
    return factor * run.config.solver.lr, values


@contextlib.contextmanager
def _changes_listed(problems: list[Problem]) -> Iterator[None]:
    """However the run ends, what data.on_bad_box changed or left out is reported last."""
    try:
        yield
    finally:
        for problem in problems:
            if problem.outcome in ("clipped", "skipped"):
                log.warning("%s: %s", problem.outcome, problem)
