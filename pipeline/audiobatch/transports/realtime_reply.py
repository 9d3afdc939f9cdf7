"""Collect what a Realtime turn brings, and make a Reply of it: encoded, counted, its limits under HTTP's names.

Source: the Realtime reference (`response.done`, `RealtimeResponseStatus`), checked 2026-11-20.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pybase64

from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S
from audiobatch.errors import BadReply, ContentFiltered, OutcomeUnknown
from audiobatch.model import Reply, Usage
from audiobatch.transports.error_mapping import from_error_object, reset_wait_s
from audiobatch.transports.reply_content import (
    EVENT_NAMES,
    encode_samples,
    seconds_of,
    token_count,
    usage_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.model import Request


@dataclass(slots=True)
class TurnReply:
    """What a turn has brought so far. It grows with the turn's events.

    Only a response that is `completed`, or `incomplete` with content, is a reply.

    Attributes:
        pcm: 16 bits, one channel, 24 kHz.
        response: id, status and usage, from `response.done`.
        input_transcripts: transcripts of the user's audio by the ids of its items.
        input_usages: what transcribing them took, by the same ids; None: the service did not say.
        limits: the last `rate_limits.updated`.
    """

    transcript: str = ""
    text: str = ""
    pcm: bytearray = field(default_factory=bytearray)
    response: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str = ""
    input_transcripts: dict[str, str] = field(default_factory=dict)
    input_usages: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    limits: list[Any] = field(default_factory=list)

    @property
    def input_transcript(self) -> str:
        """The transcript of all of the user's audio."""
        return " ".join(part.strip() for part in self.input_transcripts.values() if part.strip())

    @property
    def has_content(self) -> bool:
        """Whether any of the reply has arrived."""
        return bool(self.pcm or self.transcript or self.text)

    def add(self, kind: str, event: Mapping[str, Any]) -> None:
        """Add a delta.

        Raises:
            BadReply: its audio is broken base64.
        """
        match kind:
            case "response.output_audio.delta":
                try:
                    self.pcm += pybase64.b64decode(event["delta"], validate=True)
                except (binascii.Error, KeyError, TypeError, ValueError) as error:
                    raise BadReply(f"the reply's audio is broken base64: {error}") from error
            case "response.output_audio_transcript.delta":
                self.transcript += str(event.get("delta") or "")
            case "response.output_text.delta":
                self.text += str(event.get("delta") or "")
            case _:
                pass

    def finish(self, response: Mapping[str, Any], *, wants_audio: bool) -> None:
        """Add `response.done`.

        Raises:
            ServiceError: the response is not completed, or lacks what was asked for.
        """
        self.response = response
        details = response.get("status_details")
        details = details if isinstance(details, dict) else {}
        reason = str(details.get("reason") or "")
        match response.get("status"):
            case "completed":
                self.finish_reason = "stop"
            case "incomplete" if reason == "max_output_tokens":
                self.finish_reason = "length"
            case "incomplete" if reason == "content_filter":
                self.finish_reason = "content_filter"
                if not self.has_content:
                    raise ContentFiltered("the reply was taken by the content filter", code="content_filter")
            case "failed" if not self.has_content:
                error = details.get("error")
                fields = error if isinstance(error, dict) else {}
                raise from_error_object(fields, wait_s=reset_wait_s(self.limits))
            case "failed":
                error = details.get("error")
                message = error.get("message") if isinstance(error, dict) else None
                raise OutcomeUnknown(f"the service broke off in mid-reply: {message or 'no reason given'}")
            case status:
                raise BadReply(f"the response ended as {status!r} ({reason or 'no reason given'})")
        self._take_final_text(response)
        if wants_audio and not self.pcm and not self.text:
            raise BadReply("the response is completed, and brought neither audio nor text")
        if not wants_audio and not self.text and not self.transcript:
            raise BadReply("the response is completed, and brought no text")

    def _take_final_text(self, response: Mapping[str, Any]) -> None:
        """Take transcript and text from `response.done`, where they are final."""
        output = response.get("output")
        parts = [
            part
            for item in (output if isinstance(output, list) else [])
            if isinstance(item, dict)
            for part in item.get("content") or ()
            if isinstance(part, dict)
        ]
        transcript = "".join(str(part.get("transcript") or "") for part in parts)
        text = "".join(str(part.get("text") or "") for part in parts)
        self.transcript = transcript or self.transcript
        self.text = text or self.text


def reply_of(request: Request, turn: TurnReply, model: str, latency_s: float) -> Reply:
    """Make a Reply of a turn, encoded in the request's format. CPU work for a thread.

    Args:
        request: what was asked.
        turn: what the turn brought.
        model: as the session names it.
        latency_s: from the call's beginning to its end, including the opening of a session.
    """
    response = turn.response
    format_ = request.format or "wav"
    audio = encode_samples(bytes(turn.pcm), format_) if request.wants_audio and turn.pcm else None
    return Reply(
        text=turn.text if audio is None else "",
        transcript=turn.transcript,
        audio=audio,
        audio_format=format_,
        audio_id=None,
        audio_expires_at=None,
        finish_reason=turn.finish_reason,
        usage=usage_of(
            response.get("usage"),
            EVENT_NAMES,
            sent_audio=request.audio is not None,
            received_audio=bool(turn.pcm),
        ),
        model=model,
        request_id=str(response.get("id") or "") or None,
        latency_s=latency_s,
        input_transcript=turn.input_transcript,
        input_usage=_input_usage(request, turn),
        limits=limits_as_headers(turn.limits),
    )


def _input_usage(request: Request, turn: TurnReply) -> Usage | None:
    """Return what transcribing the input took; by the recording's length where the service does not say."""
    if not turn.input_usages or request.audio is None:
        return None
    audio_tokens = text_tokens = 0
    for billed in turn.input_usages.values():
        counts = _transcription_tokens(billed)
        if counts is None:
            return Usage(input_audio_tokens=math.ceil(request.audio.duration_s * AUDIO_IN_TOKENS_PER_S))
        audio_tokens += counts[0]
        text_tokens += counts[1]
    return Usage(input_audio_tokens=audio_tokens, output_text_tokens=text_tokens)


def _transcription_tokens(billed: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return audio tokens in and text tokens out; None where the service does not say."""
    if billed is None:
        return None
    if billed.get("type") == "duration":
        seconds = seconds_of(billed.get("seconds") or 0)
        return None if seconds is None else (math.ceil(seconds * AUDIO_IN_TOKENS_PER_S), 0)
    audio, text = token_count(billed.get("input_tokens")), token_count(billed.get("output_tokens"))
    return None if audio is None or text is None else (audio, text)


def limits_as_headers(limits: list[Any]) -> dict[str, str]:
    """Convert `rate_limits.updated` to the headers that HTTP has for the same."""
    headers: dict[str, str] = {}
    for limit in limits:
        if isinstance(limit, dict) and limit.get("name") in {"requests", "tokens"}:
            for ours, theirs in (("limit", "limit"), ("remaining", "remaining"), ("reset", "reset_seconds")):
                if limit.get(theirs) is not None:
                    headers[f"x-ratelimit-{ours}-{limit['name']}"] = str(limit[theirs])
    return headers
