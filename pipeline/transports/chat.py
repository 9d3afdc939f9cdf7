"""Chat completions with audio, over HTTP.

`POST …/chat/completions` with `modalities` and `audio`; a recording goes as a base64 `input_audio` part; a
follow-up names the earlier reply by its audio id. The SDK's clients build URLs and carry credentials; the reply
is read as bytes and decoded once with orjson, because building typed objects around a megabyte of base64 costs
more than the whole call.

Source: learn.microsoft.com, "Audio generation quickstart" (chat completions); OpenAI API reference (2026-11).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from typing import TYPE_CHECKING, Any, Literal

import openai
import orjson

from pipeline.audio.encode import encode_reply
from pipeline.errors import AuthenticationFailed, BadReply, ContentFiltered, OutcomeUnknown
from pipeline.model import Reply, Usage
from pipeline.transports.chat_stream import as_stream, read_stream
from pipeline.transports.translate import request_id, translate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.model import AudioPart, Exchange, Request
    from pipeline.transports.auth import EntraTokens
    from pipeline.transports.base import Sink
    from pipeline.transports.chat_stream import StreamedReply

#: After the first byte, this many seconds may pass without the body growing by `MIN_PROGRESS_BYTES`.
PROGRESS_WINDOW_S = 60.0
MIN_PROGRESS_BYTES = 1024
#: Larger bodies are encoded and decoded in a thread: base64 and JSON both let other tasks run meanwhile.
OFF_LOOP_BYTES = 4_000_000
#: An audio id is taken for gone this long before it expires: the call itself takes time.
EXPIRY_MARGIN_S = 60.0


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
        connections: int = 1000,
        stream: bool = False,
    ) -> None:
        """Args: exactly one of `key` and `tokens` is given; `endpoint` None is OpenAI's own."""
        self.streams = stream
        self._deployment = deployment
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._client = _client(
            provider=provider,
            endpoint=endpoint,
            api_version=api_version,
            deployment=deployment,
            secret=tokens or key or "",
            timeout_s=timeout_s,
            connections=connections,
        )

    async def aclose(self) -> None:
        await self._client.close()

    def end_item(self, item_id: str) -> None:
        """Nothing is kept for an item."""

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """One call. A token that was refused is renewed once, together with all others that wait."""
        body = await _off_loop(_size(request), body_of, request, self._deployment, time.time())
        call = self._call_streamed if self.streams else self._call
        if sink is not None:
            await sink.restart()
        used = self._tokens.current if self._tokens else ""
        try:
            return await call(body, request, sink)
        except AuthenticationFailed:
            if self._tokens is None or not used:
                raise
            await self._tokens.renew(used)
            return await call(body, request, sink)

    async def _call_streamed(self, body: dict[str, Any], request: Request, sink: Sink | None) -> Reply:
        started_s = time.perf_counter()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.chat.completions.with_streaming_response.create(**as_stream(body)) as response,
            ):
                headers = {name.lower(): value for name, value in response.headers.items()}
                quiet_s = min(PROGRESS_WINDOW_S, self._timeout_s)
                streamed = await read_stream(response.iter_bytes(), sink, quiet_s=quiet_s)
        except Exception as failed:
            raise translate(failed) from failed
        latency_s = time.perf_counter() - started_s
        audio = None
        if streamed.pcm and request.wants_audio:
            audio = await _off_loop(
                len(streamed.pcm), encode_reply, bytes(streamed.pcm), request.format or "wav"
            )
        return _streamed_reply(streamed, audio, headers, latency_s, request)

    async def _call(self, body: dict[str, Any], request: Request, _sink: Sink | None) -> Reply:
        started_s = time.perf_counter()
        raw = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.chat.completions.with_streaming_response.create(**body) as response,
            ):
                headers = {name.lower(): value for name, value in response.headers.items()}
                await _read(response, raw)
        except Exception as failed:
            error = translate(failed)
            if isinstance(error, OutcomeUnknown) and raw:
                error.raw = bytes(raw)
            raise error from failed
        latency_s = time.perf_counter() - started_s
        reply: Reply = await _off_loop(len(raw), decode, bytes(raw), headers, latency_s, request)
        return reply


