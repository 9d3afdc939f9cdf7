"""Send requests as chat completions with audio, over HTTP.

`POST …/chat/completions` with `modalities` and `audio`; a recording goes as a base64 `input_audio` part; a
follow-up names the earlier reply by its audio id.

Source: learn.microsoft.com, "Audio generation quickstart" (chat completions); OpenAI API reference (2026-11).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from audiobatch.errors import AuthenticationFailed, working_on_reply
from audiobatch.transports.chat_reply import read_stream, reply_of, streamed_reply
from audiobatch.transports.chat_request import encoded_body
from audiobatch.transports.error_mapping import request_id, translate
from audiobatch.transports.http import ServiceClient, headers_of
from audiobatch.transports.reply_body import PROGRESS_WINDOW_S
from audiobatch.transports.reply_content import encode_samples
from audiobatch.transports.reply_memory import timing
from audiobatch.transports.stored_body import body_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from audiobatch.model import Reply, Request
    from audiobatch.transports.base import ServiceAccess, Sink
    from audiobatch.transports.chat_request import PiecewiseBody

P = ParamSpec("P")
T = TypeVar("T")

_PATH = "/chat/completions"
#: A thread works on larger bodies, one at a time: three copies of a body exist meanwhile.
OFF_LOOP_BYTES = 4_000_000


class ChatTransport:
    """Chat completions of one deployment."""

    name = "chat"

    def __init__(self, access: ServiceAccess, *, stream: bool = False) -> None:
        """Args: `stream`: ask for replies as streams."""
        self.streams = stream
        self._deployment = access.deployment
        self._tokens = access.tokens
        self._timeout_s = access.timeout_s
        self._large = asyncio.Lock()
        self._client = ServiceClient(access)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def end_item(self, item_id: str) -> None:
        """Do nothing: items have no sessions here."""

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """Make one call; see `Transport.send`. A refused token is renewed once for all calls that wait."""
        body = encoded_body(request, self._deployment, time.time(), stream=self.streams)
        if sink is not None:
            await sink.restart()
        used_token = self._tokens.current if self._tokens else ""
        try:
            return await self._call(body, request, sink)
        except AuthenticationFailed:
            if self._tokens is None or not used_token:
                raise
            await self._tokens.renew(used_token)
            return await self._call(body, request, sink)

    async def _call(self, body: bytes | PiecewiseBody, request: Request, sink: Sink | None) -> Reply:
        if self.streams:
            return await self._call_streamed(body, request, sink)
        return await self._call_whole(body, request)

    async def _call_streamed(self, body: bytes | PiecewiseBody, request: Request, sink: Sink | None) -> Reply:
        started_s = time.perf_counter()
        try:
            async with (
                timing(self._timeout_s),
                aclosing(await self._client.post(_PATH, body, stream=True)) as response,
            ):
                headers = headers_of(response)
                quiet_s = min(PROGRESS_WINDOW_S, self._timeout_s)
                streamed = await read_stream(response.aiter_bytes(), sink, quiet_s=quiet_s)
        except Exception as error:
            raise translate(error) from error
        latency_s = time.perf_counter() - started_s

        def body_to_store() -> bytes:
            wav = encode_samples(bytes(streamed.pcm), "wav") if streamed.pcm else None
            reply = streamed_reply(streamed, wav, headers, latency_s, request)
            return body_of(replace(reply, audio_format="wav"))

        audio = None
        with working_on_reply(body_to_store, request_id(headers)):
            if streamed.pcm and request.wants_audio:
                format_ = request.format or "wav"
                audio = await _off_loop(len(streamed.pcm), encode_samples, bytes(streamed.pcm), format_)
            return streamed_reply(streamed, audio, headers, latency_s, request)

    async def _call_whole(self, body: bytes | PiecewiseBody, request: Request) -> Reply:
        started_s = time.perf_counter()
        try:
            async with timing(self._timeout_s):
                response = await self._client.post(_PATH, body)
        except Exception as error:
            raise translate(error) from error
        latency_s = time.perf_counter() - started_s
        headers = headers_of(response)
        raw = response.content
        async with self._large if len(raw) >= OFF_LOOP_BYTES else nullcontext():
            with working_on_reply(lambda: raw, request_id(headers)):
                return await _off_loop(len(raw), reply_of, raw, headers, latency_s, request)


async def _off_loop(size_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do small work here and large work in a thread: starting it there costs more than decoding a short reply."""
    if size_bytes < OFF_LOOP_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
