"""Encode requests as chat completions take them.

Source: OpenAI API reference, "Create chat completion"; learn.microsoft.com, "Audio generation quickstart", 2026-11.

A body with megabytes of sound is encoded piece by piece as it goes out, never whole. A recording of 20 MB is 27 MB
of base64 and 27 MB more as JSON, for as long as its call lasts. Here the JSON is made with a mark in place of each
sound, and cut there, so that a call holds the recording only.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson
import pybase64

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from audiobatch.model import AudioPart, Exchange, Request

#: An audio id counts as expired this long before it expires: the call itself takes time.
EXPIRY_MARGIN_S = 60.0
#: A body with less sound than this is encoded whole.
PIECEWISE_BYTES = 1 << 20
#: Bytes of sound encoded at a time: whole groups of three, so that the pieces' base64 joins up.
_PIECE_BYTES = 3 << 16


def body_of(
    request: Request,
    deployment: str,
    now_s: float,
    *,
    encode: Callable[[bytes], str] = pybase64.b64encode_as_string,
) -> dict[str, Any]:
    """Build the request's body.

    Args:
        request: what to ask.
        deployment: sent as `model`.
        now_s: epoch seconds, to tell whether an earlier reply's audio id has expired.
        encode: makes base64 of a sound; called in the order of the body.
    """
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": request.system})
    has_audio = request.wants_audio or request.audio is not None
    for exchange in request.history:
        messages.append(_user(exchange.text, exchange.audio, encode))
        messages.append(_assistant(exchange, now_s))
        has_audio = has_audio or exchange.audio is not None or "audio" in messages[-1]
    messages.append(_user(request.text, request.audio, encode))
    body: dict[str, Any] = {"model": deployment, "messages": messages}
    # The audio models refuse a request without any audio. Where an expired id removed the last of it, the request
    # asks for audio, and the reply's transcript serves as its text.
    if request.wants_audio or not has_audio:
        body["modalities"] = ["text", "audio"]
        body["audio"] = {"voice": request.voice or "alloy", "format": request.format or "wav"}
    else:
        body["modalities"] = ["text"]
    for name in ("temperature", "seed", "max_completion_tokens"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    return body


def is_alive(expires_at: float | None, now_s: float) -> bool:
    """Whether an audio id is still usable; both times in epoch seconds, None: it does not expire."""
    return expires_at is None or expires_at - EXPIRY_MARGIN_S > now_s


def _user(text: str, audio: AudioPart | None, encode: Callable[[bytes], str]) -> dict[str, Any]:
    if audio is None:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    parts.append({"type": "input_audio", "input_audio": {"data": encode(audio.data), "format": audio.format}})
    return {"role": "user", "content": parts}


def _assistant(exchange: Exchange, now_s: float) -> dict[str, Any]:
    """Name the earlier reply by its audio id until that expires, then by its text. It is never bought again."""
    reply = exchange.reply
    if reply.audio_id and is_alive(reply.audio_expires_at, now_s):
        return {"role": "assistant", "audio": {"id": reply.audio_id}}
    return {"role": "assistant", "content": reply.text}


class PiecewiseBody:
    """A body of JSON text and sounds in turn. It can be sent again: each iteration starts at its beginning."""

    def __init__(self, parts: list[bytes], sounds: list[bytes]) -> None:
        """Args: parts: of the JSON, one more than sounds. sounds: go between the parts, in base64."""
        self._parts = parts
        self._sounds = sounds
        encoded = sum(-(-len(sound) // 3) * 4 for sound in sounds)
        self.size_bytes = encoded + sum(len(part) for part in parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body's pieces."""
        for part, sound in zip(self._parts, self._sounds, strict=False):
            yield part
            view = memoryview(sound)
            for start in range(0, len(view), _PIECE_BYTES):
                yield pybase64.b64encode(view[start : start + _PIECE_BYTES])
        yield self._parts[-1]


def encoded_body(
    request: Request, deployment: str, now_s: float, *, stream: bool = False
) -> bytes | PiecewiseBody:
    """Encode a request.

    Args:
        request: what to ask.
        deployment: sent as `model`.
        now_s: epoch seconds.
        stream: ask for the reply as a stream.
    """

    def build(encode: Callable[[bytes], str]) -> bytes:
        body = body_of(request, deployment, now_s, encode=encode)
        return orjson.dumps(_as_stream(body) if stream else body)

    parts = (request.audio, *(exchange.audio for exchange in request.history))
    if sum(len(part.data) for part in parts if part) < PIECEWISE_BYTES:
        return build(pybase64.b64encode_as_string)
    mark = secrets.token_hex(16)
    sounds: list[bytes] = []

    def collect(sound: bytes) -> str:
        sounds.append(sound)
        return mark

    return PiecewiseBody(build(collect).split(mark.encode()), sounds)


def _as_stream(body: dict[str, Any]) -> dict[str, Any]:
    """Change a body so that it asks for a stream, whose audio is always bare samples."""
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    if "audio" in body:
        streamed["audio"] = body["audio"] | {"format": "pcm16"}
    return streamed
