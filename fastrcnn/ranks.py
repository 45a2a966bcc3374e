"""The processes of one run, as torchrun starts them: each is a rank, and all of them do each iteration together.

torchrun says who is who in environment variables. A process without them is alone, and nothing here does anything.
Gradients are added up by torch's DistributedDataParallel.
"""

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastrcnn.errors import FastRCNNError

T = TypeVar("T")

HANGS = timedelta(seconds=50)  # after which a rank that takes no part in an iteration, or has no pulse, is given up
WAITS = timedelta(days=20)  # for what one rank does alone: reading data, an evaluation
PULSE = 5.0  # seconds
CHECK = 1.0  # seconds between two looks at the others
HEARD = 20.0  # seconds in which all ranks have heard that one was interrupted
OF_LOST_RANKS = ("gloo", "NCCL", "Timed out", "Connection closed", "Connection reset", "Socket")  # in torch's errors


class Ranks:
    """This process among the ranks of its run; `world` of them in all, `local_world` on this machine."""

    def __init__(
        self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1, restarts: int = 0
    ) -> None:
        """`restarts`: how often torchrun has started all ranks again after one was lost."""
        self.rank, self.world, self.restarts = rank, world, restarts
        self.local_rank, self.local_world = local_rank, local_world
        self._patient: dist.ProcessGroup | None = None  # for what may take long
        self._pulse: _Pulse | None = None
        self._parallel: DistributedDataParallel | None = None
        self._learning: list[bool] = []

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this rank has to do of work that all ranks share."""
        return items[self.rank :: self.world]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def total(self, number: int) -> int:
        """The sum of a number over all ranks, without a word to the device."""
        return int(self.sum(torch.tensor(number)))

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank; all ranks get the same answer."""
        return self.total(int(flag)) > 0

    def wait(self) -> None:
        """Until all ranks are here, however long one of them works alone; but one that has stopped is an error."""
        if self._pulse is not None:
            here = dist.barrier(self._patient, async_op=True)
            while not here.is_completed():
                self.check()
                time.sleep(0.01)
            here.wait()

    def check(self) -> None:
        """Between the steps of long work: raises what another rank has ended by, and RuntimeError for a lost one."""
        if self._pulse is not None:
            self._pulse.check()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            self.wait()
            dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """One rank of each machine does the work, may fetch and make files, and then the others do, who find them."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, or what adds up its gradient over all ranks: the mean, so that losses have to be multiplied by
        `world`. It is made anew when other layers learn than before."""
        if self.world == 1:
            return model
        learning = [p.requires_grad for p in model.parameters()]
        if self._parallel is None or learning != self._learning:
            self._parallel = None  # its hooks go first
            # Without find_unused_parameters it sorts gradients into other parcels after the first iteration: sums of
            # three and more numbers would be rounded in another way in a run that resumes.
            self._parallel = DistributedDataParallel(model, find_unused_parameters=True)
            self._learning = learning
        return self._parallel

    def adding_up(self, last: bool) -> contextlib.AbstractContextManager:
        """Around each part of an iteration: only with the last do ranks add up what they have."""
        if self._parallel is None or last:
            return contextlib.nullcontext()
        return self._parallel.no_sync()


ALONE = Ranks()


