"""On how many threads torch works: large operations on all, small ones on one."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_outside: ContextVar[int | None] = ContextVar("_outside", default=None)  # torch's threads outside one_thread


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's work inside is done by the calling thread, but what is in `all_threads`. A decorator, too.

    An operation on several threads ends with its slowest, and beside another busy program that one waits for its turn:
    some milliseconds, which a convolution does not feel. The hundreds of small operations of RoI pooling and
    of NMS gain little from a second thread, and were 20 times slower there.
    """
    before, outside = torch.get_num_threads(), _outside.get()
    token = _outside.set(before if outside is None else outside)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _outside.reset(token)


@contextmanager
def all_threads() -> Iterator[None]:
    """Inside one_thread, again as many threads as outside: for convolutions and matrix products. A decorator, too."""
    outside = _outside.get()
    if outside is None:
        yield
        return
    torch.set_num_threads(outside)
    try:
        yield
    finally:
        torch.set_num_threads(1)
