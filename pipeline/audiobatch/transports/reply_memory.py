"""Limit the memory that all replies take together to a quarter of the machine's; beyond it, reading waits.

A reply counts from its first byte until its call is over: recorded or given up. The call whose reply began first
never waits, so that one always proceeds, and the limit is exceeded by at most one reply. What the sockets have
read ahead (2 MB each) does not count, nor do the copies made while a reply is decoded or its sound is encoded.
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
#: A reply is held twice: its body, and the sound that is decoded from it.
COPIES = 2
#: Limits of control groups, version 2 and 1. Source: docs.kernel.org, "Control Group v2", `memory.max`.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN_MACHINE_BYTES = 2 << 30

#: The memory of the current call. It must not refer to anything large: the call's timers outlive it, and keep it.
_current_call: ContextVar[CallMemory | None] = ContextVar("current_call", default=None)


def usable_bytes() -> int:
    """Return this machine's memory, or the limit of its control group."""
    sizes_bytes = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        sizes_bytes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _GROUP_LIMITS:
        with contextlib.suppress(ValueError, OSError):
            sizes_bytes.append(int(Path(name).read_text("ascii")))
    return min((size for size in sizes_bytes if size > 0), default=_UNKNOWN_MACHINE_BYTES)


@contextlib.asynccontextmanager
async def timing(seconds: float) -> AsyncIterator[None]:
    """Limit the time of a block, as `asyncio.timeout` does; a wait for memory does not count.

    Raises:
        TimeoutError: the time is over.
    """
    call = _current_call.get()
    async with asyncio.timeout(seconds) as deadline:
        if call is None:
            yield
            return
        call.deadlines.append(deadline)
        try:
            yield
        finally:
            call.deadlines.remove(deadline)


class ReplyMemory:
    """The memory of all replies in one process."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        """Args: `limit_bytes`: None: `SHARE` of the usable memory."""
        self.limit_bytes = limit_bytes or int(usable_bytes() * SHARE)
        self.used_bytes = 0
        #: Calls whose replies have begun, the oldest first.
        self._calls: dict[CallMemory, None] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count the replies of one call until the block ends."""
        memory = CallMemory(self)
        token = _current_call.set(memory)
        try:
            yield
        finally:
            _current_call.reset(token)
            memory.release()

    def current_call(self) -> CallMemory:
        """Return the memory of the current call; outside of one, memory with a limit of its own."""
        return _current_call.get() or CallMemory(ReplyMemory(self.limit_bytes))

    async def reserve(self, call: CallMemory, size_bytes: int) -> float:
        """Wait until so much more fits, or the call is the oldest; then count it. Returns: the seconds waited."""
        self._calls.setdefault(call)
        waited_s = 0.0
        while self.used_bytes + size_bytes > self.limit_bytes and next(iter(self._calls), call) is not call:
            waited_s += await self._wait(call.deadlines)
        self.used_bytes += size_bytes
        return waited_s

    async def _wait(self, running: list[asyncio.Timeout]) -> float:
        """Wait until memory is released; suspend time-outs meanwhile. Returns: the seconds waited."""
        loop = asyncio.get_running_loop()
        waiter, began_s = loop.create_future(), loop.time()
        deadlines = [(deadline, at_s) for deadline in running if (at_s := deadline.when()) is not None]
        for deadline, _ in deadlines:
            deadline.reschedule(None)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            waited_s = loop.time() - began_s
            for deadline, at_s in deadlines:
                deadline.reschedule(at_s + waited_s)
        return waited_s

    def release(self, call: CallMemory, size_bytes: int) -> None:
        """Stop counting a call; the next one may be the oldest now."""
        self._calls.pop(call, None)
        self.used_bytes -= size_bytes
        for waiter in list(self._waiting):
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)


class CallMemory:
    """The memory of one call's replies.

    Attributes:
        deadlines: the time-outs that run; a wait for memory suspends them.
        is_waiting: the call waits for memory, so that its body does not grow.
    """

    def __init__(self, memory: ReplyMemory) -> None:
        """Args: `memory`: of which this is a part."""
        self.deadlines: list[asyncio.Timeout] = []
        self.is_waiting = False
        self._memory = memory
        self._size_bytes = 0

    async def grow(self, size_bytes: int) -> float:
        """Wait until so many bytes more of a body may be held. Returns: the seconds waited."""
        self.is_waiting = True
        try:
            waited_s = await self._memory.reserve(self, COPIES * size_bytes)
        finally:
            self.is_waiting = False
        self._size_bytes += COPIES * size_bytes
        return waited_s

    def release(self) -> None:
        """Stop counting the call's replies."""
        size_bytes, self._size_bytes = self._size_bytes, 0
        self._memory.release(self, size_bytes)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


#: The memory of this process.
MEMORY = ReplyMemory()
