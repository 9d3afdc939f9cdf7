"""A chat completion's body, or what a stream of one brought, as a Reply.

The body is decoded once with orjson: building typed objects around a megabyte of base64 costs more than the call.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any

import orjson
import pybase64

from pipeline.errors import BadReply, ContentFiltered
from pipeline.model import Reply, Usage
from pipeline.transports.headers import limits_in
from pipeline.transports.translate import request_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.model import Request
    from pipeline.transports.chat_stream import StreamedReply


def reply_of(raw: bytes, headers: Mapping[str, str], latency_s: float, request: Request) -> Reply:
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
        audio = pybase64.b64decode(sound["data"], validate=True) if sound else None
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
        limits=limits_in(headers),
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
        usage=_usage(streamed.usage),
        model=streamed.model,
        request_id=identity,
        latency_s=latency_s,
        limits=limits_in(headers),
    )


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
