"""Workers as processes of this machine: for what one process's CPU cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.child_process import ChildProcess
from audiobatch.execution.coordinator import TELLING, Phase, WorkerStatus

if TYPE_CHECKING:
    from audiobatch.execution.worker import WorkerParams


@dataclass(slots=True, eq=False)
class ProcessBackend:
    """Children that drain the ledger; they end with this process, in order, however it ends."""

    _children: list[ChildProcess] = field(default_factory=list)

    @property
    def hint(self) -> str:
        """What to look at where no worker begins."""
        return "This machine seems to be busy."

    async def start(self, params: WorkerParams, count: int) -> None:
        """Start the processes. None is waited for: whether a worker has begun, the ledger says."""
        for _ in range(count):
            child = ChildProcess("audiobatch_flows.backends.worker_process", env=os.environ)
            self._children.append(child)
            with contextlib.suppress(OSError):  # one that has ended is found by `look`
                child.write_line(params.model_dump_json().encode())

    async def look(self) -> list[WorkerStatus]:
        """Return what has become of each process."""
        return [_status(child) for child in self._children]

    async def dismiss(self, *, by_force: bool) -> None:
        """Kill the processes, by force alone: each of them has begun."""
        if by_force:
            for child in self._children:
                child.kill()

    async def close(self) -> None:
        """Tell the processes to stop in order, and wait for them."""
        for child in self._children:
            child.close_input()
        for child in self._children:
            await asyncio.to_thread(child.stop, None)


def _status(child: ChildProcess) -> WorkerStatus:
    code = child.exit_code
    name = f"worker process {child.pid}"
    if code is None:
        return WorkerStatus(name=name, phase=Phase.WORKING)
    trouble = ""
    if code < 0:
        trouble = f"killed by signal {-code}"
    elif code in TELLING:
        trouble = child.stderr_tail().rpartition("\n")[2] or f"ended with code {code}"
    return WorkerStatus(name=name, phase=Phase.ENDED, trouble=trouble)
