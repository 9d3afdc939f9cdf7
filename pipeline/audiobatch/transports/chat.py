"""Chat completions with audio, over HTTP.

`POST …/chat/completions` with `modalities` and `audio`; a recording goes as a base64 `input_audio` part; a
follow-up names the earlier reply by its audio id. The SDK makes the requests; the reply is read as bytes and
decoded once with orjson, because building typed objects around a megabyte of base64 costs more than the whole
call.

Source: learn.microsoft.com, "Audio generation quickstart" (chat completions); OpenAI API reference (2026-11).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from audiobatch.errors import AuthenticationFailed, working_on_reply
from audiobatch.transports.chat_reply import reply_of, streamed_reply
from audiobatch.transports.chat_request import encoded_body
from audiobatch.transports.chat_stream import as_stream, read_stream
from audiobatch.transports.error_mapping import request_id, translate
from audiobatch.transports.http import ServiceClient, headers_of
from audiobatch.transports.reply_audio import encoded
from audiobatch.transports.reply_body import LARGEST_REPLY_BYTES, PROGRESS_WINDOW_S
from audiobatch.transports.reply_memory import timing
from audiobatch.transports.stored_body import body_of

if TYPE_CHECKING:
    from audiobatch.model import Reply, Request
    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.base import Sink
    from audiobatch.transports.chat_request import PiecewiseBody

_PATH = "/chat/completions"
#: Larger bodies are worked on in a thread; decoded one at a time, for there are three copies of one meanwhile.
OFF_LOOP_BYTES = 4_000_000


class ChatTransport:
    """One deployment's chat completions."""

    name = "chat"

    def __init__(
        self,
        *,
        provider: Literal["azure", "openai"],
        endpoint: str | None,
        api_version: str,
        deployment: str,
        key: str | None,
        tokens: EntraTokens | None,
        timeout_s: float,
        most_reply_bytes: int = LARGEST_REPLY_BYTES,
        stream: bool = False,
    ) -> None:
        """Args: exactly one of `key` and `tokens` is given; `endpoint` None is OpenAI's own."""
        self.streams = stream
        self._deployment = deployment
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._large = asyncio.Lock()
        self._client = ServiceClient(
            provider=provider,
            endpoint=endpoint,
            api_version=api_version,
            deployment=deployment,
            key=key,
            tokens=tokens,
            timeout_s=timeout_s,
            most_reply_bytes=most_reply_bytes,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    def end_item(self, item_id: str) -> None:
        """Nothing is kept for an item."""

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """One call. A token that was refused is renewed once, together with all others that wait."""
        body = encoded_body(
            request, self._deployment, time.time(), as_stream=as_stream if self.streams else None
        )
        call: Any = self._call_streamed if self.streams else self._call
        if sink is not None:
            await sink.restart()
        used = self._tokens.current if self._tokens else ""
        try:
            reply: Reply = await call(body, request, sink)
        except AuthenticationFailed:
            if self._tokens is None or not used:
                raise
            await self._tokens.renew(used)
            reply = await call(body, request, sink)
        return reply

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
        except Exception as failed:
            raise translate(failed) from failed
        latency_s = time.perf_counter() - started_s

        def body_kept() -> bytes:
            wav = encoded(bytes(streamed.pcm), "wav") if streamed.pcm else None
            made = streamed_reply(streamed, wav, headers, latency_s, request)
            return body_of(replace(made, audio_format="wav"))

        audio = None
        with working_on_reply(body_kept, request_id(headers)):
            if streamed.pcm and request.wants_audio:
                wanted = request.format or "wav"
                audio = await _off_loop(len(streamed.pcm), encoded, bytes(streamed.pcm), wanted)
            return streamed_reply(streamed, audio, headers, latency_s, request)

    async def _call(self, body: bytes | PiecewiseBody, request: Request, _sink: Sink | None) -> Reply:
        started_s = time.perf_counter()
        try:
            async with timing(self._timeout_s):
                response = await self._client.post(_PATH, body)
        except Exception as failed:
            raise translate(failed) from failed
        latency_s = time.perf_counter() - started_s
        headers = headers_of(response)
        raw = response.content
        async with self._large if len(raw) >= OFF_LOOP_BYTES else nullcontext():
            with working_on_reply(lambda: raw, request_id(headers)):
                reply: Reply = await _off_loop(len(raw), reply_of, raw, headers, latency_s, request)
                return reply


async def _off_loop(size_bytes: int, work: Any, *arguments: Any) -> Any:
    """Small work here, large work in a thread: a hand-over costs more than the decoding of a short reply."""
    if size_bytes < OFF_LOOP_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
