"""Pictures made ready while the network is at the ones before: decoded, and their proposals searched.

By threads, which start at once, take pictures without copying them, and need no `if __name__ == "__main__"` in the
calling script. Or, where many pictures are searched, by processes of lower priority: a convolution on all threads ends
with its slowest, and would wait for each that a search holds up. A search then has what the network leaves.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike

from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image
from fastrcnn.processes import cores, workers
from fastrcnn.proposals.dense import find_proposals

# Tensors are array-like, and not named here: processes that search do without torch, which takes a second to import.

T = TypeVar("T")
Ready: TypeAlias = tuple[UInt8[np.ndarray, "H W 3"], ArrayLike]  # pixels and proposals

MOST = 16  # threads, unless the caller wants more: each holds a picture
MANY = 6  # searches that are worth the second in which processes start
NICE = 19  # of these processes, the most there is: at 10, the network still took a quarter longer beside them


def make_ready(
    image: UInt8[np.ndarray, "H W 3"] | str | Path,
    proposals: ArrayLike | None,
    image_id: str,
    config: ProposalsConfig,
    threads: int = 1,
) -> Ready:
    """A picture's pixels and its proposals, from selective search on so many threads where they are None.

    >>> pixels, proposals = make_ready("street.jpg", None, "street", detector.config.proposals)

    Raises FastRCNNError as read_image does.
    """
    pixels = read_image(image) if isinstance(image, str | Path) else image
    return pixels, find_proposals(pixels, image_id, config, threads) if proposals is None else proposals


def search_processes(pictures: int, config: ProposalsConfig, sharing: int = 1) -> int | None:
    """How many processes make so many pictures ready whose proposals are searched; None where threads do.

    >>> search_processes(2, detector.config.proposals)

    All cores, or this one's part where so many programs share them: the network's threads go first.
    """
    if pictures < MANY or config.method == "dense":
        return None
    return min(max(cores() // sharing, 1), pictures)


def ahead(
    calls: Iterable[Callable[[], T]], threads: int | None = None, processes: int | None = None
) -> Generator[Future[T], None, None]:
    """The calls in order, as futures; those of the next ones are under way in `threads` while the caller is at one.

    >>> [future.result() for future in ahead([lambda: 1, lambda: 2], threads=1)]
    [1, 2]

    Takes at most threads + 1 more calls than futures were given. An exception of the iterable is the last future's.
    Closed early, it waits for what is under way, one search at most, and starts nothing more. Without `threads` there
    are as many as cores less one, for the caller has work too, but not more than 16. Raises FastRCNNError for none.

    With `processes`, so many of lower priority take the place of threads, and two calls for each and one more are
    taken, so that none is idle while one has a long search. Calls and results are then what pickle takes. Closed early,
    it ends them at once.
    """
    if threads is None:
        threads = min(max(cores() - 1, 1), MOST)
    if threads < 1:
        raise FastRCNNError(f"threads is {threads}; it must be at least 1")
    most = 2 * processes if processes else threads
    source, started, ended = iter(calls), deque[Future[T]](), False
    with workers(processes, NICE) if processes else _in_threads(threads) as pool:
        while True:
            while not ended and len(started) <= most:
                try:
                    started.append(pool.submit(next(source)))
                except StopIteration:
                    ended = True
                except Exception as e:
                    started.append(Future())
                    started[-1].set_exception(e)
                    ended = True
            if not started:
                return
            yield started.popleft()


@contextmanager
def _in_threads(threads: int) -> Iterator[Executor]:
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
