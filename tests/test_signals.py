import os
import signal
import threading

import pytest

from fastrcnn.train.signals import NAMES, stop_signals

SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_sets_the_event_and_the_second_stops_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_second_one_that_torchrun_passes_on_changes_nothing():
    with stop_signals(again_at_once=False) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.is_set()


def test_while_nothing_is_lost_by_it_the_first_stops_at_once_and_later_ones_change_nothing():
    with stop_signals(again_at_once=False) as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            raise AssertionError("it has come before")


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = [signal.getsignal(number) for number in SIGNALS], []

    def work():
        with stop_signals() as stop:
            seen.append((stop.is_set(), [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_systems_without_a_signal_do_without_it(monkeypatch):
    monkeypatch.delattr(signal, "SIGTERM")
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
