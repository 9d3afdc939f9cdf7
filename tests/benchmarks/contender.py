"""How a contender in a process of its own says what it took."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: How often the event loop is asked whether it is late.
LOOK_S = 0.01


@contextlib.asynccontextmanager
async def lateness_ms() -> AsyncIterator[list[float]]:
    """By how much the event loop was late, each time it was asked, while the block lasted."""
    late: list[float] = []

    async def look() -> None:
        while True:
            asked_s = time.perf_counter()
            await asyncio.sleep(LOOK_S)
            late.append(max(0.0, time.perf_counter() - asked_s - LOOK_S) * 1000)

    looking = asyncio.create_task(look())
    try:
        yield late
    finally:
        looking.cancel()


def report(*, loop_s: float, items: int, late_ms: list[float] | None = None) -> None:
    """Print one JSON object: seconds of the sending loop, CPU seconds of the process so far, peak memory."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"loop_s": loop_s, "cpu_s": time.process_time(), "peak_mb": peak_kib / 1024, "items": items}
    if late_ms:
        found["late_p99_ms"] = sorted(late_ms)[int(len(late_ms) * 0.99)]
    print(json.dumps(found), flush=True)
