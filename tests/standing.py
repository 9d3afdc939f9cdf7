"""A real `audiobatch server` for tests, and `audiobatch serve` on it, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import flows_prefect

PATIENCE_S = 240.0


class Command:
    """`audiobatch …` as a process that goes on until it is told to end."""

    def __init__(
        self, *arguments: str | Path, program: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        self._said: tuple[str, str] | None = None
        self._err = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed when it ends
        self._out = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *(program or (sys.executable, "-c", "from audiobatch_flows.cli.main import main; main()")),
                *map(str, arguments),
            ],
            env={
                **os.environ,
                "PREFECT_HOME": str(flows_prefect.home()),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            text=True,
            start_new_session=True,
        )

    @property
    def out(self) -> str:
        return self._said[0] if self._said else self._text(self._out)

    @property
    def err(self) -> str:
        return self._said[1] if self._said else self._text(self._err)

    def says(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it has said so, on either stream."""
        said = flows_prefect.until(
            lambda: text in self.out + self.err or self.process.poll() is not None, timeout_s
        )
        assert said, f"never said {text!r}:\n{self.out}\n{self.err}"
        assert text in self.out + self.err, f"ended with {self.process.returncode}:\n{self.out}\n{self.err}"

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self._ended()

    def end_group(self, number: int) -> int:
        """End it as a terminal does: the signal reaches its children too."""
        os.killpg(self.process.pid, number)
        return self._ended()

    def _ended(self) -> int:
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            if self._said is None:
                self._said = (self.out, self.err)
                self._out.close()
                self._err.close()

    def _text(self, file: Any) -> str:
        # A position of its own: the process goes on writing at the shared one.
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode(errors="replace")


class Server(Command):
    """`audiobatch server` as a process; `address` is where its API is."""

    address = ""


@contextlib.contextmanager
def server(**env: str) -> Iterator[Server]:
    """Start a server and wait until it says its address."""
    command = Server("server", "--port", "0", env=env)
    try:
        command.says("export PREFECT_API_URL=")
        command.address = command.out.partition("PREFECT_API_URL=")[2].split()[0]
        yield command
    finally:
        command.end()


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Point Prefect's client in this process at a server."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_API_URL: address, PREFECT_HOME: str(flows_prefect.home())}):
        yield


async def flow_runs(output: Path | str) -> list[Any]:
    """The flow runs on this output folder that have begun, oldest first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    async with get_client() as client:
        found = await client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    begun = [run for run in found if run.state and run.state.type.value not in ("SCHEDULED", "PENDING")]
    return [run for run in reversed(begun) if run.parameters.get("job", {}).get("output") == str(output)]


async def until_run(
    output: Path | str, wanted: Callable[[Any], object], timeout_s: float = PATIENCE_S
) -> Any:
    """The first flow run on this output folder that is as wanted, once there is one."""
    import asyncio

    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while True:
        runs = await flow_runs(output)
        for run in runs:
            if wanted(run):
                return run
        states = [(run.state.name, run.state.message) for run in runs]
        assert loop.time() < end, f"no such run; there are {states}"
        await asyncio.sleep(0.2)
