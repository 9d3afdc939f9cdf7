"""How much memory replies may take together: a quarter of the machine's; beyond it, reading waits.

Each call has an account. A reply is entered in it as it is read, and leaves it when the call is over: recorded, or
given up. The account that has had its first bytes for longest never waits, so that there is always one that gets
on: the limit is passed by at most one reply. Not counted is what the sockets have read ahead (2 MB each), nor the
copies that are made while a reply is decoded, or its sound encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SHARE = 0.25
#: A reply's body, and the sound that is decoded from it.
COPIES = 2
#: Limits of control groups, version 2 and 1. Source: docs.kernel.org, "Control Group v2", `memory.max`.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN_MACHINE_BYTES = 2 << 30

#: Of the call that is under way. It must lead to nothing large: the timers of a call keep its context, long after.
_account: ContextVar[Held | None] = ContextVar("account", default=None)


def usable_bytes() -> int:
    """This machine's memory, or what its control group may take of it."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _GROUP_LIMITS:
        with contextlib.suppress(ValueError, OSError):
            found.append(int(Path(name).read_text("ascii")))
    return min((size for size in found if size > 0), default=_UNKNOWN_MACHINE_BYTES)


@contextlib.asynccontextmanager
async def timing(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, which a wait for memory puts off. Raises: TimeoutError."""
    held = _account.get()
    async with asyncio.timeout(seconds) as deadline:
        if held is None:
            yield
            return
        held.deadlines.append(deadline)
        try:
            yield
        finally:
            held.deadlines.remove(deadline)


class ReplyMemory:
    """The account of all replies that one process holds."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes = most_bytes or int(usable_bytes() * SHARE)
        self.held_bytes = 0
        #: In the order of their first bytes.
        self._holding: dict[Held, None] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call, until it is recorded: what it brings counts for so long."""
        held = Held(self)
        token = _account.set(held)
        try:
            yield
        finally:
            _account.reset(token)
            held.release()

    def account(self) -> Held:
        """Of the call that is under way; outside of one, an account by itself."""
        return _account.get() or Held(ReplyMemory(self.most_bytes))

    def is_first(self, held: Held) -> bool:
        return next(iter(self._holding), held) is held

    async def take(self, held: Held, size_bytes: int) -> float:
        """Wait until so much more fits, or this is the first; then it counts. Returns: the seconds waited."""
        self._holding.setdefault(held)
        waited_s = 0.0
        while self.held_bytes + size_bytes > self.most_bytes and not self.is_first(held):
            waited_s += await self._wait(held.deadlines)
        self.held_bytes += size_bytes
        return waited_s

    async def _wait(self, running: list[asyncio.Timeout]) -> float:
        """Until something is given back; time-outs stand still. Returns: the seconds waited."""
        loop = asyncio.get_running_loop()
        waiter, began_s = loop.create_future(), loop.time()
        deadlines = [(one, ends_s) for one in running if (ends_s := one.when()) is not None]
        for deadline, _ in deadlines:
            deadline.reschedule(None)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            waited_s = loop.time() - began_s
            for deadline, ends_s in deadlines:
                deadline.reschedule(ends_s + waited_s)
        return waited_s

    def give_back(self, held: Held, size_bytes: int) -> None:
        """It is over: the next may be the first."""
        self._holding.pop(held, None)
        self.held_bytes -= size_bytes
        for waiter in list(self._waiting):
            waiter.get_loop().call_soon_threadsafe(_end, waiter)


class Held:
    """What the replies of one call take.

    Attributes:
        deadlines: the time-outs that run; a wait for memory does not count.
        is_waiting: for memory; its body stands still meanwhile.
    """

    def __init__(self, memory: ReplyMemory) -> None:
        self.deadlines: list[asyncio.Timeout] = []
        self.is_waiting = False
        self._memory = memory
        self._size_bytes = 0

    async def grow(self, size_bytes: int) -> float:
        """So many bytes more of a body are about to be held. Returns: the seconds that they had to wait."""
        self.is_waiting = True
        try:
            waited_s = await self._memory.take(self, COPIES * size_bytes)
        finally:
            self.is_waiting = False
        self._size_bytes += COPIES * size_bytes
        return waited_s

    def release(self) -> None:
        """Nothing of it counts any more."""
        size_bytes, self._size_bytes = self._size_bytes, 0
        self._memory.give_back(self, size_bytes)


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


#: Of this process.
MEMORY = ReplyMemory()
