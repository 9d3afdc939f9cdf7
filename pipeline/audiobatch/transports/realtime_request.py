"""Make the events of a request in a Realtime session: settings, the user's text and audio, `response.create`.

`temperature` and `seed` do not exist here. A request cannot ask for both text and audio; spoken replies have a
transcript anyway. Without a system prompt the service's own default instructions apply.

Source: the Realtime reference (`session.update`, `conversation.item.create`, `response.create`); audio of one
`input_audio_buffer.append` is at most 15 MiB. Checked 2026-11-20.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pybase64

from audiobatch.audio.convert import silence
from audiobatch.transports.realtime_protocol import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch.model import Request

#: 5.5 s of audio an event: far below the 15 MiB, so that other events do not wait long for it.
CHUNK_BYTES = 262_144
PCM = {"type": "audio/pcm", "rate": 24_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAudioSettings:
    """How the service treats recordings.

    Attributes:
        transcription_model: transcribes the input; None: there is no transcript, and none is billed.
        voice_detection: the service finds the speech in a recording and drops the silence around it, which is
            then not billed; else the whole recording is one message.
        threshold: sensitivity of the voice detection, 0 to 1.
        prefix_padding_ms: audio that counts as speech before its detected start.
        silence_ms: silence that ends an utterance.
    """

    transcription_model: str | None = None
    voice_detection: bool = False
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_ms: int = 500

    def turn_detection(self) -> dict[str, Any] | None:
        """Return the session's `turn_detection`, without responses of its own: a pause does not end a turn."""
        if not self.voice_detection:
            return None
        return {
            "type": "server_vad",
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_ms,
            "create_response": False,
            "interrupt_response": False,
        }


@dataclass(frozen=True, slots=True)
class Utterance:
    """A message: the user's, with text or audio or both, or an earlier reply's text."""

    text: str = ""
    pcm: bytes = b""
    is_reply: bool = False


def session_of(request: Request, input_audio: InputAudioSettings) -> dict[str, Any]:
    """Return the `session` of `session.update`."""
    transcription = {"model": input_audio.transcription_model} if input_audio.transcription_model else None
    session: dict[str, Any] = {
        "type": "realtime",
        "output_modalities": ["audio" if request.wants_audio else "text"],
        "audio": {
            "input": {
                "format": PCM,
                "transcription": transcription if request.audio is not None else None,
                "turn_detection": input_audio.turn_detection(),
            },
            "output": {"format": PCM},
        },
    }
    if request.voice:
        session["audio"]["output"]["voice"] = request.voice
    if request.system:
        session["instructions"] = request.system
    return session


def stages_of(
    utterances: list[Utterance], input_audio: InputAudioSettings, *, session: dict[str, Any] | None
) -> list[Stage]:
    """Return what to send before `response.create`.

    It is one stage where the client delimits messages. Where the service detects speech, each recording is a stage:
    an acknowledged `clear` marks its end, after a silence long enough to end the last word.

    Args:
        session: settings to send first; None where the session has them.
    """
    opening = [{"type": "session.update", "session": session}] if session is not None else []
    acks: list[str] = ["session.updated"] if session is not None else []
    stages: list[Stage] = []
    events: list[Any] = [*opening]
    commits = 0
    for utterance in utterances:
        if utterance.text:
            item_id = "item_" + secrets.token_hex(10)
            events.append(_message(utterance, item_id))
            acks.append(f"item:{item_id}")
        if utterance.pcm and input_audio.voice_detection:
            stages.append(Stage(_flat(events), tuple(acks)))
            lead_s = input_audio.silence_ms / 1000 + 0.5
            audio = [_Audio(utterance.pcm + silence(lead_s)), {"type": "input_audio_buffer.clear"}]
            stages.append(Stage(_flat(audio), ("input_audio_buffer.cleared",), expects_speech=True))
            events, acks = [], []
        elif utterance.pcm:
            # One commit a stage: acknowledgements of commits do not carry our ids.
            if commits:
                stages.append(Stage(_flat(events), tuple(acks)))
                events, acks = [], []
            events += [_Audio(utterance.pcm), {"type": "input_audio_buffer.commit"}]
            acks.append("input_audio_buffer.committed")
            commits += 1
    stages.append(Stage(_flat(events), tuple(acks)))
    return [stage for stage in stages if stage.acks]


def response_event(request: Request) -> dict[str, Any]:
    """Return the `response.create` event."""
    response: dict[str, Any] = {"output_modalities": ["audio" if request.wants_audio else "text"]}
    if request.max_completion_tokens is not None:
        response["max_output_tokens"] = request.max_completion_tokens
    return {"type": "response.create", "event_id": "ask_" + secrets.token_hex(8), "response": response}


@dataclass(frozen=True, slots=True)
class _Audio:
    pcm: bytes


def _flat(events: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the events; audio is cut and encoded only when it is sent."""
    for event in events:
        if not isinstance(event, _Audio):
            yield event
            continue
        for start in range(0, len(event.pcm), CHUNK_BYTES):
            data = pybase64.b64encode_as_string(event.pcm[start : start + CHUNK_BYTES])
            yield {"type": "input_audio_buffer.append", "audio": data}


def _message(utterance: Utterance, item_id: str) -> dict[str, Any]:
    kind = "output_text" if utterance.is_reply else "input_text"
    return {
        "type": "conversation.item.create",
        "item": {
            "id": item_id,
            "type": "message",
            "role": "assistant" if utterance.is_reply else "user",
            "content": [{"type": kind, "text": utterance.text}],
        },
    }
