"""fastrcnn.train and fastrcnn.evaluate: what the tools of these names do, as functions that return their results.

Import them from fastrcnn. What they need is imported when they are called, so that `import fastrcnn` takes no time.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from fastrcnn.config import Config
    from fastrcnn.evaluate.run import Evaluation
    from fastrcnn.train.result import TrainingResult

    ConfigLike = Config | Mapping[str, Any] | str | PathLike[str]


def train(config: "ConfigLike", resume: bool = False) -> "TrainingResult":
    """Train as a configuration says, into its folder `output`; with `resume`, from the latest checkpoint there.

    >>> run = fastrcnn.train("small.yaml")
    >>> run.weights.name, run.iterations
    ('model.safetensors', 2)
    >>> iteration, loss = run.curves["loss"][-1]

    `config` is a Config (config_files.load reads one and takes overrides), the same as nested dictionaries, or a YAML
    file, of those that come with fastrcnn its name alone. With train.eval_every it evaluates on the way, and `best`
    names the best weights. What it says goes to the logger `fastrcnn` and to log.txt in the folder, progress
    to stderr.

    Ctrl-C saves a checkpoint and raises KeyboardInterrupt. Raises FastRCNNError for wrong input, a folder that holds
    another run, and a loss, gradient or weight that is not finite. Batches are made by processes of their own, which
    import the calling script: have it call this below `if __name__ == "__main__":`, or set data.workers to 0.
    """
    settings = _as_config(config)  # first: what is wrong is said before torch is imported

    from functools import partial

    from fastrcnn.evaluate.run import evaluate_on_ranks
    from fastrcnn.train import loop
    from fastrcnn.train.result import read_result

    evaluated = partial(evaluate_on_ranks, with_thresholds=False)
    return read_result(loop.train(settings, resume, evaluated), settings)


def evaluate(
    config: "ConfigLike",
    weights: "str | PathLike[str]",
    output: "str | PathLike[str] | None" = None,
    with_coco: bool = False,
) -> "Evaluation":
    """Detect in the images of data.test and score what was found; in `output`, or `results` in the configuration's
    folder, is the same as files. The score thresholds of best F1 are kept in the weights file.

    >>> evaluation = fastrcnn.evaluate("small.yaml", "runs/small/model.safetensors")
    >>> best = max(evaluation.ap, key=evaluation.ap.get)
    >>> 0 <= evaluation.mean_ap <= evaluation.ap[best]
    True
    >>> counts = {image.id: len(image.found) for image in evaluation.detections}

    `config` is what fastrcnn.train takes; `weights` a weights file, a run's folder, a checkpoint, or a detections.json
    to score again. with_coco also gives COCO's averages, in results.json and `table`. Interrupted, the same call
    resumes. Proposals of a data set that names none are searched by processes, which import the calling script, as
    those of `train` do. Raises FastRCNNError for wrong input, and weights of other classes than the configuration's.
    """
    settings = _as_config(config)

    from pathlib import Path

    from fastrcnn.evaluate.run import evaluate_detections, evaluate_weights

    weights = Path(weights)
    folder = Path(settings.output) / "results" if output is None else Path(output)
    work = evaluate_detections if weights.suffix == ".json" else evaluate_weights
    return work(settings, weights, folder, with_coco, with_report=True)


def _as_config(config: "ConfigLike") -> "Config":
    from pathlib import Path

    from fastrcnn.config import Config, from_dict
    from fastrcnn.config_files import load
    from fastrcnn.errors import FastRCNNError

    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return from_dict(dict(config))
    try:
        path = Path(config)
    except TypeError:
        raise FastRCNNError(
            f"config: is of type {type(config).__name__}; give a Config, nested dictionaries or a YAML file"
        ) from None
    return load(path)