def _client(
    *,
    provider: Literal["azure", "openai"],
    endpoint: str | None,
    api_version: str,
    deployment: str,
    secret: Any,
    timeout_s: float,
    connections: int,
) -> openai.AsyncOpenAI:
    import httpx2

    http = openai.DefaultAsyncHttpxClient(
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        timeout=httpx2.Timeout(timeout_s, connect=10.0),
    )
    common: dict[str, Any] = {"max_retries": 0, "http_client": http, "timeout": timeout_s}
    if provider == "openai":
        return openai.AsyncOpenAI(api_key=secret, base_url=endpoint, **common)
    assert endpoint is not None
    if api_version == "v1":
        return openai.AsyncOpenAI(api_key=secret, base_url=f"{endpoint}/openai/v1", **common)
    return openai.AsyncAzureOpenAI(
        azure_endpoint=endpoint,
        azure_deployment=deployment,
        api_version=api_version,
        **({"azure_ad_token_provider": secret} if callable(secret) else {"api_key": secret}),
        **common,
    )


async def _off_loop(size_bytes: int, work: Any, *arguments: Any) -> Any:
    """Small work here, large work in a thread: a hand-over costs more than the decoding of a short reply."""
    if size_bytes < OFF_LOOP_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _size(request: Request) -> int:
    parts = [request.audio, *(exchange.audio for exchange in request.history)]
    return sum(len(part.data) for part in parts if part)


async def _read(response: Any, into: bytearray) -> None:
    """The body, watched: a reply that only trickles is given up instead of holding a place for ten minutes."""
    loop = asyncio.get_running_loop()
    window_ends_s = loop.time() + PROGRESS_WINDOW_S
    had = 0
    async for piece in response.iter_bytes():
        into += piece
        now_s = loop.time()
        if now_s >= window_ends_s:
            if len(into) - had < MIN_PROGRESS_BYTES:
                raise OutcomeUnknown(
                    f"the reply trickled in: {len(into)} bytes, then less than {MIN_PROGRESS_BYTES} "
                    f"in {PROGRESS_WINDOW_S:.0f} s",
                    timed_out=True,
                )
            had, window_ends_s = len(into), now_s + PROGRESS_WINDOW_S


