"""Pictures made ready while the network is at the ones before: decoded, and their proposals searched.

By threads: Python's lock is free while Pillow decodes and OpenCV searches, so that they are as fast as processes, start
at once, take pictures without copying them, and need no `if __name__ == "__main__"` in the calling script.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike
from torch import Tensor

from fastrcnn.config import ProposalsConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image
from fastrcnn.processes import cores
from fastrcnn.proposals.dense import find_proposals

T = TypeVar("T")
Ready: TypeAlias = tuple[UInt8[np.ndarray, "H W 3"], ArrayLike | Tensor]  # pixels and proposals

MOST = 16  # threads, unless the caller wants more: each holds a picture


def make_ready(
    image: UInt8[np.ndarray, "H W 3"] | str | Path,
    proposals: ArrayLike | Tensor | None,
    image_id: str,
    config: ProposalsConfig,
) -> Ready:
    """A picture's pixels and its proposals, from selective search where they are None.

    >>> pixels, proposals = make_ready("street.jpg", None, "street", detector.config.proposals)

    Raises FastRCNNError as read_image does.
    """
    pixels = read_image(image) if isinstance(image, str | Path) else image
    return pixels, find_proposals(pixels, image_id, config) if proposals is None else proposals


def ahead(calls: Iterable[Callable[[], T]], threads: int | None = None) -> Generator[Future[T], None, None]:
    """The calls in order, as futures; those of the next ones are under way in `threads` while the caller is at one.

    >>> [future.result() for future in ahead([lambda: 1, lambda: 2], threads=1)]
    [1, 2]

    Takes at most threads + 1 more calls than futures were given. An exception of the iterable is the last future's.
    Closed early, it waits for what is under way, one search at most, and starts nothing more. Without `threads` there
    are as many as cores less one, for the caller has work too, but not more than 16. Raises FastRCNNError for none.
    """
    if threads is None:
        threads = min(max(cores() - 1, 1), MOST)
    if threads < 1:
        raise FastRCNNError(f"threads is {threads}; it must be at least 1")
    source, started, ended = iter(calls), deque[Future[T]](), False
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        while True:
            while not ended and len(started) <= threads:
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
    finally:
        pool.shutdown(cancel_futures=True)
