"""Calls that are made ahead of their turn give what they give one after another."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn import processes
from fastrcnn.detect import ahead as module
from fastrcnn.detect.ahead import ahead
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
