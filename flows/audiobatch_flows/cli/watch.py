"""`run --watch`: a run whenever files have arrived, until somebody ends it.

Each batch is a run like any other: same folder, same ledger, same rules for what is sent. Between batches the
output folder is free, so that `review`, `retry` or another run may have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from audiobatch.errors import ExitCode, FolderInUse
from audiobatch.execution.arrivals import Arrivals
from audiobatch.stop import EXIT_CODES, Stop, StopReason
from audiobatch_flows import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from audiobatch.calls.stats import RunSummary
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.execution.job import Job

LOOK_EVERY_S = 5.0
#: After a batch that left something to be sent again: as long as a run waits for a service that refuses.
AGAIN_AFTER_S = 900.0
#: Ends of a batch after which the next would end the same way, until somebody has done something.
FINAL_CODES = frozenset(ExitCode) - {ExitCode.DONE, ExitCode.PARTIAL, ExitCode.PARKED}


@dataclass
class Watch:
    """One watch over a job's inputs.

    Attributes:
        run: runs one batch; calls what it is given with the open job, before anything is found.
        said: is given lines for people on what happens.
    """

    spec: JobSpec
    run: Callable[[Callable[[Job], None]], Awaitable[RunSummary]]
    said: Callable[[str], None]
    look_every_s: float = LOOK_EVERY_S
    again_after_s: float = AGAIN_AFTER_S
    _again_at_s: float | None = None
    _was_in_use: bool = False
    _stop: Stop = field(default_factory=Stop)

    async def until_ended(self) -> int:
        """Look and run until a signal, `stop_at`, or a batch that no other should follow; return the exit code.

        Raises:
            ConfigError: the inputs cannot be watched, or a batch's settings cannot work.
        """
        arrivals = Arrivals(self.spec)
        stop_time = self.spec.stop_time(datetime.now().astimezone())
        self.said(f"Watching {', '.join(self.spec.inputs)}; Ctrl-C ends it.")
        # A batch has handlers of its own while it runs, over these.
        with signals.on_signals(self._stop, in_flight=self._how_to_go_on):
            while True:
                news = await asyncio.to_thread(arrivals.look)
                if news or self._is_due():
                    code = await self._batch(arrivals)
                    if code is not None:
                        return code
                await self._pause()
                if self._stop.reason is not None:
                    return EXIT_CODES[self._stop.reason]
                if stop_time is not None and datetime.now().astimezone() >= stop_time:
                    self.said(f"Ended: --stop-at {self.spec.stop_at}.")
                    return EXIT_CODES[StopReason.STOP_AT]

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.soft.wait(), self.look_every_s)

    async def _batch(self, arrivals: Arrivals) -> int | None:
        """Run once; return the exit code if no batch is to follow."""

        def on_open(job: Job) -> None:
            job.is_arriving = arrivals.is_arriving
            if self._stop.reason is not None:  # while the folder was being opened
                job.stop.ask(self._stop.reason, self._stop.detail)

        try:
            summary = await self.run(on_open)
        except FolderInUse as busy:
            if not self._was_in_use:
                who, _, _ = busy.message.partition(". Wait until")
                self.said(f"Waiting: {who}.")
            self._was_in_use = True
            return None
        self._was_in_use = False
        arrivals.handled()
        if summary.exit_code in FINAL_CODES or summary.stopped_by == StopReason.STOP_AT:
            return summary.exit_code
        left = summary.failed + summary.unknown + summary.pending
        self._again_at_s = time.monotonic() + self.again_after_s if left else None
        if left:
            self.said(
                f"{left} items are left or failed; what may be sent again is, in {self.again_after_s / 60:.0f} min."
            )
        return None

    def _is_due(self) -> bool:
        return self._again_at_s is not None and time.monotonic() >= self._again_at_s

    def _how_to_go_on(self, _signal: str) -> str:
        return f"The same command goes on later; results so far: {self.spec.output or 'in the output folder'}"
