"""`--provider local`: the emulator as a child of this process, reached by its address like any service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import orjson

from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

#: Starting takes about a second; a machine under load is given much more.
START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalService:
    """A running emulator: where it is, and the key it takes."""

    base_url: str
    api_key: str
    pid: int


@contextlib.asynccontextmanager
async def local_service(models: Mapping[str, str]) -> AsyncIterator[LocalService]:
    """Run an emulator that knows these deployments and their models; it ends with the block, or with this process.

    Raises:
        ConfigError: it did not start; the message says what it printed.
    """
    names = [part for name, model in sorted(models.items()) for part in ("--deployment", f"{name}={model}")]
    with tempfile.TemporaryFile() as complaints:  # a pipe that nobody reads would fill and hold the child
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "audiobatch_emulator", "--port", "0", "--exit-on-stdin-close"),
            *names,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=complaints,
            start_new_session=os.name == "posix",
        )
        try:
            yield await _ready(child, complaints)
        finally:
            await _end(child)


async def _ready(child: asyncio.subprocess.Process, complaints: IO[bytes]) -> LocalService:
    assert child.stdout is not None
    try:
        line = await asyncio.wait_for(child.stdout.readline(), START_TIMEOUT_S)
        ready = orjson.loads(line)
        return LocalService(base_url=ready["base_url"], api_key=ready["api_key"], pid=ready["pid"])
    except (TimeoutError, orjson.JSONDecodeError, KeyError) as failed:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip()
        raise ConfigError(f"the local service did not start: {said[-2000:] or failed!r}") from failed


async def _end(child: asyncio.subprocess.Process) -> None:
    """Close its standard input, which it takes for the end; make it end if it does not."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
