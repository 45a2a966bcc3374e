"""Ctrl-C and SIGTERM end training between two iterations, with a checkpoint."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last on Windows only: Ctrl-Break


class Stop(threading.Event):
    """Set by the first signal, or, while nothing would be lost by it, `at_once` a KeyboardInterrupt."""

    at_once = False


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """An event that the first signal sets; a second one raises KeyboardInterrupt at once.

    Outside the main thread, Python lets nobody handle signals, and the event stays unset.
    """
    stop, received = Stop(), False

    def handler(number: int, _: object) -> None:
        nonlocal received
        if received or stop.at_once:
            raise KeyboardInterrupt
        received = True
        stop.set()
        log.info("stopping after this iteration; once more stops at once, without saving")

    before = {}
    with contextlib.suppress(ValueError):
        for number in [getattr(signal, name) for name in NAMES if hasattr(signal, name)]:
            before[number] = signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
