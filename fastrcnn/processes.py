"""Processes that share work image by image, and leave no one behind."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import cv2


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(processes: int) -> Iterator[Executor]:
    """A pool whose processes die with this one, and at once when the block is left, in the middle of an image too."""
    context = multiprocessing.get_context("spawn")  # fork copies threads' locks in whatever state they are
    life, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(life,))
    # Ctrl-C reaches all processes, and the parent decides. They inherit the mask, so that one which is still importing
    # does not stop with a traceback; each of these calls starts one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for _ in range(processes):
        pool.submit(int)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)


def _start_worker(life: Connection) -> None:
    """`life` is never written to: it ends when the parent closes it or is killed."""

    def follow_parent() -> None:
        with suppress(EOFError, OSError):
            life.recv_bytes()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    cv2.setNumThreads(1)  # one image per core is the faster division
