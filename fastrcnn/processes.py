"""Processes that share work image by image, and leave no one behind."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

import cv2
from tqdm import tqdm

from fastrcnn.errors import FastRCNNError

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Connection
else:
    from multiprocessing.connection import Connection


Job = TypeVar("Job")
Result = TypeVar("Result")

AT_ONCE = 200  # jobs that a process is given at once, at most


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, also while they import and would stop with a traceback.

    A terminal sends it to all processes, and the parent decides what becomes of the others. Both ways are inherited;
    a Ctrl-C that the parent receives inside is raised at the end, on Windows lost.
    """
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetConsoleCtrlHandler(None, True)
        try:
            yield
        finally:
            ctypes.windll.kernel32.SetConsoleCtrlHandler(None, False)
    elif hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # Another thread, which the mask is not of, may take it, and Python would raise it here, in a start half done.
        main, came = threading.current_thread() is threading.main_thread(), []
        handler = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if main else None
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGINT, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if came:
                signal.raise_signal(signal.SIGINT)
    else:
        yield


@contextmanager
def workers(processes: int, nice: int = 0) -> Iterator[Executor]:
    """A pool whose processes die with this one, and at once when the block is left, in the middle of an image too.

    Where the system knows such a thing, they yield to processes of this one's priority as `nice` says (0 to 19).
    """
    if sys.platform == "win32":
        processes = min(processes, 61)  # more handles than that Windows does not wait for
    context = multiprocessing.get_context("spawn")  # fork copies threads' locks in whatever state they are
    life, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(life, nice))
    try:
        with ctrl_c_ignored():
            for _ in range(processes):  # each of these calls starts one
                pool.submit(int)
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)


def map_images(
    work: Callable[[Job], Result], jobs: Sequence[Job], processes: int, doing: str, delay: float = 0
) -> Iterator[Result]:
    """`work` on every job, in their order, with a bar after `delay` seconds; in this process if `processes` is 1.

    Raises FastRCNNError when a process dies.
    """
    with deaths_told(doing), nullcontext() if processes == 1 else workers(processes) as pool:
        at_once = min(len(jobs) // (processes * 8) + 1, AT_ONCE)
        results = map(work, jobs) if pool is None else pool.map(work, jobs, chunksize=at_once)
        yield from tqdm(results, total=len(jobs), desc=doing, unit="image", leave=False, delay=delay)


@contextmanager
def deaths_told(doing: str, remedy: str = "run again with fewer processes") -> Iterator[None]:
    """Around all that has to do with workers: raises FastRCNNError when one of these has died."""
    try:
        yield
    except BrokenProcessPool:
        raise FastRCNNError(
            f"{doing}: a process died, perhaps for lack of memory: {remedy}. (In a script of your own, such calls "
            'stand below `if __name__ == "__main__":`)'
        ) from None


def _start_worker(life: Connection, nice: int) -> None:
    """`life` is never written to: it ends when the parent closes it or is killed."""

    def follow_parent() -> None:
        with suppress(EOFError, OSError):
            life.recv_bytes()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(nice)
    cv2.setNumThreads(1)  # one image per core is the faster division
