"""Reading the messages of a chat completion request: roles, texts, recordings, earlier replies by id."""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from audiobatch_emulator.checks import kind_of, missing, wrong_type
from audiobatch_emulator.request_errors import (
    invalid,
    invalid_value,
    undecodable_audio,
    wrong_audio_format,
)
from audiobatch_emulator.service_errors import Refusal

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
INPUT_FORMATS = ("wav", "mp3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: `parts` are texts and recordings in order, `audio_id` an earlier reply of ours."""

    role: str
    parts: tuple[str | bytes, ...]
    audio_id: str | None = None

    @property
    def texts(self) -> list[str]:
        """The texts among the parts."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def recordings(self) -> list[bytes]:
        """The recordings among the parts, as they came: a WAV or MP3 file each."""
        return [part for part in self.parts if isinstance(part, bytes)]

    @property
    def has_audio(self) -> bool:
        """True for a recording and for a spoken earlier reply alike."""
        return self.audio_id is not None or bool(self.recordings)


def read_messages(value: object, *, knows_audio: bool, max_audio_bytes: int) -> tuple[Message, ...]:
    """Reads and checks the messages.

    Raises:
        Refusal: 400, as the service would.
    """
    if not isinstance(value, list):
        raise wrong_type("messages", "an array of objects", value)
    if not value:
        raise invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            "messages",
            "empty_array",
        )
    reader = _Reader(knows_audio=knows_audio, max_audio_bytes=max_audio_bytes)
    return tuple(reader.message(item, f"messages[{index}]") for index, item in enumerate(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    knows_audio: bool
    max_audio_bytes: int

    def message(self, value: object, at: str) -> Message:
        """Reads one message."""
        if not isinstance(value, dict):
            raise wrong_type(at, "an object", value)
        role = value.get("role")
        if role is None:
            raise missing(f"{at}.role")
        if role not in ROLES:
            raise invalid_value(role, ROLES, f"{at}.role")
        if role in ("tool", "function") or value.get("tool_calls") or value.get("function_call"):
            raise invalid("The emulator does not emulate tools.", f"{at}.role", "unsupported_parameter")
        audio_id = self._audio_id(value.get("audio"), at) if role == "assistant" else None
        content = value.get("content")
        parts: tuple[str | bytes, ...]
        if content is None:
            parts = self._without_content(value, role, audio_id, at)
        elif isinstance(content, str):
            parts = (content,)
        elif isinstance(content, list):
            parts = tuple(self._part(part, f"{at}.content[{i}]", role) for i, part in enumerate(content))
        else:
            raise invalid(
                f"Invalid type for '{at}.content': expected one of a string or array of objects, but got "
                f"{kind_of(content)} instead.",
                f"{at}.content",
                "invalid_type",
            )
        return Message(role=role, parts=parts, audio_id=audio_id)

    @staticmethod
    def _without_content(value: dict[str, Any], role: str, audio_id: str | None, at: str) -> tuple[str, ...]:
        """Return the parts of an assistant's message without content: its refusal, or none beside its audio."""
        if role == "assistant" and isinstance(value.get("refusal"), str):
            return (value["refusal"],)
        if role != "assistant" or audio_id is None:
            raise invalid("Invalid value for 'content': expected a string, got null.", f"{at}.content", None)
        return ()

    @staticmethod
    def _audio_id(value: object, at: str) -> str | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise wrong_type(f"{at}.audio", "an object", value)
        audio_id = value.get("id")
        if audio_id is None:
            raise missing(f"{at}.audio.id")
        if not isinstance(audio_id, str):
            raise wrong_type(f"{at}.audio.id", "a string", audio_id)
        return audio_id

    def _part(self, value: object, at: str, role: str) -> str | bytes:
        if not isinstance(value, dict):
            raise wrong_type(at, "an object", value)
        kind = value.get("type")
        if kind is None:
            raise missing(f"{at}.type")
        text_field = "refusal" if kind == "refusal" and role == "assistant" else "text"
        if kind in ("text", text_field):
            if text_field not in value:
                raise missing(f"{at}.{text_field}")
            if not isinstance(value[text_field], str):
                raise wrong_type(f"{at}.{text_field}", "a string", value[text_field])
            return str(value[text_field])
        if kind == "input_audio" and role == "user" and self.knows_audio:
            return self._recording(value.get("input_audio"), f"{at}.input_audio")
        if kind in ("image_url", "file") and role == "user":
            raise invalid(
                f"Invalid content type. {kind} is only supported by certain models.", f"{at}.type", None
            )
        raise invalid_value(kind, _parts_of(role, knows_audio=self.knows_audio), f"{at}.type")

    def _recording(self, value: object, at: str) -> bytes:
        if value is None:
            raise missing(at)
        if not isinstance(value, dict):
            raise wrong_type(at, "an object", value)
        for name in ("data", "format"):
            if name not in value:
                raise missing(f"{at}.{name}")
            if not isinstance(value[name], str):
                raise wrong_type(f"{at}.{name}", "a string", value[name])
        if value["format"] not in INPUT_FORMATS:
            raise invalid_value(value["format"], INPUT_FORMATS, f"{at}.format")
        recording = _unpack(value["data"])
        if len(recording) > self.max_audio_bytes:
            raise _too_large(at, len(recording), self.max_audio_bytes)
        _check_kind(recording, value["format"])
        return recording


def _parts_of(role: str, *, knows_audio: bool) -> tuple[str, ...]:
    if role == "assistant":
        return ("text", "refusal")
    if role == "user":
        return ("text", "image_url", "input_audio") if knows_audio else ("text", "image_url")
    return ("text",)


def _unpack(data: str) -> bytes:
    """Decodes bare base64. A data URL is refused as an unknown format.

    Source: github.com/UKGovernmentBEIS/inspect_ai/pull/1512.
    """
    if data.startswith("data:"):
        raise wrong_audio_format()
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise undecodable_audio() from None


def _check_kind(recording: bytes, stated: str) -> None:
    found = container_of(recording)
    if found is not None and found != stated:
        raise wrong_audio_format()
    if found is None:
        raise undecodable_audio()


def container_of(recording: bytes) -> str | None:
    """Returns what the first bytes say the file is; None where they say nothing known."""
    head = recording[:16]
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return "wav"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 in (0xE2, 0xE4, 0xE6)):
        return "mp3"
    if head[4:8] == b"ftyp":
        return "mp4"
    marks: dict[bytes, str] = {b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff", b"\x1aE\xdf\xa3": "webm"}
    return marks.get(head[:4])


def _too_large(at: str, size_bytes: int, most_bytes: int) -> Refusal:
    """Builds the refusal of audio over 20 MB. Source of the limit: MicrosoftDocs, audio-completions-intro.md."""
    return invalid(
        f"Invalid '{at}.data': the audio is too large. The maximum size is {most_bytes} bytes, but got "
        f"{size_bytes} bytes.",
        f"{at}.data",
        "file_too_large",
    )


def all_texts(messages: object) -> str:
    """Returns every text in messages that are perhaps not valid, joined by newlines: for matching and estimates."""
    found = []
    for content in _contents(messages):
        if isinstance(content, str):
            found.append(content)
        elif isinstance(content.get("text"), str):
            found.append(content["text"])
    return "\n".join(found)


def audio_characters(messages: object) -> int:
    """Returns how many base64 characters of recordings there are in messages that are perhaps not valid."""
    total = 0
    for content in _contents(messages):
        recording = content.get("input_audio") if isinstance(content, dict) else None
        data = recording.get("data") if isinstance(recording, dict) else None
        total += len(data) if isinstance(data, str) else 0
    return total


def _contents(messages: object) -> Iterator[str | dict[str, Any]]:
    """Returns each text content and each part, of messages that are perhaps not valid."""
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))
