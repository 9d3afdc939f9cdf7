"""Run one turn of a Realtime session as states and events. No socket, no clock, no files.

    OPENING ──session.created──▶ SETTING_UP ──all acknowledged──▶ ASKED ──response.created──▶ ANSWERING
       (a new session only)                                         └────────response.done──────┤
    DONE ◀──transcription completed or failed── TRANSCRIBING ◀──response.done, transcript due───┤
       ◀─────────────────────────────────response.done──────────────────────────────────────────┘

The user's messages are sent in stages, each acknowledged before the next. `response.create` goes out only when all
are acknowledged: before it every failure is known to have cost nothing, after it none is. Unknown events are
ignored, as the reference asks. A response that is not `completed`, an `error` event and an end before
`response.done` are errors.

Source: the Realtime reference (client and server events), checked 2026-11-20 against openai-python 3.51.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from audiobatch.audio.convert import BYTES_A_SECOND
from audiobatch.errors import BadReply, OutcomeUnknown, RequestRejected, Unavailable
from audiobatch.transports.error_mapping import from_error_object, reset_wait_s
from audiobatch.transports.realtime_reply import TurnReply

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Event = dict[str, Any]


class State(StrEnum):
    """The states of a turn, in order."""

    OPENING = "opening"
    SETTING_UP = "setting_up"
    ASKED = "asked"
    ANSWERING = "answering"
    TRANSCRIBING = "transcribing"
    DONE = "done"


#: In these states the service may have begun billed work.
_BOUGHT = frozenset({State.ASKED, State.ANSWERING})
_ITEM_ACKS = ("conversation.item.added", "conversation.item.created", "conversation.item.done")
_TRANSCRIBED = "conversation.item.input_audio_transcription."


@dataclass(frozen=True, slots=True)
class Stage:
    """Events to send, and the acknowledgements to wait for before the next stage.

    Attributes:
        events: made when they are sent, since audio is large.
        acks: `session.updated`, `input_audio_buffer.committed`, `input_audio_buffer.cleared`, or `item:<id>`.
        expects_speech: the service's voice detection must have committed speech by the last acknowledgement.
    """

    events: Iterable[Event]
    acks: tuple[str, ...]
    expects_speech: bool = False


class RealtimeTurn:
    """The state machine of a turn: pass it the service's events, and send the events that it returns.

    Args:
        stages: the user's messages.
        response_event: the `response.create` event.
        wants_audio: ask for a spoken reply.
        transcript_due: transcripts of the user's audio are expected, and worth a short wait.
        new_session: `session.created` comes first.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        response_event: Event,
        *,
        wants_audio: bool,
        transcript_due: bool = False,
        new_session: bool = True,
    ) -> None:
        self.state = State.OPENING
        self.reply = TurnReply()
        self._stages = deque(stages)
        self._response_event = response_event
        self._wants_audio = wants_audio
        self._transcript_due = transcript_due
        self._new_session = new_session
        self._due: set[str] = set()
        self._expects_speech = False
        self._commits_before = 0
        self._spoken_items: list[str] = []
        self._not_transcribed: set[str] = set()
        self._response_id: str | None = None

    def start(self) -> Iterable[Event]:
        """Return the first events to send; none before `session.created` in a new session."""
        if self._new_session:
            return ()
        return self._next_stage()

    def receive(self, event: Mapping[str, Any]) -> Iterable[Event]:
        """Take an event of the service's; return the events to send next, all of them and in order.

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

    def ended(self, reason: str, *, timed_out: bool = False) -> None:
        """Handle a session that ended, or fell silent, before the turn was done.

        Raises:
            Unavailable: `response.create` was not sent yet.
            OutcomeUnknown: it was sent.
        """
        match self.state:
            case State.DONE:
                return
            case State.TRANSCRIBING:
                self._done_without_transcripts()
            case State.OPENING | State.SETTING_UP:
                raise Unavailable(f"{reason}, before the reply was asked for")
            case _:
                received_s = len(self.reply.pcm) / BYTES_A_SECOND
                after = f" after {received_s:.1f} s of the reply" if received_s else ""
                raise OutcomeUnknown(f"{reason}{after}, before response.done", timed_out=timed_out)

    def not_an_event(self, excerpt: str) -> None:
        """Handle a frame that is no event.

        Raises:
            Unavailable: before `response.create`.
            BadReply: after it.
        """
        if self.state in _BOUGHT:
            raise BadReply(f"the service sent a frame that is no event: {excerpt}")
        raise Unavailable(f"the service sent a frame that is no event: {excerpt}")

    @property
    def safe_to_repeat(self) -> bool:
        """Whether `response.create` was not sent yet, so that nothing was bought."""
        return self.state in {State.OPENING, State.SETTING_UP}

    # Set up.

    def _next_stage(self) -> Iterable[Event]:
        if not self._stages:
            self.state = State.ASKED
            return (self._response_event,)
        self.state = State.SETTING_UP
        stage = self._stages.popleft()
        self._due = set(stage.acks)
        self._expects_speech = stage.expects_speech
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
            self.reply.input_transcripts[item_id] = ""
            self._due.discard(kind)
        else:
            self._due.discard(kind)
        if self._due:
            return ()
        if self._expects_speech and len(self._spoken_items) == self._commits_before:
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
            limits = event.get("rate_limits")
            self.reply.limits = limits if isinstance(limits, list) else []
            return
        response_id = event.get("response_id") or (response.get("id") if isinstance(response, dict) else None)
        if response_id is not None and self._response_id not in (None, response_id):
            return
        if kind == "response.done":
            self._finished(response if isinstance(response, dict) else {})
        else:
            self.reply.add(kind, event)

    def _finished(self, response: Mapping[str, Any]) -> None:
        self.reply.finish(response, wants_audio=self._wants_audio)
        is_due = self._transcript_due and bool(self._not_transcribed)
        self.state = State.TRANSCRIBING if is_due else State.DONE

    def _transcribed(self, kind: str, event: Mapping[str, Any]) -> None:
        item, result = str(event.get("item_id")), kind.removeprefix(_TRANSCRIBED)
        if item not in self.reply.input_transcripts:
            return  # it belongs to an earlier turn, which did not wait for it
        if result == "completed":
            self.reply.input_transcripts[item] = str(event.get("transcript") or "")
            billed = event.get("usage")
            self.reply.input_usages[item] = billed if isinstance(billed, dict) else None
        if result in {"completed", "failed"}:
            self._not_transcribed.discard(item)
        if self.state is State.TRANSCRIBING and not self._not_transcribed:
            self.state = State.DONE

    def _done_without_transcripts(self) -> None:
        """End the turn: its reply is complete without the input's transcript, whose usage stays unknown."""
        self.reply.input_usages |= dict.fromkeys(self._not_transcribed)
        self.state = State.DONE

    def _error(self, event: Mapping[str, Any]) -> None:
        field = event.get("error")
        error = field if isinstance(field, dict) else {}
        if self.state in {State.TRANSCRIBING, State.DONE}:
            self._done_without_transcripts()
            return
        translated = from_error_object(error, wait_s=reset_wait_s(self.reply.limits))
        session_over = error.get("code") == "session_expired"
        if self.state is State.ANSWERING or (self.state is State.ASKED and session_over):
            raise OutcomeUnknown(f"the service broke off in mid-reply: {translated.message}")
        if session_over:
            raise Unavailable(translated.message)
        raise translated
