import json
import math

import numpy as np
import pytest

from fastrcnn.errors import FastRCNNError
from fastrcnn.train.metrics import Metrics, read_metrics


def record(iteration, loss, **more):
    return {"iteration": iteration, "loss": loss, "loss_cls": loss / 2, "loss_bbox": loss / 2, "lr": 0.001} | more


def lines(*records):
    return "".join(json.dumps(r) + "\n" for r in records)


def test_metrics_come_back_as_written(tmp_path):
    records = [record(20, 1.5), record(40, float("nan"), map=0.25)]
    (tmp_path / "m.jsonl").write_text(lines(*records))
    read = read_metrics(tmp_path / "m.jsonl")
    assert read[0] == records[0] and read[1]["map"] == 0.25 and np.isnan(read[1]["loss"])
    (tmp_path / "empty.jsonl").write_text("")
    assert read_metrics(tmp_path / "empty.jsonl") == []


def test_a_last_line_cut_anywhere_is_ignored(tmp_path):
    whole, cut = lines(record(20, 1.5)), json.dumps(record(40, 1.25, note="ü"), ensure_ascii=False).encode()
    for end in range(len(cut)):
        (tmp_path / "m.jsonl").write_bytes(whole.encode() + cut[:end])
        assert read_metrics(tmp_path / "m.jsonl") == [record(20, 1.5)]
    (tmp_path / "m.jsonl").write_bytes(whole.encode() + cut)  # only its line end is missing
    assert [r["iteration"] for r in read_metrics(tmp_path / "m.jsonl")] == [20, 40]


@pytest.mark.parametrize("bad", ['{"iteration": 40, "lo', "[1, 2]", '{"loss": 1}', '{"iteration": "40"}', "7"])
def test_any_other_bad_line_is_named(tmp_path, bad):
    (tmp_path / "m.jsonl").write_text(lines(record(20, 1.5)) + bad + "\n" + lines(record(60, 1.0)))
    with pytest.raises(FastRCNNError, match=r"m\.jsonl: line 2 "):
        read_metrics(tmp_path / "m.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FastRCNNError, match=r"none\.jsonl: cannot be read"):
        read_metrics(tmp_path / "none.jsonl")


def values(loss, accuracy=0.5):
    return {"loss": loss, "loss_cls": loss / 2, "loss_bbox": loss / 2, "fg_accuracy": accuracy}


def test_a_line_holds_the_means_of_its_iterations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0, log_every=2)
    for i, (loss, accuracy) in enumerate([(1.0, 0.5), (3.0, math.nan), (5.0, math.nan), (6.0, math.nan), (9.0, 1.0)]):
        metrics.add(i, 2, 0.01, values(loss, accuracy))
    metrics.add_map(4, 0.25, (4, 0.25), 1.0)
    metrics.add_map(4, math.nan, None, 1.0)
    first, second, *evaluated = read_metrics(path)
    assert (first["iteration"], first["loss"], first["fg_accuracy"], first["lr"]) == (2, 2.0, 0.5, 0.01)
    assert (second["iteration"], second["loss"], second["fg_accuracy"]) == (4, 5.5, None)
    best = {"best_iteration": 4, "best_map": 0.25}
    assert evaluated == [{"iteration": 4, "map": 0.25, **best}, {"iteration": 4, "map": None}]
    assert metrics.line().startswith("loss 7.500 = cls 3.750 + bbox 3.750, fg 1.00, ")


def test_a_resumed_run_cuts_what_comes_after_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    evaluated = [{"iteration": done, "map": 0.5} for done in (3, 6)]
    path.write_text(lines(record(2, 1.0), evaluated[0], record(4, 1.0), record(6, 1.0), evaluated[1]) + '{"itera')
    metrics = Metrics(path, 4, log_every=2)
    metrics.add(5, 2, 0.01, values(7.0))
    assert metrics.evaluated == {3}
    path.write_text(path.read_text().replace(lines(evaluated[0]), ""))
    assert [(r["iteration"], r["loss"]) for r in read_metrics(path)] == [(2, 1.0), (4, 1.0), (6, 7.0)]
