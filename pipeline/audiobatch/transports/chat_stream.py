"""A chat completion as a stream of server-sent events, put together again.

Streams give bare samples only (pcm16), whatever the job wants: they are encoded at the end. Chunks may come
without choices (Azure's first one, the last one with the usage); the order of transcript and data is not
relied on. A stream without a `finish_reason` is no reply, however orderly it ends.

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
from audiobatch.transports.lenient_json import loads
from audiobatch.transports.realtime_errors import of_error
from audiobatch.transports.reply_fields import seconds_of, word_of
from audiobatch.transports.reply_memory import timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from audiobatch.transports.base import Sink

_DONE = b"[DONE]"


def as_stream(body: dict[str, Any]) -> dict[str, Any]:
    """The same request, its reply to be streamed."""
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    if "audio" in body:
        streamed["audio"] = body["audio"] | {"format": "pcm16"}
    return streamed


@dataclass(slots=True)
class StreamedReply:
    """What the chunks bring.

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

    def take(self, chunk: dict[str, Any]) -> None:
        """One chunk.

        Raises:
            BadReply: its audio is broken base64.
            OutcomeUnknown, ContentFiltered: it is an error.
        """
        if isinstance(chunk.get("error"), dict):
            raise self._error(chunk["error"])
        self.model = word_of(chunk.get("model")) or self.model
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self.finish_reason = word_of(choice.get("finish_reason")) or self.finish_reason
            self.text += delta.get("content") or ""
            self.refusal += delta.get("refusal") or ""
            sound = delta.get("audio")
            if isinstance(sound, dict):
                self.has_audio = True
                self.audio_id = word_of(sound.get("id")) or self.audio_id
                self.audio_expires_at = seconds_of(sound.get("expires_at")) or self.audio_expires_at
                self.transcript += sound.get("transcript") or ""
                try:
                    self.pcm += pybase64.b64decode(sound.get("data") or "", validate=True)
                except binascii.Error as failed:
                    raise BadReply(f"the reply's audio is broken base64: {failed}") from failed

    def _error(self, error: dict[str, Any]) -> Exception:
        translated = of_error(error)
        if isinstance(translated, ContentFiltered):
            return translated
        if isinstance(translated, RequestRejected) and not (self.pcm or self.text):
            return translated
        return OutcomeUnknown(f"the service broke off in mid-reply: {translated.message}")


async def read_stream(pieces: AsyncIterator[bytes], sink: Sink | None, *, quiet_s: float) -> StreamedReply:
    """The whole reply.

    Args:
        pieces: the body as it comes.
        sink: gets the same bytes.
        quiet_s: so long may nothing come.

    Raises:
        BadReply: it is no stream of events, or an event is broken.
        OutcomeUnknown: it ended, or fell silent, before its `finish_reason`.
    """
    reply = StreamedReply()
    rest = bytearray()
    any_event = done = False
    while not done:
        try:
            async with timing(quiet_s):
                piece = await anext(pieces, None)
        except TimeoutError as late:
            raise OutcomeUnknown(f"the stream was silent for {quiet_s:.0f} s", timed_out=True) from late
        if piece is None:
            break
        if sink is not None:
            await sink.write(piece)
        first, *others = piece.split(b"\n")
        rest += first
        lines = [bytes(rest), *others[:-1]] if others else []
        rest = bytearray(others[-1]) if others else rest
        for line in lines:
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
                    chunk, repaired = _chunk(data)
                    reply.repaired = reply.repaired or repaired
                    reply.take(chunk)
    if not any_event:
        raise BadReply(f"the reply is no stream of events: {bytes(rest[:80])!r}")
    if not reply.finish_reason:
        raise OutcomeUnknown("the stream ended without a finish_reason")
    return reply


def _chunk(data: bytes) -> tuple[dict[str, Any], bool]:
    try:
        chunk, repaired = loads(data)
    except (ValueError, RecursionError) as failed:
        raise BadReply(f"an event of the stream is no JSON: {failed}") from failed
    if not isinstance(chunk, dict):
        raise BadReply("an event of the stream is no object")
    return chunk, repaired
