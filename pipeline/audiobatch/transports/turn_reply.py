"""The reply of a Realtime turn as its events bring it, and the judgement at its end.

Only a response that is `completed`, or `incomplete` with something in it, is a reply.

Source: the Realtime reference (`response.done`, `RealtimeResponseStatus`), checked 2026-11-20.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pybase64

from audiobatch.errors import BadReply, ContentFiltered, OutcomeUnknown
from audiobatch.transports.realtime_errors import of_error, waits_s

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class TurnReply:
    """What a turn brought.

    Attributes:
        pcm: 16 bits, one channel, 24 kHz.
        response: of `response.done`: id, status, usage.
        heard: the user's audio by its item's id, as it was written down.
        heard_usage: by the same, what that took, as the service says it; None: it did not say.
        limits: the last `rate_limits.updated`.
    """

    transcript: str = ""
    text: str = ""
    pcm: bytearray = field(default_factory=bytearray)
    response: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str = ""
    heard: dict[str, str] = field(default_factory=dict)
    heard_usage: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    limits: list[Any] = field(default_factory=list)

    @property
    def input_transcript(self) -> str:
        return " ".join(part.strip() for part in self.heard.values() if part.strip())

    @property
    def begun(self) -> bool:
        return bool(self.pcm or self.transcript or self.text)

    def take(self, kind: str, event: Mapping[str, Any]) -> None:
        """A delta.

        Raises:
            BadReply: its audio is broken base64.
        """
        match kind:
            case "response.output_audio.delta":
                try:
                    self.pcm += pybase64.b64decode(event["delta"], validate=True)
                except (binascii.Error, KeyError, TypeError, ValueError) as failed:
                    raise BadReply(f"the reply's audio is broken base64: {failed}") from failed
            case "response.output_audio_transcript.delta":
                self.transcript += str(event.get("delta") or "")
            case "response.output_text.delta":
                self.text += str(event.get("delta") or "")
            case _:
                pass

    def finish(self, response: Mapping[str, Any], *, wants_audio: bool) -> None:
        """`response.done`.

        Raises:
            ServiceError: it is not completed, or brought nothing of what was asked for.
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
                if not self.begun:
                    raise ContentFiltered("the reply was taken by the content filter", code="content_filter")
            case "failed" if not self.begun:
                error = details.get("error")
                raise of_error(error if isinstance(error, dict) else {}, wait_s=waits_s(self.limits))
            case "failed":
                error = details.get("error")
                said = error.get("message") if isinstance(error, dict) else None
                raise OutcomeUnknown(f"the service broke off in mid-reply: {said or 'no reason given'}")
            case status:
                raise BadReply(f"the response ended as {status!r} ({reason or 'no reason given'})")
        self._take_words(response)
        if wants_audio and not self.pcm and not self.text:
            raise BadReply("the response is completed, and brought neither audio nor text")
        if not wants_audio and not self.text and not self.transcript:
            raise BadReply("the response is completed, and brought no text")

    def _take_words(self, response: Mapping[str, Any]) -> None:
        """The words as `response.done` has them, which are the final ones."""
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
