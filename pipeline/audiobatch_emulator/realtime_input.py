"""The input audio buffer: filled by appends, emptied by commits of the client's or of the voice detector's.

What is committed becomes a user's message, is heard, and where the session asks for it is transcribed.

Source: the Realtime reference (`input_audio_buffer.*`, `conversation.item.input_audio_transcription.*`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from audiobatch_emulator.checks import missing
from audiobatch_emulator.realtime_audio import MOST_APPEND_BYTES, to_samples, unpacked
from audiobatch_emulator.realtime_events import event, new_id, token_pieces
from audiobatch_emulator.realtime_items import Hear, Item, Part, recording
from audiobatch_emulator.realtime_session import Session
from audiobatch_emulator.realtime_speaking import Line
from audiobatch_emulator.realtime_vad import Samples, SpeechStarted, SpeechStopped, VoiceDetector
from audiobatch_emulator.recognition import EngineCrashed
from audiobatch_emulator.request_errors import invalid
from audiobatch_emulator.tokens import audio_in_tokens, text_tokens

LEAST_COMMIT_MS = 100
_TRANSCRIBED = "conversation.item.input_audio_transcription"
#: How long `semantic_vad` waits; the real one looks at the words and waits up to four times as long.
_EAGERNESS_MS = {"low": 2000, "medium": 1000, "auto": 1000, "high": 500}


class InputAudio:
    """One session's buffer."""

    def __init__(
        self,
        *,
        line: Line,
        session: Session,
        hear: Hear,
        beside: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]],
        add: Callable[[Item], Awaitable[None]],
        interrupt: Callable[[], None],
        respond: Callable[[], Awaitable[None]],
    ) -> None:
        """`add` announces a committed message; the detector calls `interrupt` and `respond`."""
        self._line = line
        self._session = session
        self._hear = hear
        self._beside = beside
        self._add = add
        self._interrupt = interrupt
        self._respond = respond
        self._made_for = (session.turn_detection, session.input_format)
        self._detector = self._new_detector()
        self._item_id = ""

    def settings_changed(self) -> None:
        """Drops what is held under other settings, after an update."""
        if self._made_for != (self._session.turn_detection, self._session.input_format):
            self._made_for = (self._session.turn_detection, self._session.input_format)
            self._detector = self._new_detector()

    async def append(self, message: dict[str, Any]) -> None:
        """Adds more audio; not acknowledged."""
        if "audio" not in message:
            raise missing("audio")
        data = unpacked(message["audio"], "audio")
        if len(data) > MOST_APPEND_BYTES:
            raise invalid(
                "The audio of one event must not be more than 15 MiB.",
                "audio",
                "invalid_value",
            )
        for noticed in self._detector.add(to_samples(data, self._session.input_format)):
            if self._session.turn_detection is not None:
                await self._notice(noticed, self._session.turn_detection)

    async def _notice(self, noticed: SpeechStarted | SpeechStopped, settings: Any) -> None:
        if isinstance(noticed, SpeechStarted):
            self._item_id = new_id("item")
            place = {"audio_start_ms": noticed.at_ms, "item_id": self._item_id}
            await self._line.send(event("input_audio_buffer.speech_started", **place))
            if settings["interrupt_response"]:
                self._interrupt()
            return
        place = {"audio_end_ms": noticed.at_ms, "item_id": self._item_id}
        await self._line.send(event("input_audio_buffer.speech_stopped", **place))
        await self._commit(noticed.samples, self._item_id)
        if settings["create_response"]:
            await self._respond()

    async def commit(self, _message: dict[str, Any]) -> None:
        """Commits the audio by hand."""
        held_ms = 1000 * self._detector.held / self._session.input_format.rate_hz
        if held_ms < LEAST_COMMIT_MS:
            raise invalid(
                f"Error committing input audio buffer: buffer too small. Expected at least {LEAST_COMMIT_MS}ms of "
                f"audio, but buffer only has {held_ms:.2f}ms of audio.",
                None,
                "input_audio_buffer_commit_empty",
            )
        await self._commit(self._detector.take(), new_id("item"))

    async def clear(self, _message: dict[str, Any]) -> None:
        """Clears the audio by hand."""
        self._detector.clear()
        await self._line.send(event("input_audio_buffer.cleared"))

    async def _commit(self, samples: Samples, item_id: str) -> None:
        part = recording(samples, self._session.input_format.rate_hz, self._hear)
        item = Item(id=item_id, role="user", parts=[part])
        await self._add(item)
        transcription = self._session.input["transcription"]
        if transcription is not None:
            _ = self._beside(self._transcribe(item, part, str(transcription.get("model") or "whisper-1")))

    async def _transcribe(self, item: Item, part: Part, model: str) -> None:
        """Sends what was heard. The whisper models are billed by length, the others by tokens."""
        assert part.hearing is not None
        place = {"item_id": item.id, "content_index": 0}
        try:
            words = (await part.hearing).text
        except EngineCrashed:
            error = {
                "type": "transcription_error",
                "code": "audio_unintelligible",
                "param": None,
            }
            error |= {"message": "Input transcription failed for item."}
            await self._line.send(event(f"{_TRANSCRIBED}.failed", **place, error=error))
            return
        pieces = [words] if model.startswith("whisper") else token_pieces(words)
        for piece in filter(None, pieces):
            await self._line.send(event(f"{_TRANSCRIBED}.delta", **place, delta=piece))
        billed: dict[str, Any] = {
            "type": "duration",
            "seconds": round(part.duration_s, 2),
        }
        if not model.startswith("whisper"):
            into, out = audio_in_tokens(part.duration_s), text_tokens(words)
            billed = {
                "type": "tokens",
                "total_tokens": into + out,
                "input_tokens": into,
                "input_token_details": {"text_tokens": 0, "audio_tokens": into},
                "output_tokens": out,
            }
        await self._line.send(event(f"{_TRANSCRIBED}.completed", **place, transcript=words, usage=billed))

    def _new_detector(self) -> VoiceDetector:
        rate_hz, settings = (
            self._session.input_format.rate_hz,
            self._session.turn_detection,
        )
        if settings is None:
            return VoiceDetector(rate_hz, threshold=None, prefix_padding_ms=0, silence_ms=0)
        if settings["type"] == "semantic_vad":
            silence_ms = _EAGERNESS_MS[settings["eagerness"]]
            return VoiceDetector(rate_hz, threshold=0.5, prefix_padding_ms=300, silence_ms=silence_ms)
        return VoiceDetector(
            rate_hz,
            threshold=settings["threshold"],
            prefix_padding_ms=settings["prefix_padding_ms"],
            silence_ms=settings["silence_duration_ms"],
        )
