"""How much memory replies may take together: a quarter of the machine's; beyond it, reading waits.

A reply takes its part as it is read and gives it back when nobody holds it any more. The one that was begun first
never waits, so that there is always one that gets on. Whole replies count until they are recorded, and do not hold
up that one: the limit is passed by at most one reply for each call in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections import OrderedDict
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SHARE = 0.25
#: A reply's body, and the sound that is decoded from it.
COPIES = 2
#: Limits of control groups, version 2 and 1. Source: docs.kernel.org, "Control Group v2", `memory.max`.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN_MACHINE_BYTES = 2 << 30

#: The time-out of the call that is under way: waiting for memory does not count.
_deadline: ContextVar[asyncio.Timeout | None] = ContextVar("deadline", default=None)


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
    """`asyncio.timeout` for one attempt, which a wait for memory puts off. Raises: TimeoutError."""
    async with asyncio.timeout(seconds) as deadline:
        token = _deadline.set(deadline)
        try:
            yield
        finally:
            _deadline.reset(token)


class ReplyMemory:
    """The account of all replies that one process holds. Read in one event loop; let go of in any thread."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes = most_bytes or int(usable_bytes() * SHARE)
        self.held_bytes = 0
        self._open: OrderedDict[int, Held] = OrderedDict()
        self._waiting: set[asyncio.Future[None]] = set()
        self._count = 0

    def begin(self) -> Held:
        """The account of a reply whose body is about to come."""
        self._count += 1
        held = Held(self, self._count)
        self._open[self._count] = held
        return held

    def is_first(self, held: Held) -> bool:
        return next(iter(self._open), None) == held.number

    async def room(self, held: Held, size_bytes: int) -> None:
        """Wait until so much more fits, or this is the first of those that are being read."""
        while self.held_bytes + size_bytes > self.most_bytes and not self.is_first(held):
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            self._waiting.add(waiter)
            began_s = loop.time()
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)
            deadline = _deadline.get()
            if deadline is not None and (ends_s := deadline.when()) is not None:
                deadline.reschedule(ends_s + loop.time() - began_s)

    def wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.get_loop().call_soon_threadsafe(_end, waiter)

    def forget(self, number: int) -> None:
        """One is read: the next may be the first of those that are."""
        self._open.pop(number, None)
        self.wake()


class Held:
    """What one reply takes, as long as anything of it is held."""

    def __init__(self, memory: ReplyMemory, number: int) -> None:
        self.number = number
        self._memory = memory
        self._size_bytes = 0
        self._holders = 0

    async def grow(self, size_bytes: int) -> None:
        """So many bytes more are about to be held."""
        await self._memory.room(self, COPIES * size_bytes)
        self._size_bytes += COPIES * size_bytes
        self._memory.held_bytes += COPIES * size_bytes

    def is_read(self) -> None:
        """The body is whole, or no more of it is read."""
        self._memory.forget(self.number)

    def held_by(self, holder: object) -> None:
        """Until this is forgotten, and all others that hold it."""
        self._holders += 1
        weakref.finalize(holder, self._let_go)

    def _let_go(self) -> None:
        self._holders -= 1
        if not self._holders:
            size_bytes, self._size_bytes = self._size_bytes, 0
            self._memory.held_bytes -= size_bytes
            self.is_read()


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


#: Of this process.
MEMORY = ReplyMemory()
