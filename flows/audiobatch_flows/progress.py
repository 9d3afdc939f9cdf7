"""Progress for a person: one line that changes on a terminal, a plain line now and then elsewhere.

Everything here goes to standard error; standard output is for results. `NO_COLOR` is respected by rich itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import IO, TYPE_CHECKING

from audiobatch.errors import redacted
from audiobatch_flows import summary_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from decimal import Decimal

    from audiobatch.calls.stats import RunSummary, Snapshot
    from audiobatch.execution.job import Job
    from audiobatch.reports.totals import Reason

log = logging.getLogger(__name__)

TERMINAL_EVERY_S = 0.25
#: Plain lines: often at first, so that one sees that it works; then rarely, so that a night's log can be read.
PLAIN_FIRST_S = 2.0
PLAIN_LONGEST_S = 60.0
BAR_WIDTH = 24
#: Why rows have no result is said up to so many times; the manifest has it all.
MOST_REASONS = 3


def line(now: Snapshot, *, bar: bool = False) -> str:  # noqa: C901 - a case for each part of the line
    """Return `120/500 done, 2 failed · 14.0/min · 27 min left · $1.20 of about $5.00 · …`."""
    if now.phase == "discovering":
        return f"discovering: {now.total:,} inputs so far" if now.total else "discovering inputs"
    parts = [f"{now.done:,}/{now.total:,} done"]
    for name in ("failed", "refused", "unknown"):
        if count := getattr(now, name):
            parts[0] += f", {count:,} {name}"
    if bar and now.total:
        parts[0] = f"{_bar(_finished(now) / now.total)} {parts[0]}"
    if now.rate_per_min:
        parts.append(f"{now.rate_per_min:.1f}/min")
    if now.eta_s is not None and now.phase == "sending":
        parts.append(f"{summary_text.duration(now.eta_s)} left")
    if now.cost_usd is not None:
        parts.append(_cost(now, now.cost_usd))
    if now.in_flight:
        parts.append(f"{now.in_flight} {'call' if now.in_flight == 1 else 'calls'} in flight")
    if now.phase in ("draining", "reporting"):
        parts.append("stopping" if now.phase == "draining" else "writing reports")
    elif now.waiting:
        parts.append(f"waiting: {now.waiting}")
    return " · ".join(parts)


def _cost(now: Snapshot, cost_usd: Decimal) -> str:
    """Return the cost so far and, while items are sent, that of the whole run."""
    projected = now.projected_usd if now.phase == "sending" else None
    of = f" of about {summary_text.money(projected)}" if projected is not None else ""
    return summary_text.money(cost_usd) + of


def percent(now: Snapshot) -> float:
    """Return the share of the items that have an end, 0 to 100."""
    return min(100.0, 100.0 * _finished(now) / now.total) if now.total else 0.0


def in_flight(job: Job, signal: str) -> str:
    """Say what a stop waits for, and how to go on: the rest of the message at the first `signal`."""
    calls = job.snapshot().in_flight
    if calls:
        noun = "call" if calls == 1 else "calls"
        patience = f"up to {job.spec.drain_timeout_s:g} s ({signal} again gives them up)"
        what = f"{calls} {noun} in flight may take {patience}. "
    else:
        what = "No call is in flight. "
    return f"{what}The same command goes on later; results so far: {job.output}"


@contextlib.asynccontextmanager
async def shown(job: Job, *, quiet: bool = False, stream: IO[str] | None = None) -> AsyncIterator[None]:
    """Show the job's progress and its warnings while the block runs."""
    if quiet:
        yield
        return
    warnings = Unseen(job.warnings)
    stream = stream or sys.stderr
    show = _on_terminal if stream.isatty() else _as_lines
    showing = asyncio.create_task(show(job, stream, warnings))
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait([showing])
        if not showing.cancelled() and (failed := showing.exception()):
            log.debug("progress could not be shown", exc_info=failed)
        for warning in warnings:
            _print(warning, stream)


class Unseen:
    """Iterates over what was appended to a list since the last time."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._seen = 0

    def __iter__(self) -> Iterator[str]:
        while self._seen < len(self._texts):
            self._seen += 1
            yield f"Note: {self._texts[self._seen - 1]}"


async def _on_terminal(job: Job, stream: IO[str], warnings: Unseen) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=stream)
    view = Live(
        console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=True
    )
    with view:
        while True:
            for warning in warnings:
                console.print(Text(warning, style="yellow"))
            text = Text(line(job.snapshot(), bar=True), no_wrap=True, overflow="ellipsis")
            view.update(text, refresh=True)
            await asyncio.sleep(TERMINAL_EVERY_S)


async def _as_lines(job: Job, stream: IO[str], warnings: Unseen) -> None:
    wait_s, said, said_at, phase = PLAIN_FIRST_S, "", time.monotonic(), ""
    while True:
        for warning in warnings:
            _print(warning, stream)
        await asyncio.sleep(min(wait_s, 1.0))
        now = job.snapshot()
        ending = now.phase != phase and now.phase in ("draining", "reporting")
        if time.monotonic() - said_at < wait_s and not ending:
            continue
        phase = now.phase
        text = line(now)
        if text != said:
            _print(text, stream)
            said = text
        said_at = time.monotonic()
        wait_s = min(wait_s * 1.5, PLAIN_LONGEST_S)


def _print(text: str, stream: IO[str]) -> None:
    """Print a line to somebody who may be gone: the run goes on without them."""
    with contextlib.suppress(OSError, ValueError):
        print(redacted(text), file=stream, flush=True)


def warn(message: str) -> None:
    """Print an important sentence above the progress line; also with `--quiet`."""
    with contextlib.suppress(OSError, ValueError):
        print(f"audiobatch: {redacted(message)}", file=sys.stderr, flush=True)


def say_why(reasons: Sequence[Reason]) -> None:
    """Print why rows have no result, the most frequent reasons, on standard error."""
    for reason in reasons[:MOST_REASONS]:
        warn(str(reason))
    if len(reasons) > MOST_REASONS:
        warn("other reasons are in the manifest's column error_message")


def print_closing(summary: RunSummary, *, stream: IO[str] | None = None) -> None:
    """Print the closing table and the paths of what was written, on standard output.

    A path is printed as it is, however narrow the terminal: it is there to be copied.
    """
    stream = stream or sys.stdout
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in summary_text.rows(summary):
        table.add_row(name, value)
    Console(file=stream, highlight=False).print(table)
    print(f"manifest  {summary.manifest}", file=stream)
    print(f"output    {summary.output}", file=stream, flush=True)


def _finished(now: Snapshot) -> int:
    """Count those of the items to be sent that have ended; refused items are not among them."""
    return now.done + now.failed + now.unknown


def _bar(share: float) -> str:
    full = round(min(1.0, share) * BAR_WIDTH)
    return "━" * full + "─" * (BAR_WIDTH - full)
