"""One turn of a Realtime session as states and events. No socket, no clock, no files.

    OPENING ──session.created──▶ SETTING_UP ──all acknowledged──▶ ASKED ──response.created──▶ ANSWERING
       (a new session only)                                         └────────response.done──────┤
    DONE ◀──transcription completed or failed── TRANSCRIBING ◀──response.done, transcript due───┤
       ◀─────────────────────────────────response.done──────────────────────────────────────────┘

What the user says is sent in stages, each awaited before the next: `response.create` goes out only when all
of it is acknowledged, so that before it every failure is known to have cost nothing, and after it none is.
Unknown events are ignored, as the reference asks. A response that is not `completed`, an `error` event and an
end before `response.done` are errors.

Source: the Realtime reference (client and server events), checked 2026-11-20 against openai-python 3.51.

A `TurnReply` grows as its events come. Only a response that is `completed`, or `incomplete` with something in it,
is a reply.

Source: the Realtime reference (`response.done`, `RealtimeResponseStatus`), checked 2026-11-20.
"""

from __future__ import annotations

import binascii
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pybase64

from audiobatch.audio.convert import BYTES_A_SECOND
from audiobatch.errors import BadReply, ContentFiltered, OutcomeUnknown, RequestRejected, Unavailable
from audiobatch.transports.realtime_errors import of_error, waits_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Event = dict[str, Any]


class State(StrEnum):
    OPENING = "opening"
    SETTING_UP = "setting_up"
    ASKED = "asked"
    ANSWERING = "answering"
    TRANSCRIBING = "transcribing"
    DONE = "done"


#: From here on the service may have begun to work for money.
_BOUGHT = frozenset({State.ASKED, State.ANSWERING})
_ITEM_ACKS = ("conversation.item.added", "conversation.item.created", "conversation.item.done")
_TRANSCRIBED = "conversation.item.input_audio_transcription."


@dataclass(frozen=True, slots=True)
class Stage:
    """Events to send, and what must be acknowledged before the next stage.

    Attributes:
        events: made as they are sent, since audio is large.
        acks: `session.updated`, `input_audio_buffer.committed`, `input_audio_buffer.cleared`, or `item:<id>`.
        hears: speech must have been committed by the service's voice detection when all is acknowledged.
    """

    events: Iterable[Event]
    acks: tuple[str, ...]
    hears: bool = False