def body_of(request: Request, deployment: str, now_s: float) -> dict[str, Any]:
    """The request as the service takes it.

    Args:
        request: what to ask.
        deployment: goes as `model`.
        now_s: epoch seconds, to tell whether an earlier reply's audio id still lives.
    """
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": request.system})
    audio_somewhere = request.wants_audio or request.audio is not None
    for exchange in request.history:
        messages.append(_user(exchange.text, exchange.audio))
        messages.append(_assistant(exchange, now_s))
        audio_somewhere = audio_somewhere or exchange.audio is not None or "audio" in messages[-1]
    messages.append(_user(request.text, request.audio))
    body: dict[str, Any] = {"model": deployment, "messages": messages}
    # The audio models refuse a request with audio on neither side; where an expired id took the last of it
    # away, the reply is asked for with audio, and its text is what was wanted.
    if request.wants_audio or not audio_somewhere:
        body["modalities"] = ["text", "audio"]
        body["audio"] = {"voice": request.voice or "alloy", "format": request.format or "wav"}
    else:
        body["modalities"] = ["text"]
    for name in ("temperature", "seed", "max_completion_tokens"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    return body


def _user(text: str, audio: AudioPart | None) -> dict[str, Any]:
    if audio is None:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    data = base64.b64encode(audio.data).decode("ascii")
    parts.append({"type": "input_audio", "input_audio": {"data": data, "format": audio.format}})
    return {"role": "user", "content": parts}


def _assistant(exchange: Exchange, now_s: float) -> dict[str, Any]:
    """The earlier reply: by its audio id while that lives, else by its words. It is never bought again."""
    reply = exchange.reply
    alive = reply.audio_expires_at is None or reply.audio_expires_at - EXPIRY_MARGIN_S > now_s
    if reply.audio_id and alive:
        return {"role": "assistant", "audio": {"id": reply.audio_id}}
    return {"role": "assistant", "content": reply.text}


def decode(raw: bytes, headers: Mapping[str, str], latency_s: float, request: Request) -> Reply:
    """The body as a Reply.

    Raises:
        BadReply: no JSON, no choice, broken base64, or an audio part without audio.
        ContentFiltered: the filter took the reply.
    """
    identity = request_id(headers)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as failed:
        kind = "HTML" if raw.lstrip()[:1] == b"<" else "no JSON"
        raise BadReply(f"the reply is {kind}: {failed}", raw=raw, request_id=identity) from failed
    try:
        if isinstance(body.get("error"), dict):
            raise BadReply(f"an error with status 200: {body['error']}", raw=raw, request_id=identity)
        choice = body["choices"][0]
        message = choice["message"]
        finish_reason = choice.get("finish_reason") or ""
        sound = message.get("audio") or {}
        audio = base64.b64decode(sound["data"], validate=True) if sound else None
        text = message.get("content") or ""
        transcript = sound.get("transcript") or ""
        usage = _usage(body.get("usage"))
    except binascii.Error as failed:
        raise BadReply(
            f"the reply's audio is broken base64: {failed}", raw=raw, request_id=identity
        ) from failed
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as failed:
        raise BadReply(
            f"the reply lacks what it must have: {failed!r}", raw=raw, request_id=identity
        ) from failed
    if finish_reason == "content_filter" and not audio and not text:
        raise ContentFiltered(
            "the reply was taken by the content filter",
            status=200,
            code="content_filter",
            request_id=identity,
        )
    if audio is not None and not audio:
        raise BadReply("the reply's audio is empty", raw=raw, request_id=identity)
    if not audio and not text and not message.get("refusal"):
        raise BadReply("the reply has neither audio nor text", raw=raw, request_id=identity)
    return Reply(
        text=text or message.get("refusal") or "",
        transcript=transcript,
        audio=audio,
        audio_format=request.format or "wav",
        audio_id=sound.get("id"),
        audio_expires_at=sound.get("expires_at"),
        finish_reason=finish_reason,
        usage=usage,
        model=str(body.get("model") or ""),
        request_id=identity,
        latency_s=latency_s,
        limits=_limits(headers),
        raw=raw,
    )


def _streamed_reply(
    streamed: StreamedReply,
    audio: bytes | None,
    headers: Mapping[str, str],
    latency_s: float,
    request: Request,
) -> Reply:
    """What a stream brought as a Reply, judged as a body is.

    Raises:
        BadReply: an audio part without audio, or nothing at all.
        ContentFiltered: the filter took the reply.
    """
    identity = request_id(headers)
    said = streamed.text or streamed.refusal
    if streamed.finish_reason == "content_filter" and not streamed.pcm and not said:
        words = "the reply was taken by the content filter"
        raise ContentFiltered(words, status=200, code="content_filter", request_id=identity)
    if streamed.has_audio and not streamed.pcm:
        raise BadReply("the reply's audio is empty", request_id=identity)
    if not streamed.pcm and not said:
        raise BadReply("the reply has neither audio nor text", request_id=identity)
    return Reply(
        text=said,
        transcript=streamed.transcript,
        audio=audio,
        audio_format=request.format or "wav",
        audio_id=streamed.audio_id,
        audio_expires_at=streamed.audio_expires_at,
        finish_reason=streamed.finish_reason,
        usage=_usage(streamed.usage),
        model=streamed.model,
        request_id=identity,
        latency_s=latency_s,
        limits=_limits(headers),
    )


def _limits(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith(("x-ratelimit", "retry-"))}


def _usage(found: Any) -> Usage | None:
    """Token counts; audio and text apart. Where details are missing everything counts as text."""
    if not isinstance(found, dict):
        return None
    into = found.get("prompt_tokens_details") or {}
    out = found.get("completion_tokens_details") or {}
    audio_in = into.get("audio_tokens") or 0
    audio_out = out.get("audio_tokens") or 0
    return Usage(
        input_text_tokens=max(0, (found.get("prompt_tokens") or 0) - audio_in),
        input_audio_tokens=audio_in,
        cached_tokens=into.get("cached_tokens") or 0,
        output_text_tokens=max(0, (found.get("completion_tokens") or 0) - audio_out),
        output_audio_tokens=audio_out,
    )