class _Pulse(threading.Thread):
    """Tells the other ranks, through the store by which they met, that this process is not stopped; the system may have
    stopped it, or its machine may be gone without a word. And why it ends."""

    def __init__(self, store: dist.Store, ranks: Ranks) -> None:
        super().__init__(daemon=True)
        self.store, self.key, self.ended = store, f"pulse/{ranks.rank}", threading.Event()
        self.world, self.others = ranks.world, [f"pulse/{rank}" for rank in range(ranks.world) if rank != ranks.rank]
        self.seen: dict[str, tuple[bytes, float]] = {}  # what each said last, and when it first said so
        self.checked = 0.0
        self.store.set(self.key, "0")

    def run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store has ended, as whoever waits will see
            for beat in itertools.count(1):
                if self.ended.wait(PULSE):
                    return
                self.store.set(self.key, str(beat))

    def check(self) -> None:
        """Raise KeyboardInterrupt or FastRCNNError when a rank has ended by it, RuntimeError when one has had no pulse
        for long."""
        now = time.monotonic()
        if now - self.checked < CHECK:
            return
        self.checked = now
        self.raise_end()
        for key in self.others:
            said, since = self.store.get(key), now
            if key in self.seen and self.seen[key][0] == said:
                since = self.seen[key][1]
            self.seen[key] = said, since
            if now - since > HANGS.total_seconds():
                raise RuntimeError(f"Timed out: no {key}")

    def raise_end(self) -> None:
        """Raise what another rank has ended by, if one has said so."""
        if self.store.check(["why"]):
            why = self.store.get("why").decode()
            raise FastRCNNError(why) if why else KeyboardInterrupt

    def end(self, why: str) -> bool:
        """Tell the others why this rank ends, "" for an interrupt; whether another has ended by the same before."""
        with contextlib.suppress(RuntimeError):
            if self.store.add("ended", 1) == 1:
                self.store.set("why", why)
                return False
            return self.store.get("why").decode() == why
        return False

    def wait_for_others(self) -> None:
        """Until all have ended, for some seconds: those that were not interrupted themselves have to hear of it."""
        last = time.monotonic() + HEARD
        with contextlib.suppress(RuntimeError):
            while self.store.add("ended", 0) < self.world and time.monotonic() < last:
                time.sleep(0.05)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among the ranks that torchrun started, who wait for each other here; all but one are silent.
    `device` is that of the configuration.

    Raises FastRCNNError where they cannot meet, and, on those that are left, when a rank has ended or hangs.
    """
    ranks = _from_environment()
    if ranks.world == 1:
        yield ranks
        return
    logger = logging.getLogger("fastrcnn")
    level = logger.level
    _meet(ranks, cuda=device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()))
    if not ranks.main:
        logger.setLevel(logging.ERROR)
    pulse = ranks._pulse
    assert pulse is not None
    try:
        with _loss_told(pulse):
            yield ranks
            ranks.wait()  # else those that end first would be missed
    except KeyboardInterrupt:
        pulse.end("")
        pulse.wait_for_others()
        raise
    except FastRCNNError as e:
        e.said = pulse.end(str(e))
        raise
    finally:
        logger.setLevel(level)
        pulse.ended.set()
        dist.destroy_process_group()


@contextlib.contextmanager
def _loss_told(pulse: _Pulse) -> Iterator[None]:
    """What torch raises when it has lost a rank becomes what that one ended by, or FastRCNNError."""
    try:
        yield
    except RuntimeError as e:
        if not (isinstance(e, dist.DistError) or any(word in str(e) for word in OF_LOST_RANKS)):
            raise
        with contextlib.suppress(RuntimeError):
            pulse.raise_end()
        raise FastRCNNError(
            f"{pulse.world} ranks: another rank has ended or hangs, so all end; what it said last says why. What was "
            "saved stays, and any number of ranks can resume it (train: with --resume)"
        ) from None


def _from_environment() -> Ranks:
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE TORCHELASTIC_RESTART_COUNT".split()
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in zip(names, "01010", strict=True)]
    except ValueError:
        said = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        raise FastRCNNError(
            f"environment: {said} are not the numbers that torchrun sets; start with torchrun"
        ) from None
    return Ranks(*numbers)


def _meet(ranks: Ranks, cuda: bool) -> None:
    if not dist.is_available() or not dist.is_gloo_available() or (cuda and not dist.is_nccl_available()):
        lacks = "gloo" if dist.is_available() and dist.is_nccl_available() else "gloo or NCCL"
        raise FastRCNNError(
            f"{ranks.world} ranks: this build of torch lacks {lacks}, by which they speak; use one rank"
        )
    if cuda and not torch.cuda.is_available():
        raise FastRCNNError(f"device: cuda cannot be used by {ranks.world} ranks: this machine shows no GPU; use cpu")
    try:
        store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, None, HANGS, ranks.world, ranks.rank, store)
        ranks._patient = dist.new_group(timeout=WAITS, backend="gloo")  # type: ignore[assignment]
        ranks._pulse = _Pulse(dist.PrefixStore("fastrcnn", store), ranks)
        ranks._pulse.start()
    except (RuntimeError, ValueError) as e:  # DistNetworkError is a RuntimeError; a missing MASTER_ADDR a ValueError
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise FastRCNNError(
            f"rank {ranks.rank} of {ranks.world}: cannot meet the others at {where} ({str(e).splitlines()[0]}); if "
            "another program has the port, choose one with torchrun --master-port"
        ) from None
