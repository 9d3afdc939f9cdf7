"""`--provider local`: the emulator as a child of this process, reached by its address like any service."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from audiobatch.child_process import ChildProcess, StartFailed, without_credentials
from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

#: Starting takes about a second; a machine under load is given much more.
START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalService:
    """A running emulator: its address, and the key that it accepts."""

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
    child = ChildProcess(
        "audiobatch_emulator", "--port", "0", "--exit-on-stdin-close", *names, env=without_credentials()
    )
    try:
        yield await asyncio.to_thread(_ready, child)
    finally:
        await asyncio.to_thread(child.stop, _STOP_TIMEOUT_S)


def _ready(child: ChildProcess) -> LocalService:
    try:
        ready = orjson.loads(child.wait_ready(START_TIMEOUT_S))
        return LocalService(base_url=ready["base_url"], api_key=ready["api_key"], pid=ready["pid"])
    except (StartFailed, orjson.JSONDecodeError, KeyError) as failed:
        raise ConfigError(f"the local service did not start: {child.stderr_tail() or failed}") from failed
