"""The emulator's side of the pipe: starts engines' processes, asks them, and outlives their crashes.

An engine is native code of others, fed by strangers. So it works in a child process, one request at a time.
When the child dies, or says nothing for too long, that request fails with `EngineCrashed`, and the next one
gets a fresh child.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from audiobatch_emulator.engine_frames import ALIVE, LENGTHS, header_of, packed

QUIET_LIMIT_S = 60.0  # engines report every second; starting one takes well under ten
CLOSING_S = 2.0
STDERR_LINES = 8
#: An engine, which strangers feed, gets no keys to the service.
CREDENTIALS = ("AZURE_", "OPENAI_", "AUDIOBATCH_")


class EngineCrashed(Exception):
    """The engine's process died or hung on this request; the next request gets a fresh one."""


class EngineProcess:
    """One child process, started by the first request and again after each crash.

    Requests must come one at a time; `EnginePool` sees to that.
    """

    def __init__(self, module: str, *, quiet_limit_s: float = QUIET_LIMIT_S) -> None:
        self._module = module
        self._quiet_limit_s = quiet_limit_s
        self._child: asyncio.subprocess.Process | None = None
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._stderr_reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child else None

    async def ask(self, header: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Sends one request and returns its answer.

        Raises:
            EngineCrashed: the child died, hung, or answered nonsense.
        """
        try:
            if self._child is None:
                self._child = await self._started()
            return await _exchange(self._child, packed(header, payload), self._quiet_limit_s)
        except TimeoutError as error:
            await self._end(kill=True)
            raise EngineCrashed(f"{self._module} said nothing for {self._quiet_limit_s:g} s") from error
        except (OSError, EOFError, ValueError) as error:
            code = await self._end(kill=True)
            last_words = self._stderr[-1] if self._stderr else type(error).__name__
            raise EngineCrashed(f"{self._module} ended with {code}: {last_words}") from error
        except BaseException:
            await self._end(kill=True)
            raise

    async def aclose(self) -> None:
        """Ends the child: asks by closing its input, and kills it if that does not help."""
        await self._end(kill=False)

    async def _started(self) -> asyncio.subprocess.Process:
        self._stderr.clear()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a `queue.py` in the user's folder is none of our business
            "-m",
            self._module,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=2**20,
            env={name: value for name, value in os.environ.items() if not name.startswith(CREDENTIALS)},
            start_new_session=os.name == "posix",  # out of reach of the terminal's Ctrl-C
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._stderr_reader = asyncio.create_task(self._keep_last_lines(child))
        return child

    async def _keep_last_lines(self, child: asyncio.subprocess.Process) -> None:
        assert child.stderr is not None
        while chunk := await child.stderr.read(2**16):
            self._stderr.extend(line for line in chunk.decode(errors="replace").splitlines() if line.strip())

    async def _end(self, *, kill: bool) -> int | None:
        """Ends the child; returns its exit code, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None
        if kill:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        child.stdin.close()
        try:
            code = await asyncio.wait_for(child.wait(), CLOSING_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            code = await child.wait()
        if self._stderr_reader is not None:
            await self._stderr_reader
        return code


async def _exchange(
    child: asyncio.subprocess.Process, request: bytes, quiet_limit_s: float
) -> tuple[dict[str, Any], bytes]:
    assert child.stdin is not None
    assert child.stdout is not None
    async with asyncio.timeout(quiet_limit_s):
        child.stdin.write(request)
        await child.stdin.drain()
    while True:
        async with asyncio.timeout(quiet_limit_s):
            header_bytes, payload_bytes = LENGTHS.unpack(await child.stdout.readexactly(LENGTHS.size))
            header = header_of(await child.stdout.readexactly(header_bytes))
            payload = await child.stdout.readexactly(payload_bytes)
        if header != ALIVE:
            return header, payload


class EnginePool:
    """Several processes of one engine. Each request takes a free one; one already warm comes first."""

    def __init__(self, module: str, *, processes: int, quiet_limit_s: float = QUIET_LIMIT_S) -> None:
        if processes < 1:
            raise ValueError(f"an engine needs at least one process, not {processes}")
        self._engines = [EngineProcess(module, quiet_limit_s=quiet_limit_s) for _ in range(processes)]
        self._idle: asyncio.LifoQueue[EngineProcess] = asyncio.LifoQueue()
        for engine in self._engines:
            self._idle.put_nowait(engine)
        self._at_work: set[asyncio.Task[tuple[dict[str, Any], bytes]]] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the children that run now."""
        return tuple(engine.pid for engine in self._engines if engine.pid is not None)

    async def ask(self, header: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Sends one request as soon as a process is free, and returns its answer.

        A caller that is cancelled leaves at once; the engine finishes the request behind it, since a
        stopped one would have to be killed and started again.

        Raises:
            EngineCrashed: the child died, hung, or answered nonsense.
        """
        engine = await self._idle.get()
        task = asyncio.create_task(self._asked(engine, header, payload))
        self._at_work.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Ends all processes; requests at work fail."""
        for task in list(self._at_work):
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)
        await asyncio.gather(*(engine.aclose() for engine in self._engines))

    async def _asked(
        self, engine: EngineProcess, header: Mapping[str, Any], payload: bytes
    ) -> tuple[dict[str, Any], bytes]:
        try:
            return await engine.ask(header, payload)
        finally:
            self._idle.put_nowait(engine)

    def _finished(self, task: asyncio.Task[tuple[dict[str, Any], bytes]]) -> None:
        self._at_work.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when the caller has left
