"""A chat completion's body, or what a stream of one brought, as a Reply.

The body is decoded once with orjson: building typed objects around a megabyte of base64 costs more than the call.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any

import pybase64

from audiobatch.errors import BadReply, ContentFiltered
from audiobatch.model import Reply
from audiobatch.transports.error_mapping import request_id
from audiobatch.transports.lenient_json import loads
from audiobatch.transports.rate_limit_headers import limits_in
from audiobatch.transports.reply_fields import CHAT_NAMES, seconds_of, usage_of, word_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.model import Request
    from audiobatch.transports.chat_stream import StreamedReply


def reply_of(raw: bytes, headers: Mapping[str, str], latency_s: float, request: Request) -> Reply:
    """The body as a Reply.

    Raises:
        BadReply: no JSON, no choice, broken base64, or an audio part without audio.
        ContentFiltered: the filter took the reply.
    """
    identity = request_id(headers)
    try:
        body, repaired = loads(raw)
    except (ValueError, RecursionError) as failed:
        kind = "HTML" if raw.lstrip()[:1] == b"<" else "no JSON"
        raise BadReply(f"the reply is {kind}: {failed}", raw=raw, request_id=identity) from failed
    try:
        if isinstance(body.get("error"), dict):
            raise BadReply(f"an error with status 200: {body['error']}", raw=raw, request_id=identity)
        choice = body["choices"][0]
        message = choice["message"]
        finish_reason = word_of(choice.get("finish_reason"))
        sound = message.get("audio") or {}
        audio = pybase64.b64decode(sound["data"], validate=True) if sound else None
        text, refusal = _said(message, "content"), _said(message, "refusal")
        transcript = _said(sound, "transcript")
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
    if not audio and not text and not refusal:
        raise BadReply("the reply has neither audio nor text", raw=raw, request_id=identity)
    return Reply(
        text=text or refusal,
        transcript=transcript,
        audio=audio,
        audio_format=request.format or "wav",
        audio_id=word_of(sound.get("id")) or None,
        audio_expires_at=seconds_of(sound.get("expires_at")),
        finish_reason=finish_reason,
        usage=usage_of(
            body.get("usage"), CHAT_NAMES, heard=request.audio is not None, spoken=audio is not None
        ),
        model=word_of(body.get("model")),
        request_id=identity,
        latency_s=latency_s,
        limits=limits_in(headers),
        repaired=repaired,
        raw=raw,
    )


def streamed_reply(
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
        usage=usage_of(streamed.usage, CHAT_NAMES, heard=request.audio is not None, spoken=audio is not None),
        model=streamed.model,
        request_id=identity,
        latency_s=latency_s,
        limits=limits_in(headers),
        repaired=streamed.repaired,
    )


def _said(found: Mapping[str, Any], name: str) -> str:
    """Raises: TypeError: it is there, and is no text."""
    words = found.get(name) or ""
    if not isinstance(words, str):
        raise TypeError(f"{name} is no text")
    return words
