"""Ctrl-C and SIGTERM end training between two iterations, with a checkpoint."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last on Windows only: Ctrl-Break


class Stop(threading.Event):
    """Set by the first signal."""

    raises = False  # a signal raises KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While nothing would be lost by it, a signal raises KeyboardInterrupt, also one that has come before."""
        self.raises = True
        try:
            if self.is_set():
                raise KeyboardInterrupt
            yield
        finally:
            self.raises = False


@contextlib.contextmanager
def stop_signals(again_at_once: bool = True) -> Iterator[Stop]:
    """An event that the first signal sets; a second one raises KeyboardInterrupt at once, unless it is not to:
    torchrun passes on to its ranks the Ctrl-C that they have from the terminal already, and kills them after a time.

    Outside the main thread, Python lets nobody handle signals, and the event stays unset.
    """
    stop, received = Stop(), False

    def handler(number: int, _: object) -> None:
        nonlocal received
        if stop.raises or (received and again_at_once):
            stop.raises, received = False, True
            raise KeyboardInterrupt
        stop.set()
        if not received:
            once_more = "; once more stops at once, without saving" if again_at_once else ""
            log.info("stopping after this iteration%s", once_more)
        received = True

    before = {}
    with contextlib.suppress(ValueError):
        for number in [getattr(signal, name) for name in NAMES if hasattr(signal, name)]:
            before[number] = signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
