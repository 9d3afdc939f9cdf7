"""What goes on beside a run's calls: the watch for a stop, and the manifest kept fresh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.planning.disk_space import reserve_for_calls
from audiobatch.reports.views import Views
from audiobatch.stop import StopReason

if TYPE_CHECKING:
    from audiobatch.calls.item import Sender
    from audiobatch.execution.job import Job

ROOM_EVERY_S = 1.0

log = logging.getLogger(__name__)


async def watch_stop(job: Job, sender: Sender | None) -> None:
    """When a stop is asked for: let nobody call any more, then give calls in flight their time."""
    stop_time = job.spec.stop_time(datetime.now().astimezone())
    if stop_time is None:
        await job.stop.soft.wait()
    else:
        left_s = (stop_time - datetime.now().astimezone()).total_seconds()
        try:
            await asyncio.wait_for(job.stop.soft.wait(), left_s)
        except TimeoutError:
            job.stop.ask(StopReason.STOP_AT, f"--stop-at {job.spec.stop_at}")
    if sender is None:
        return
    sender.pool.stop()
    await job.stop.hurried.wait()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(job.stop.hard.wait(), job.spec.drain_timeout_s)
    sender.give_up()
    job.ledger.hurry()


async def keep_room(job: Job, sender: Sender) -> None:
    """See that the room set aside covers the calls in flight, however many they become."""
    while True:
        await asyncio.sleep(ROOM_EVERY_S)
        calls, reply_s = sender.pool.in_flight, sender.sizes.audio_s
        try:
            await asyncio.to_thread(reserve_for_calls, job.spec, job.spool, calls=calls, reply_s=reply_s)
        except StorageError as failed:
            job.warn(f"not all replies in flight have room set aside: {failed.message}")
            return


async def keep_manifest_fresh(job: Job) -> None:
    """Rewrite the manifest while the run goes on, spending at most a twentieth of the time on it."""
    loop = asyncio.get_running_loop()
    pause_s = Views.FRESH_EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        began_s = loop.time()
        try:
            for note in await asyncio.to_thread(job.views.write_manifest):
                if note not in job.warnings:
                    job.warn(note)
        except StorageError as failed:
            log.warning("manifest not refreshed: %s", failed.message)
        pause_s = max(Views.FRESH_EVERY_S, 20 * (loop.time() - began_s))
