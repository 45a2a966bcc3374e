"""Calls that are made ahead of their turn give what they give one after another."""

import multiprocessing
import operator
import os
import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn import processes
from fastrcnn.config import ProposalsConfig
from fastrcnn.detect import ahead as module
from fastrcnn.detect.ahead import ahead, search_processes
from fastrcnn.errors import FastRCNNError


def outcome(call):
    try:
        return call()
    except ArithmeticError as e:
        return type(e)


@given(st.lists(st.integers(-2, 2), max_size=12), st.integers(1, 4), st.booleans())
def test_the_same_as_one_by_one(numbers, threads, ends_badly):
    calls = [lambda n=n: 1 / n for n in numbers]

    def source():
        yield from calls
        if ends_badly:
            raise OverflowError

    expected = [outcome(call) for call in calls] + [OverflowError] * ends_badly
    assert [outcome(future.result) for future in ahead(source(), threads)] == expected


def test_the_next_are_under_way_and_no_more():
    """Each call waits until it is released, so that what has started is known."""
    started, release = [], threading.Event()

    def call(k):
        started.append(k)
        assert release.wait(60)
        return k

    taken = 0

    def source():
        nonlocal taken
        for k in range(100):
            taken += 1
            yield lambda k=k: call(k)

    futures = ahead(source(), 2)
    first = next(futures)
    assert taken == 3 and not first.done() and set(started) <= {0, 1}
    release.set()
    assert first.result() == 0 and next(futures).result() == 1 and taken == 4
    futures.close()
    assert taken == 4 and not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_the_caller_keeps_a_core(monkeypatch):
    sizes = []

    class Pool(module.ThreadPoolExecutor):
        def __init__(self, threads, name):
            sizes.append(threads)
            super().__init__(threads, name)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    for count in (1, 2, 8, 200):
        monkeypatch.setattr(module, "cores", lambda count=count: count)
        assert list(ahead([])) == []
    assert sizes == [1, 1, 7, 16] and processes.cores() >= 1
    with pytest.raises(FastRCNNError, match="threads is 0; it must be at least 1"):
        ahead([], 0).send(None)


def test_processes_of_low_priority_give_the_same_in_order_and_end_at_once():
    numbers, taken = [2, 0, 4, 1, 5, 3], 0

    def source():
        nonlocal taken
        for number in numbers:
            taken += 1
            yield partial(operator.truediv, 1, number)
        if hasattr(os, "nice"):
            yield partial(os.nice, 0)
        for _ in range(20):
            taken += 1
            yield partial(time.sleep, 600)

    futures = ahead(source(), processes=2)
    assert next(futures).result() == 0.5 and taken == 5  # two for each process, and one more
    assert [outcome(next(futures).result) for _ in numbers[1:]] == [ZeroDivisionError, 0.25, 1, 0.2, 1 / 3]
    if hasattr(os, "nice"):
        assert next(futures).result() == min(os.nice(0) + module.NICE, 19)
    assert len(multiprocessing.active_children()) == 2
    futures.close()
    assert not multiprocessing.active_children() and taken < 20


def test_processes_are_for_many_searches(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    search, dense = ProposalsConfig(), ProposalsConfig(method="dense")
    assert search_processes(module.MANY - 1, search) is None and search_processes(1000, dense) is None
    assert [search_processes(count, search) for count in (module.MANY, 1000)] == [module.MANY, 8]
    assert [search_processes(1000, search, sharing) for sharing in (4, 20)] == [2, 1]
