"""Stopping in order: what a signal, or a cancellation in Prefect, does to a run.

    first SIGINT or SIGTERM   nothing more is sent; calls in flight may end (`--drain-timeout`); 130 or 143
    the same again            calls in flight are given up and become `unknown`; the same code
    a third time              the process ends at once; the ledger knows what was sent

A run that stops by itself already, at a limit for example, gives calls in flight all their time, and from a signal
on as little; it keeps the exit code of its own reason.

Each of the two is counted for itself: Ctrl-C under `audiobatch serve` reaches a flow from the terminal, and the
server of schedules passes its own stop on as SIGTERM; that is one wish, not two.

Handlers only mark the run's `Stop`; whatever sends reads it. `signal.signal` is used on every system rather than
the event loop's own handlers, which Windows lacks and which do not nest: Prefect installs a handler that raises
in the middle of a flow, so ours is installed again inside the flow's body, over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from audiobatch.stop import Stop, StopReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

log = logging.getLogger(__name__)

POLL_S = 5.0
#: Prefect can hang at its end; its runner kills 30 s after its SIGTERM.
LAST_WORDS_S = 8.0
REASONS = {signal.SIGINT: StopReason.SIGINT, signal.SIGTERM: StopReason.SIGTERM}

#: Signals so far, by run and number: the flow's handlers and those around it count together.
_signals: WeakKeyDictionary[Stop, Counter[int]] = WeakKeyDictionary()


@contextlib.contextmanager
def on_signals(stop: Stop, *, in_flight: Callable[[str], str], keep_handlers: bool = False) -> Iterator[None]:
    """Let signals stop the run while the block runs.

    Args:
        stop: the run's wish to stop.
        in_flight: given the signal's name, what a stop has to wait for and how to go on later.
        keep_handlers: leave the handlers installed after a signal, so that a second one cannot break the run's last
            steps. For a process that ends with the run.

    Where signals cannot be handled (not the main thread), the block just runs.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: Any) -> None:
        counts = _signals.setdefault(stop, Counter())
        counts[number] += 1
        count = counts[number]
        if count > 2:
            os._exit(128 + number)
        # A flag that `asyncio` waits on may only be set from the loop; the call also wakes it.
        loop.call_soon_threadsafe(_signalled, stop, REASONS[signal.Signals(number)], count, in_flight)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in REASONS}
    try:
        yield
    finally:
        if not (keep_handlers and stop in _signals):
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _signalled(stop: Stop, reason: StopReason, count: int, in_flight: Callable[[str], str]) -> None:
    name = "Ctrl-C" if reason is StopReason.SIGINT else "SIGTERM"
    if count == 1 and not stop.reasons.keys().isdisjoint(REASONS.values()):
        return
    if count == 1:
        stop.ask(reason, f"stopped by {name}")
        say(f"Stopping ({name}): nothing more is sent. {in_flight(name)}")
    else:
        stop.force(reason)
        say(f"Stopping now ({name} again): calls in flight are given up and recorded as unknown.")


@contextlib.asynccontextmanager
async def on_cancellation(stop: Stop, cancelled: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Ask `cancelled` every `POLL_S` while the block runs, and stop the run once it says yes.

    A cancellation in Prefect reaches a flow that was started by hand in no other way.
    """

    async def watch() -> None:
        while not stop.hurried.is_set():
            await asyncio.sleep(POLL_S)
            try:
                if await cancelled():
                    stop.ask(StopReason.CANCELLED, "cancelled in Prefect")
                    say("Stopping (cancelled in Prefect): nothing more is sent.")
            except Exception:
                log.debug("the flow run's state could not be read", exc_info=True)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def end_process_after(exit_code: int, after_s: float = LAST_WORDS_S) -> None:
    """End this process with `exit_code` if it still lives in `after_s` seconds. All is recorded by now."""

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()


def say(text: str) -> None:
    """Print a line to the person at the terminal, who may have closed it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
