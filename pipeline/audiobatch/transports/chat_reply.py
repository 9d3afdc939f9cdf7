"""Make a Reply of a chat completion, whether it came as one body or as a stream of server-sent events.

A body is decoded once with orjson: building typed objects around a megabyte of base64 costs more than the call.

Streams give bare samples only (pcm16), whatever the job wants: they are encoded at the end. Chunks may come
without choices (Azure's first one, the last one with the usage); the order of transcript and data does not matter.
A stream without a `finish_reason` is no reply, however orderly it ends.

Source: the Chat Completions reference (`stream`, `stream_options`); Agent-Field/agentfield#584 (pcm16 only);
openai-python 3.51 (`ChoiceDeltaAudio`). Checked 2026-11-20.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pybase64

from audiobatch.errors import (
    BadReply,
    ContentFiltered,
    OutcomeUnknown,
    RequestRejected,
    working_on_event,
)
from audiobatch.model import Reply
from audiobatch.transports.error_mapping import from_error_object, request_id
from audiobatch.transports.rate_limit_headers import limits_in
from audiobatch.transports.reply_content import CHAT_NAMES, name_of, parse_json, seconds_of, usage_of
from audiobatch.transports.reply_memory import timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from audiobatch.model import Request
    from audiobatch.transports.base import Sink

_DONE = b"[DONE]"


def reply_of(raw: bytes, headers: Mapping[str, str], latency_s: float, request: Request) -> Reply:
    """Decode a body.

    Args:
        raw: the body.
        headers: with lower-case names.
        latency_s: from the request to the end of the body.
        request: what was asked.

    Raises:
        BadReply: no JSON, no choice, broken base64, or an audio part without audio.
        ContentFiltered: the content filter removed the reply.
    """
    identity = request_id(headers)
    try:
        body, repaired = parse_json(raw)
    except (ValueError, RecursionError) as error:
        kind = "HTML" if raw.lstrip()[:1] == b"<" else "no JSON"
        raise BadReply(f"the reply is {kind}: {error}", raw=raw, request_id=identity) from error
    try:
        if isinstance(body.get("error"), dict):
            raise BadReply(f"an error with status 200: {body['error']}", raw=raw, request_id=identity)
        choice = body["choices"][0]
        message = choice["message"]
        finish_reason = name_of(choice.get("finish_reason"))
        audio_part = message.get("audio") or {}
        audio = pybase64.b64decode(audio_part["data"], validate=True) if audio_part else None
        text, refusal = _text_field(message, "content"), _text_field(message, "refusal")
        transcript = _text_field(audio_part, "transcript")
    except binascii.Error as error:
        raise BadReply(
            f"the reply's audio is broken base64: {error}", raw=raw, request_id=identity
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise BadReply(
            f"the reply lacks what it must have: {error!r}", raw=raw, request_id=identity
        ) from error
    if finish_reason == "content_filter" and not audio and not text:
        raise _filtered(identity)
    _check_content(audio, text or refusal, has_audio_part=audio is not None, raw=raw, identity=identity)
    return Reply(
        text=text or refusal,
        transcript=transcript,
        audio=audio,
        audio_format=request.format or "wav",
        audio_id=name_of(audio_part.get("id")) or None,
        audio_expires_at=seconds_of(audio_part.get("expires_at")),
        finish_reason=finish_reason,
        usage=usage_of(
            body.get("usage"),
            CHAT_NAMES,
            sent_audio=request.audio is not None,
            received_audio=audio is not None,
        ),
        model=name_of(body.get("model")),
        request_id=identity,
        latency_s=latency_s,
        limits=limits_in(headers),
        repaired=repaired,
        raw=raw,
    )


@dataclass(slots=True)
class StreamedReply:
    """What the chunks of a stream have brought so far.

    Attributes:
        pcm: 16 bits, one channel, 24 kHz.
        has_audio: an audio part was announced, whether or not it brought samples.
        repaired: a chunk was no JSON to a strict reader.
    """

    text: str = ""
    refusal: str = ""
    transcript: str = ""
    audio_id: str | None = None
    audio_expires_at: float | None = None
    pcm: bytearray = field(default_factory=bytearray)
    has_audio: bool = False
    finish_reason: str = ""
    usage: Any = None
    model: str = ""
    repaired: bool = False

    def add(self, chunk: dict[str, Any]) -> None:
        """Add a chunk.

        Raises:
            BadReply: its audio is broken base64.
            OutcomeUnknown, ContentFiltered: it is an error.
        """
        if isinstance(chunk.get("error"), dict):
            raise self._error(chunk["error"])
        self.model = name_of(chunk.get("model")) or self.model
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self.finish_reason = name_of(choice.get("finish_reason")) or self.finish_reason
            self.text += delta.get("content") or ""
            self.refusal += delta.get("refusal") or ""
            audio_part = delta.get("audio")
            if isinstance(audio_part, dict):
                self.has_audio = True
                self.audio_id = name_of(audio_part.get("id")) or self.audio_id
                self.audio_expires_at = seconds_of(audio_part.get("expires_at")) or self.audio_expires_at
                self.transcript += audio_part.get("transcript") or ""
                try:
                    self.pcm += pybase64.b64decode(audio_part.get("data") or "", validate=True)
                except binascii.Error as error:
                    raise BadReply(f"the reply's audio is broken base64: {error}") from error

    def _error(self, error: dict[str, Any]) -> Exception:
        translated = from_error_object(error)
        if isinstance(translated, ContentFiltered):
            return translated
        if isinstance(translated, RequestRejected) and not (self.pcm or self.text):
            return translated
        return OutcomeUnknown(f"the service broke off in mid-reply: {translated.message}")


async def read_stream(pieces: AsyncIterator[bytes], sink: Sink | None, *, quiet_s: float) -> StreamedReply:
    """Read a stream to its end.

    Args:
        pieces: the body as it arrives.
        sink: gets the same bytes.
        quiet_s: longest time without a piece.

    Raises:
        BadReply: it is no stream of events, or an event is broken.
        OutcomeUnknown: it ended, or fell silent, before its `finish_reason`.
    """
    reply = StreamedReply()
    rest = bytearray()
    any_event = done = False
    while not done:
        piece = await _next_piece(pieces, quiet_s)
        if piece is None:
            break
        if sink is not None:
            await sink.write(piece)
        for line in _whole_lines(rest, piece):
            if not line.startswith(b"data:"):
                if not any_event and line.lstrip()[:1] in (b"<", b"{"):
                    kind = "HTML" if line.lstrip()[:1] == b"<" else "no stream"
                    raise BadReply(f"the reply is {kind}: {line[:80]!r}")
                continue
            any_event = True
            data = line[5:].strip()
            if data == _DONE:
                done = True
            else:
                with working_on_event():
                    chunk, repaired = _parse_chunk(data)
                    reply.repaired = reply.repaired or repaired
                    reply.add(chunk)
    if not any_event:
        raise BadReply(f"the reply is no stream of events: {bytes(rest[:80])!r}")
    if not reply.finish_reason:
        raise OutcomeUnknown("the stream ended without a finish_reason")
    return reply


def streamed_reply(
    streamed: StreamedReply,
    audio: bytes | None,
    headers: Mapping[str, str],
    latency_s: float,
    request: Request,
) -> Reply:
    """Make a Reply of a stream, with the same checks as a body.

    Args:
        streamed: the whole stream.
        audio: its samples, encoded.
        headers: with lower-case names.
        latency_s: from the request to the end of the stream.
        request: what was asked.

    Raises:
        BadReply: an audio part without audio, or nothing at all.
        ContentFiltered: the content filter removed the reply.
    """
    identity = request_id(headers)
    text = streamed.text or streamed.refusal
    if streamed.finish_reason == "content_filter" and not streamed.pcm and not text:
        raise _filtered(identity)
    _check_content(streamed.pcm, text, has_audio_part=streamed.has_audio, raw=b"", identity=identity)
    return Reply(
        text=text,
        transcript=streamed.transcript,
        audio=audio,
        audio_format=request.format or "wav",
        audio_id=streamed.audio_id,
        audio_expires_at=streamed.audio_expires_at,
        finish_reason=streamed.finish_reason,
        usage=usage_of(
            streamed.usage,
            CHAT_NAMES,
            sent_audio=request.audio is not None,
            received_audio=audio is not None,
        ),
        model=streamed.model,
        request_id=identity,
        latency_s=latency_s,
        limits=limits_in(headers),
        repaired=streamed.repaired,
    )


def _filtered(identity: str | None) -> ContentFiltered:
    message = "the reply was taken by the content filter"
    return ContentFiltered(message, status=200, code="content_filter", request_id=identity)


def _check_content(
    audio: bytes | bytearray | None,
    text: str,
    *,
    has_audio_part: bool,
    raw: bytes,
    identity: str | None,
) -> None:
    """Refuse a reply without content.

    Raises:
        BadReply: an audio part without audio, or nothing at all.
    """
    if has_audio_part and not audio:
        raise BadReply("the reply's audio is empty", raw=raw, request_id=identity)
    if not audio and not text:
        raise BadReply("the reply has neither audio nor text", raw=raw, request_id=identity)


async def _next_piece(pieces: AsyncIterator[bytes], quiet_s: float) -> bytes | None:
    """Return the next piece; None at the end of the stream."""
    try:
        async with timing(quiet_s):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise OutcomeUnknown(f"the stream was silent for {quiet_s:.0f} s", timed_out=True) from error


def _whole_lines(rest: bytearray, piece: bytes) -> Iterator[bytes]:
    """Yield the lines that a piece completes; `rest` holds the line that is incomplete before and after it."""
    first, *others = piece.split(b"\n")
    rest += first
    if others:
        lines = [bytes(rest), *others[:-1]]
        rest[:] = others[-1]
        yield from lines


def _parse_chunk(data: bytes) -> tuple[dict[str, Any], bool]:
    """Parse the data of an event; the second value tells whether it had to be repaired."""
    try:
        chunk, repaired = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"an event of the stream is no JSON: {error}") from error
    if not isinstance(chunk, dict):
        raise BadReply("an event of the stream is no object")
    return chunk, repaired


def _text_field(fields: Mapping[str, Any], name: str) -> str:
    """Return a field's text; empty where it is missing.

    Raises:
        TypeError: it is no text.
    """
    text = fields.get(name) or ""
    if not isinstance(text, str):
        raise TypeError(f"{name} is no text")
    return text
