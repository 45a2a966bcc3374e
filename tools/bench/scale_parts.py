"""What bench.py scale measures: each is called in a process of its own, which prints its figures."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.memory import memory
from bench.scale_set import CLASSES, DETECTIONS, MadeSet, detected

MOST_DETECTED = 10_000  # pictures that detection is timed on


def child(what: str, began: str, root: str, pictures: str, *words: str) -> None:
    """Print the figures of one part as `name=value, name=value`; `began` is when its process was started."""
    made = MadeSet(Path(root), int(pictures))
    figures = PARTS[what](made, *words)
    if "s" not in figures:
        figures["s"] = time.time()
    figures["s"] -= float(began)
    figures.setdefault("CPU s", time.process_time())
    figures.setdefault("MB", 1e3 * memory("VmHWM"))
    print(", ".join(f"{name}={value}" for name, value in figures.items()))


def start(made: MadeSet, form: str, run: str, resume: str) -> dict[str, float]:
    """tools/train.py up to its first iteration, and its memory and that of its loader there."""
    import fastrcnn
    from fastrcnn import config as configs
    from fastrcnn.train import loop

    figures: dict[str, float] = {}
    one_iteration = loop.one_iteration

    def noted(*args: Any) -> Any:
        if not figures:
            loader = multiprocessing.active_children()[0].pid
            figures.update(
                {
                    "s": time.time(),
                    "CPU s": time.process_time(),
                    "MB": 1e3 * memory("VmRSS"),
                    "peak MB": 1e3 * memory("VmHWM"),
                }
            )
            figures["loader MB"] = 1e3 * memory("VmRSS", loader or "self")
        return one_iteration(*args)

    loop.one_iteration = noted  # type: ignore[assignment]
    config = made.config(form, made.root.parent / f"{form}_{run}")
    if resume:
        config["solver"]["max_iterations"] *= 2
    fastrcnn.train(configs.from_dict(config), bool(resume))
    return figures


def load(made: MadeSet) -> dict[str, float]:
    """All batches of an epoch as a loader process makes them, and its memory after that."""
    from fastrcnn import config as configs
    from fastrcnn.data.image_set import open_data
    from fastrcnn.data.loader import BatchDataset

    config = configs.from_dict(made.config("voc", made.root.parent))
    images = open_data(config.data.train, config)
    dataset = BatchDataset(images, config, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    batches = len(images) // config.sampling.images_per_batch
    began = time.perf_counter()
    for iteration in range(batches):
        dataset.batch(iteration)
    seconds = time.perf_counter() - began
    own = {"without shared files MB": 1e3 * memory("RssAnon"), "MB": 1e3 * memory("VmRSS")}
    return {"ms a batch": 1e3 * seconds / batches, **own}


def check(made: MadeSet) -> dict[str, float]:
    """tools/check_data.py, without its report."""
    from fastrcnn import config as configs
    from fastrcnn.data.check_report import report_text
    from fastrcnn.data.checks import check as check_all

    report_text(check_all(configs.from_dict(made.config("voc", made.root.parent))))
    return {}


def detect(made: MadeSet) -> dict[str, float]:
    """tools/detect.py with proposals from a file, on a detector that finds the same in each picture, at once."""
    import torch

    from fastrcnn import config as configs
    from fastrcnn.detect.detector import Detector
    from fastrcnn.detect.pictures import detect_pictures
    from fastrcnn.model.weights import build

    config = configs.from_dict(made.config("voc", made.root.parent))
    found = detected(np.random.default_rng(0), 5)

    class Finds(Detector):
        def detect(self, *_: Any, **__: Any) -> Any:
            return found

    some = min(made.pictures, MOST_DETECTED)
    paths = [made.picture(i) for i in range(1, some + 1)]
    began = time.perf_counter()
    detect_pictures(
        Finds(build(config), config, torch.device("cpu")), paths, made.root.parent / "found", 0.5, made.proposals
    )
    return {"pictures": some, "ms a picture": 1e3 * (time.perf_counter() - began) / some}


def test(made: MadeSet) -> dict[str, float]:
    """tools/test.py on a detections.json, with its report, without the time to write this file."""
    from fastrcnn import config as configs
    from fastrcnn.detections import DetectedImage, write_detections
    from fastrcnn.evaluate.run import evaluate_detections

    config = made.config("voc", made.root.parent)
    config["data"]["test"] = config["data"]["train"]
    rng, path = np.random.default_rng(0), made.root.parent / "detections.json"
    ids = (made.picture(i).stem for i in range(1, made.pictures + 1))
    began = time.time()
    write_detections(path, CLASSES, (DetectedImage(name, detected(rng, DETECTIONS)) for name in ids))
    written = time.time() - began
    evaluate_detections(configs.from_dict(config), path, made.root.parent / "results", with_report=True)
    return {"s": time.time() - written}


def rows(made: MadeSet) -> Any:
    """Detections and objects of all pictures."""
    from fastrcnn.evaluate.rows import DetectionRows, ObjectRows

    rng = np.random.default_rng(0)
    truth, found = (detected(rng, each * made.pictures) for each in (3, DETECTIONS))
    where = [np.repeat(np.arange(made.pictures), each) for each in (3, DETECTIONS)]
    objects = ObjectRows(where[0], truth.classes, truth.boxes, np.zeros(len(truth), bool))
    return DetectionRows(where[1], found.classes, found.scores, found.boxes), objects, len(CLASSES) + 1


def voc(made: MadeSet) -> dict[str, float]:
    from fastrcnn.evaluate.voc import evaluate

    evaluate(*rows(made))
    return {}


def coco(made: MadeSet) -> dict[str, float]:
    from fastrcnn.evaluate.coco import evaluate_coco

    evaluate_coco(*rows(made))
    return {}


PARTS = {part.__name__: part for part in (start, load, check, detect, test, voc, coco)}
