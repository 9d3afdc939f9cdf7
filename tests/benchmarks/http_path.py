"""`http`: our HTTP path under the SDK beside the SDK's own paths, by CPU time of a call and of a whole item.

Every path sends the same body, bounds the reply's size, watches its progress and counts its memory. A call is
measured in a process of its own, after calls that warm it up; the server is another process, whose time does not
count. Paths take turns; the tables give the median and the range of all rounds.

`python -m tests.benchmarks.http_path PATH ORIGIN CALLS AT_ONCE` measures one path and prints JSON.
`python -m tests.benchmarks.http_path engine PATH ORIGIN PROMPTS OUTPUT AT_ONCE` runs a whole job over it.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import orjson

from audiobatch.errors import BadReply, OutcomeUnknown
from audiobatch.transports import chat
from audiobatch.transports.base import ServiceAccess
from audiobatch.transports.error_mapping import translate
from audiobatch.transports.http import ServiceClient, headers_of
from audiobatch.transports.reply_body import LARGEST_REPLY_BYTES, MIN_PROGRESS_BYTES, PROGRESS_WINDOW_S
from audiobatch.transports.reply_memory import MEMORY, timing
from tests.benchmarks import engine
from tests.benchmarks.loopback import fixed_server, prompts
from tests.benchmarks.session import ROOT, environment
from tests.benchmarks.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch.transports.chat_request import PiecewiseBody

#: Bytes of sound a reply, calls, items.
FULL = ((9_600, 4000, 1500), (480_000, 1000, 500))
TINY = ((48_000, 20, 8),)
LATENCY_S = 0.05
TIMEOUT_S = 60.0
PATH = "/chat/completions"
BODY = orjson.dumps(
    {
        "model": "gpt-audio-1.5",
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "messages": [{"role": "user", "content": "Say something about the number 17."}],
    }
)


class SdkClient(ServiceClient):
    """The same calls by the SDK's `post` over an HTTP client of its choice, within the same bounds."""

    http_client: type[httpx2.AsyncClient] = openai.DefaultAsyncHttpxClient

    def __init__(self, access: ServiceAccess) -> None:
        """Args: `access`: the loopback server."""
        super().__init__(access)
        own = self.http_client(timeout=httpx2.Timeout(TIMEOUT_S, connect=10.0), follow_redirects=False)
        self._measured = self.sdk.with_options(http_client=own)

    async def aclose(self) -> None:
        """Close both clients."""
        await self._measured.close()
        await super().aclose()

    async def post(self, path: str, body: bytes | PiecewiseBody, *, stream: bool = False) -> httpx2.Response:
        """Send a JSON body and read the reply piece by piece.

        Raises:
            AudioBatchError: the reply is an error, too large or too slow.
        """
        assert not stream
        sdk: Any = self._measured
        try:
            response: httpx2.Response = await sdk.post(
                path, content=body, cast_to=httpx2.Response, stream=True, stream_cls=openai.AsyncStream
            )
            response._content = await bounded(response)
        except openai.APIError as failed:
            raise translate(failed) from failed
        return response


class SdkAiohttpClient(SdkClient):
    """The same over the SDK's client for aiohttp."""

    http_client = openai.DefaultAioHttpClient


class SdkOverOurTransport(ServiceClient):
    """The SDK's `post`, which builds each request anew, over our connections."""

    async def post(self, path: str, body: bytes | PiecewiseBody, *, stream: bool = False) -> httpx2.Response:
        """Send a JSON body.

        Raises:
            AudioBatchError: the reply is an error, too large or too slow.
        """
        assert not stream
        sdk: Any = self.sdk
        try:
            response: httpx2.Response = await sdk.post(path, content=body, cast_to=httpx2.Response)
        except openai.APIError as failed:
            raise translate(failed) from failed
        return response


async def bounded(response: httpx2.Response) -> bytes:
    """A reply's body, its size, progress and memory watched as our own path watches them.

    Raises:
        BadReply: it is too large.
        OutcomeUnknown: it trickles.
    """
    memory = MEMORY.current_call()
    pieces: list[bytes] = []
    size_bytes = seen_bytes = 0
    reader = asyncio.current_task()
    assert reader is not None
    loop = asyncio.get_running_loop()
    trickled = False
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal seen_bytes, timer, trickled
        if size_bytes - seen_bytes < MIN_PROGRESS_BYTES:
            trickled = True
            reader.cancel()
        else:
            seen_bytes = size_bytes
            timer = loop.call_later(PROGRESS_WINDOW_S, look)

    timer = loop.call_later(PROGRESS_WINDOW_S, look)
    try:
        async for piece in response.aiter_bytes():
            size_bytes += len(piece)
            if size_bytes > LARGEST_REPLY_BYTES:
                raise BadReply("the reply is too large", raw=b"".join(pieces))
            await memory.grow(len(piece))
            pieces.append(piece)
    except asyncio.CancelledError as cancelled:
        if not trickled:
            raise
        raise OutcomeUnknown("the reply trickled in", timed_out=True) from cancelled
    finally:
        timer.cancel()
        await response.aclose()
    return b"".join(pieces)


