"""A request as chat completions take it.

Source: OpenAI API reference, "Create chat completion"; learn.microsoft.com, "Audio generation quickstart", 2026-11.

A body that holds megabytes of sound is encoded piece by piece as it goes out, never whole. A recording of 20 MB is
27 MB of base64, 27 more as JSON, and stays so for as long as its call lasts. Here the JSON is made with a mark in
each sound's place, and cut there: what is kept for a call is the recording itself.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson
import pybase64

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from audiobatch.model import AudioPart, Exchange, Request

#: An audio id is taken for gone this long before it expires: the call itself takes time.
EXPIRY_MARGIN_S = 60.0


def body_of(
    request: Request,
    deployment: str,
    now_s: float,
    *,
    encode: Callable[[bytes], str] = pybase64.b64encode_as_string,
) -> dict[str, Any]:
    """The request as the service takes it.

    Args:
        request: what to ask.
        deployment: goes as `model`.
        now_s: epoch seconds, to tell whether an earlier reply's audio id still lives.
        encode: makes base64 of a sound; called in the order in which they stand in the body.
    """
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": request.system})
    audio_somewhere = request.wants_audio or request.audio is not None
    for exchange in request.history:
        messages.append(_user(exchange.text, exchange.audio, encode))
        messages.append(_assistant(exchange, now_s))
        audio_somewhere = audio_somewhere or exchange.audio is not None or "audio" in messages[-1]
    messages.append(_user(request.text, request.audio, encode))
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


def is_alive(expires_at: float | None, now_s: float) -> bool:
    """Whether an audio id may still be named; both in epoch seconds, None: it does not expire."""
    return expires_at is None or expires_at - EXPIRY_MARGIN_S > now_s


def _user(text: str, audio: AudioPart | None, encode: Callable[[bytes], str]) -> dict[str, Any]:
    if audio is None:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    parts.append({"type": "input_audio", "input_audio": {"data": encode(audio.data), "format": audio.format}})
    return {"role": "user", "content": parts}


def _assistant(exchange: Exchange, now_s: float) -> dict[str, Any]:
    """The earlier reply: by its audio id while that lives, else by its words. It is never bought again."""
    reply = exchange.reply
    if reply.audio_id and is_alive(reply.audio_expires_at, now_s):
        return {"role": "assistant", "audio": {"id": reply.audio_id}}
    return {"role": "assistant", "content": reply.text}


#: With less sound than this a body is made whole.
PIECEWISE_BYTES = 1 << 20
#: Bytes of sound encoded at a time: whole groups of three, so that the pieces' base64 joins up.
_PIECE_BYTES = 3 << 16


class PiecewiseBody:
    """JSON text and sounds in turn. May be sent again: each time it begins anew."""

    def __init__(self, parts: list[bytes], sounds: list[bytes]) -> None:
        """Args: parts: of the JSON, one more than sounds: these go between them, in base64."""
        self._parts = parts
        self._sounds = sounds
        encoded = sum(-(-len(sound) // 3) * 4 for sound in sounds)
        self.size_bytes = encoded + sum(len(part) for part in parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part, sound in zip(self._parts, self._sounds, strict=False):
            yield part
            view = memoryview(sound)
            for start in range(0, len(view), _PIECE_BYTES):
                yield pybase64.b64encode(view[start : start + _PIECE_BYTES])
        yield self._parts[-1]


def encoded_body(
    request: Request, deployment: str, now_s: float, *, as_stream: Any = None
) -> bytes | PiecewiseBody:
    """A request as it goes out.

    Args:
        request: what to ask.
        deployment: goes as `model`.
        now_s: epoch seconds.
        as_stream: changes the body into one that asks for a stream.
    """
    sounds = [part.data for part in (request.audio, *(one.audio for one in request.history)) if part]
    change = as_stream or (lambda body: body)
    if sum(len(sound) for sound in sounds) < PIECEWISE_BYTES:
        return orjson.dumps(change(body_of(request, deployment, now_s)))
    mark = secrets.token_hex(16)
    taken: list[bytes] = []

    def put_aside(sound: bytes) -> str:
        taken.append(sound)
        return mark

    text = orjson.dumps(change(body_of(request, deployment, now_s, encode=put_aside)))
    return PiecewiseBody(text.split(mark.encode()), taken)
