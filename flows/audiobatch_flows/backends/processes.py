"""Workers as processes of this machine: for what one process's CPU cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from audiobatch.execution.coordinator import TELLING, Phase, WorkerStatus

if TYPE_CHECKING:
    from audiobatch.execution.worker import WorkerParams

_TAIL_BYTES = 2000


@dataclass(slots=True, eq=False)
class ProcessBackend:
    """Children that drain the ledger; they end with this process, in order, however it ends."""

    _children: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=list)

    @property
    def hint(self) -> str:
        return "This machine seems to be busy."

    async def start(self, params: WorkerParams, count: int) -> None:
        for _ in range(count):
            self._children.append(_started(params))

    async def look(self) -> list[WorkerStatus]:
        return [_hand(child, said) for child, said in self._children]

    async def dismiss(self, *, by_force: bool) -> None:
        if by_force:
            for child, _ in self._children:
                child.kill()

    async def close(self) -> None:
        for child, _ in self._children:
            if child.stdin is not None:
                with contextlib.suppress(OSError):
                    child.stdin.close()
        for child, said in self._children:
            await asyncio.to_thread(child.wait)
            said.close()


def _started(params: WorkerParams) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    said = tempfile.TemporaryFile(prefix="audiobatch-worker-")  # noqa: SIM115 - closed by `close`
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "audiobatch_flows.backends.worker_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then tells them
    )
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.write(params.model_dump_json().encode() + b"\n")
        child.stdin.flush()
    return child, said


def _hand(child: subprocess.Popen[bytes], said: IO[bytes]) -> WorkerStatus:
    code = child.poll()
    name = f"worker process {child.pid}"
    if code is None:
        return WorkerStatus(name=name, phase=Phase.WORKING)
    trouble = ""
    if code < 0:
        trouble = f"killed by signal {-code}"
    elif code in TELLING:
        said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = said.read().decode(errors="replace").strip().splitlines()
        trouble = lines[-1] if lines else f"ended with code {code}"
    return WorkerStatus(name=name, phase=Phase.ENDED, trouble=trouble)
