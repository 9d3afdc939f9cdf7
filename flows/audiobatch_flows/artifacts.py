"""What a run leaves on its page in Prefect: its progress, lines in its log, a summary, a table of its first items.

Artifacts are views; a run that was paid for does not fail because one could not be written. None holds more than
the manifest does, and neither holds a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.logging import get_run_logger

from audiobatch_flows import progress, summary_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from audiobatch.calls.stats import RunSummary
    from audiobatch.execution.job import Job

log = logging.getLogger(__name__)

#: Often at first; then seldom enough that an hour's run costs Prefect's server hundreds of updates, not thousands.
UPDATE_EVERY_S = 2.0
UPDATE_LONGEST_S = 15.0
LOG_EVERY_S = 60.0
TABLE_ROWS = 200
#: A server that does not answer is asked again for a minute by Prefect itself; a view is not worth that.
PATIENCE_S = 5.0


@contextlib.asynccontextmanager
async def live_progress(job: Job) -> AsyncIterator[None]:
    """Keep a progress artifact up to date while the block runs, and once more at its end; now and then, log it."""
    artifact: UUID | None = None
    shown = ""
    run_log = _RunLog(job)

    async def update() -> None:
        nonlocal artifact, shown
        now = job.snapshot()
        text = progress.line(now)
        run_log.write(text)
        if text == shown:
            return
        try:
            if artifact is None:
                artifact = await acreate_progress_artifact(
                    progress.percent(now), key="audiobatch-progress", description=text
                )
            else:
                await aupdate_progress_artifact(artifact, progress.percent(now), description=text)
            shown = text
        except Exception:
            log.warning("the progress artifact could not be written", exc_info=True)

    ended = asyncio.Event()

    async def update_until_ended() -> None:
        wait_s = UPDATE_EVERY_S
        while not ended.is_set():
            await update()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await ended.wait()
            wait_s = min(wait_s * 1.1, UPDATE_LONGEST_S)
        await update()

    updating = asyncio.create_task(update_until_ended())
    try:
        yield
    finally:
        # Not cancelled at once: an artifact whose creation is under way would be created a second time.
        ended.set()
        await asyncio.wait([updating], timeout=PATIENCE_S)
        updating.cancel()
        await asyncio.wait([updating])


class _RunLog:
    """The flow run's own log: warnings as they come, the progress line at first often and then once a minute."""

    def __init__(self, job: Job) -> None:
        self._log = get_run_logger()
        self._warnings = progress.Unseen(job.warnings)
        self._wait_s = UPDATE_EVERY_S
        self._next_s = time.monotonic() + self._wait_s

    def write(self, text: str) -> None:
        for warning in self._warnings:
            self._log.warning(warning)
        if time.monotonic() >= self._next_s:
            self._log.info(text)
            self._wait_s = min(self._wait_s * 2, LOG_EVERY_S)
            self._next_s = time.monotonic() + self._wait_s


async def at_the_end(job: Job, summary: RunSummary) -> None:
    """Write the summary in markdown, and the first rows of the manifest as a table."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await acreate_markdown_artifact(
                markdown(summary), key="audiobatch-summary", description=summary_text.headline(summary)
            )
            if table := job.table_rows(TABLE_ROWS):
                await acreate_table_artifact(
                    table,
                    key="audiobatch-items",
                    description=f"First {len(table)} rows of {summary.manifest}",
                )
    except Exception:
        log.warning("the closing artifacts could not be written", exc_info=True)


def markdown(summary: RunSummary) -> str:
    """Return the page of a run: what became of it, in figures, and where the results are."""
    lines = [f"**{summary_text.headline(summary)}**", ""]
    if summary.message:
        lines += [summary.message, ""]
    lines += ["| | |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in summary_text.rows(summary)]
    lines += [
        "",
        f"- Manifest: `{summary.manifest}`",
        f"- Output folder: `{summary.output}`",
        f"- Run: `{summary.run_id}`, exit code {summary.exit_code}",
    ]
    return "\n".join(lines)