PATHS: dict[str, tuple[str, type[ServiceClient]]] = {
    "ours": ("our path", ServiceClient),
    "sdk": ("the SDK's `post`, default client", SdkClient),
    "sdk_aiohttp": ("the SDK's `post`, its aiohttp client", SdkAiohttpClient),
    "sdk_over_ours": ("the SDK's `post` over our connections", SdkOverOurTransport),
}


async def calls(path: str, origin: str, count: int, at_once: int) -> dict[str, float]:
    """CPU milliseconds and wall-clock seconds of so many calls, after a tenth as many to warm up."""
    access = ServiceAccess(
        provider="azure",
        endpoint=origin,
        api_version="2025-01-01-preview",
        deployment="gpt-audio-1.5",
        key="the-key",
        timeout_s=TIMEOUT_S,
    )
    client = PATHS[path][1](access)
    received_bytes = 0

    async def worker(numbers: Iterator[int]) -> None:
        nonlocal received_bytes
        for _ in numbers:
            with MEMORY.call():
                async with timing(TIMEOUT_S):
                    response = await client.post(PATH, BODY)
                headers_of(response)
                received_bytes += len(response.content)

    async def send(number: int) -> None:
        numbers = iter(range(number))
        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(worker(numbers))

    await send(max(at_once, count // 10))
    received_bytes = 0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await send(count)
    cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    await client.aclose()
    return {"cpu_ms": cpu_s / count * 1000, "wall_s": wall_s, "reply_bytes": received_bytes / count}


def child(*arguments: object) -> dict[str, float]:
    """What a child process of this module prints.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "tests.benchmarks.http_path", *map(str, arguments)]
    ended = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{command} failed:\n{ended.stderr}")
    found: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def table(name: str, work: str, unit: str, found: dict[str, list[float]]) -> Table:
    """Medians, ranges and ratios to our path."""
    filled = Table(name=name, work=work, columns=["", f"CPU ms/{unit}", "range", "× ours"])
    ours = statistics.median(found["ours"])
    for path, rounds in found.items():
        median = statistics.median(rounds)
        filled.add(
            PATHS[path][0], f"{median:.2f}", f"{min(rounds):.2f}-{max(rounds):.2f}", f"{median / ours:.2f}"
        )
    return filled


def benchmark(*, tiny: bool) -> Iterator[Table]:
    """A table of calls and one of whole items for each size of reply."""
    at_once, rounds = (4, 1) if tiny else (64, 5)
    for audio_bytes, count, items in TINY if tiny else FULL:
        with fixed_server(reply_bytes=audio_bytes, latency_s=LATENCY_S) as origin:
            found: dict[str, list[float]] = {path: [] for path in PATHS}
            size_kb = 0.0
            for _ in range(rounds):
                for path in PATHS:
                    measured = child(path, origin, count, at_once)
                    found[path].append(measured["cpu_ms"])
                    size_kb = measured["reply_bytes"] / 1000
            work = f"{size_kb:.0f} KB replies, {at_once} at once, median of {rounds}"
            yield table("http, a call", f"{count} calls, {work}", "call", found)
            found = {path: [] for path in (("ours", "sdk") if tiny else ("ours", "sdk", "sdk_aiohttp"))}
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                few = max(2, items // 20)
                all_items, few_items = prompts(root / "all", items), prompts(root / "few", few)
                for number in range(rounds):
                    for path in found:
                        start, whole = (
                            child(
                                "engine", path, origin, inputs, root / f"{path}{number}{inputs.name}", at_once
                            )
                            for inputs in (few_items, all_items)
                        )
                        found[path].append((whole["cpu_s"] - start["cpu_s"]) / (items - few) * 1000)
            work = f"{size_kb:.0f} KB replies, {at_once} at once, median of {rounds}"
            yield table("http, a whole item", f"{items} items, {work}", "item", found)


def main(arguments: list[str]) -> None:
    """Measure one path; see the top."""
    if arguments[0] == "engine":
        _, path, origin, inputs, output, at_once = arguments
        vars(chat)["ServiceClient"] = PATHS[path][1]
        asyncio.run(engine.main(origin, Path(inputs), Path(output), int(at_once)))
        return
    path, origin, count, at_once = arguments
    print(json.dumps(asyncio.run(calls(path, origin, int(count), int(at_once)))))


if __name__ == "__main__":
    main(sys.argv[1:])
