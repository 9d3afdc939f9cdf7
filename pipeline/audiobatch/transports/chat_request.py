"""A request as chat completions take it.

Source: OpenAI API reference, "Create chat completion"; learn.microsoft.com, "Audio generation quickstart", 2026-11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pybase64

if TYPE_CHECKING:
    from collections.abc import Callable

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