class RealtimeTurn:
    """Feed it what the service sends; send what it gives back.

    Args:
        stages: what the user says.
        ask: the `response.create` event.
        wants_audio: the reply is to be spoken.
        transcript_due: transcripts of the user's audio are expected, and worth a short wait.
        new_session: `session.created` comes first.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        ask: Event,
        *,
        wants_audio: bool,
        transcript_due: bool = False,
        new_session: bool = True,
    ) -> None:
        self.state = State.OPENING
        self.reply = TurnReply()
        self._stages = deque(stages)
        self._ask = ask
        self._wants_audio = wants_audio
        self._transcript_due = transcript_due
        self._new_session = new_session
        self._due: set[str] = set()
        self._hears = False
        self._commits_before = 0
        self._spoken_items: list[str] = []
        self._not_transcribed: set[str] = set()
        self._response_id: str | None = None

    def start(self) -> Iterable[Event]:
        """The first events to send; none while a new session has not said hello."""
        if self._new_session:
            return ()
        return self._next_stage()

    def receive(self, event: Mapping[str, Any]) -> Iterable[Event]:
        """Take an event of the service's; gives what to send next, to be sent whole and in order.

        Raises:
            ServiceError: the turn has failed; which class says whether it may have cost something.
        """
        kind = str(event.get("type"))
        if kind == "error":
            self._error(event)
            return ()
        match self.state:
            case State.OPENING if kind == "session.created":
                return self._next_stage()
            case State.SETTING_UP:
                return self._acknowledged(kind, event)
            case State.ASKED | State.ANSWERING:
                self._answering(kind, event)
            case _:
                pass
        if kind.startswith(_TRANSCRIBED):
            self._transcribed(kind, event)
        return ()

    def ended(self, words: str, *, timed_out: bool = False) -> None:
        """The session ended, or fell silent, before the turn was done.

        Raises:
            Unavailable: nothing was asked for yet.
            OutcomeUnknown: the response was asked for.
        """
        match self.state:
            case State.DONE:
                return
            case State.TRANSCRIBING:
                self._done_without_transcripts()
            case State.OPENING | State.SETTING_UP:
                raise Unavailable(f"{words}, before the reply was asked for")
            case _:
                got = len(self.reply.pcm) / BYTES_A_SECOND
                more = f" after {got:.1f} s of the reply" if got else ""
                raise OutcomeUnknown(f"{words}{more}, before response.done", timed_out=timed_out)

    def not_an_event(self, words: str) -> None:
        """A frame came that is no event.

        Raises:
            Unavailable, BadReply: before or after the response was asked for.
        """
        if self.state in _BOUGHT:
            raise BadReply(f"the service sent a frame that is no event: {words}")
        raise Unavailable(f"the service sent a frame that is no event: {words}")

    @property
    def safe_to_repeat(self) -> bool:
        """Nothing was asked for yet."""
        return self.state in {State.OPENING, State.SETTING_UP}

    # Setting up.

    def _next_stage(self) -> Iterable[Event]:
        if not self._stages:
            self.state = State.ASKED
            return (self._ask,)
        self.state = State.SETTING_UP
        stage = self._stages.popleft()
        self._due = set(stage.acks)
        self._hears = stage.hears
        self._commits_before = len(self._spoken_items)
        return stage.events

    def _acknowledged(self, kind: str, event: Mapping[str, Any]) -> Iterable[Event]:
        if kind.startswith(_TRANSCRIBED):
            self._transcribed(kind, event)
            return ()
        if kind in _ITEM_ACKS:
            item = event.get("item")
            self._due.discard(f"item:{item.get('id')}" if isinstance(item, dict) else "")
        elif kind == "input_audio_buffer.committed":
            item_id = str(event.get("item_id"))
            self._spoken_items.append(item_id)
            self._not_transcribed.add(item_id)
            self.reply.heard[item_id] = ""
            self._due.discard(kind)
        else:
            self._due.discard(kind)
        if self._due:
            return ()
        if self._hears and len(self._spoken_items) == self._commits_before:
            raise RequestRejected("the service's voice detection found no speech in the recording")
        return self._next_stage()

    # The reply.

    def _answering(self, kind: str, event: Mapping[str, Any]) -> None:
        response = event.get("response")
        if kind == "response.created" and isinstance(response, dict) and self._response_id is None:
            self._response_id = response.get("id")
            self.state = State.ANSWERING
            return
        if kind == "rate_limits.updated":
            found = event.get("rate_limits")
            self.reply.limits = found if isinstance(found, list) else []
            return
        about = event.get("response_id") or (response.get("id") if isinstance(response, dict) else None)
        if about is not None and self._response_id not in (None, about):
            return
        if kind == "response.done":
            self._finished(response if isinstance(response, dict) else {})
        else:
            self.reply.take(kind, event)

    def _finished(self, response: Mapping[str, Any]) -> None:
        self.reply.finish(response, wants_audio=self._wants_audio)
        waits = self._transcript_due and bool(self._not_transcribed)
        self.state = State.TRANSCRIBING if waits else State.DONE

    def _transcribed(self, kind: str, event: Mapping[str, Any]) -> None:
        item, what = str(event.get("item_id")), kind.removeprefix(_TRANSCRIBED)
        if item not in self.reply.heard:
            return  # of an earlier turn of this session, which did not wait for it
        if what == "completed":
            self.reply.heard[item] = str(event.get("transcript") or "")
            billed = event.get("usage")
            self.reply.heard_usage[item] = billed if isinstance(billed, dict) else None
        if what in {"completed", "failed"}:
            self._not_transcribed.discard(item)
        if self.state is State.TRANSCRIBING and not self._not_transcribed:
            self.state = State.DONE

    def _done_without_transcripts(self) -> None:
        """The reply is whole, and the transcript of the input is a courtesy; what it took is not known."""
        self.reply.heard_usage |= dict.fromkeys(self._not_transcribed)
        self.state = State.DONE

    def _error(self, event: Mapping[str, Any]) -> None:
        found = event.get("error")
        error = found if isinstance(found, dict) else {}
        if self.state in {State.TRANSCRIBING, State.DONE}:
            self._done_without_transcripts()
            return
        translated = of_error(error, wait_s=waits_s(self.reply.limits))
        session_over = error.get("code") == "session_expired"
        if self.state is State.ANSWERING or (self.state is State.ASKED and session_over):
            raise OutcomeUnknown(f"the service broke off in mid-reply: {translated.message}")
        if session_over:
            raise Unavailable(translated.message)
        raise translated


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
