"""One response of a session: what it was asked to be, and what it says.

Its settings are the session's, where `response.create` does not say otherwise. It answers the conversation,
or the items that it was given for itself; with `conversation: none` it leaves no trace there.

Source: the Realtime reference (`response.create`, `RealtimeResponse`). Cached input tokens are not stated
anywhere in detail: those of the last response's input count, in whole blocks of 64.
"""

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audiobatch_emulator.answers import answer, shortened
from audiobatch_emulator.checks import check_metadata, object_, text
from audiobatch_emulator.composing import REFUSAL
from audiobatch_emulator.encode import BYTES_PER_SECOND
from audiobatch_emulator.realtime_audio import FORMATS, SocketFormat
from audiobatch_emulator.realtime_checks import (
    MOST_OUTPUT_TOKENS,
    check_format,
    check_max_tokens,
    check_modalities,
    check_voice,
)
from audiobatch_emulator.realtime_items import Item, as_heard
from audiobatch_emulator.realtime_session import Session
from audiobatch_emulator.request_errors import invalid, invalid_value
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.tokens import (
    AUDIO_OUT_PER_S,
    TokenCounts,
    audio_out_tokens,
    prompt_text_tokens,
    reply_text_tokens,
)

CACHE_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A response's settings. `items` is what it answers; `in_conversation`: it becomes part of it."""

    instructions: str
    spoken: bool
    voice: str
    audio_format: SocketFormat
    max_tokens: int | str
    in_conversation: bool
    metadata: Mapping[str, str] | None
    items: tuple[Item, ...] | None = None

    def described(self) -> dict[str, Any]:
        """Returns the settings as events show them."""
        return {
            "output_modalities": ["audio" if self.spoken else "text"],
            "max_output_tokens": self.max_tokens,
            "audio": {"output": {"format": self.audio_format.described(), "voice": self.voice}},
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a response says. `status` is that of `response.done`, `reason` its details'."""

    words: str
    pcm: bytes
    counts: TokenCounts
    status: str = "completed"
    reason: str | None = None
    spoken: bool = True


def read_response(value: object, session: Session, items: tuple[Item, ...] | None = None) -> Asked:
    """Reads the settings of a `response.create`; `items` are those of its `input`, read already.

    Raises:
        Refusal: something in it is wrong.
    """
    given = {} if value is None else value
    object_(given, "response")
    assert isinstance(given, dict)
    settings = session.settings
    output = dict(settings["audio"]["output"])
    found: dict[str, Any] = {
        "instructions": settings["instructions"],
        "output_modalities": settings["output_modalities"],
        "max_output_tokens": settings["max_output_tokens"],
        "conversation": "auto",
        "metadata": None,
    }
    for name, item in given.items():
        param = f"response.{name}"
        match name:
            case "instructions":
                text(item, param)
            case "output_modalities":
                check_modalities(item, param)
            case "max_output_tokens":
                check_max_tokens(item, param)
            case "conversation" if item not in ("auto", "none"):
                raise invalid_value(item, ("auto", "none"), param)
            case "metadata" if item is not None:
                check_metadata(item, param)
            case "audio":
                _read_output(item, output, param)
            case "conversation" | "metadata" | "input" | "tools" | "tool_choice" | "prompt" | "reasoning":
                pass
            case _:
                raise invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
        found[name] = item
    voice = output["voice"]
    return Asked(
        instructions=found["instructions"],
        spoken=found["output_modalities"] == ["audio"],
        voice=voice["id"] if isinstance(voice, dict) else voice.lower(),
        audio_format=FORMATS[output["format"]["type"]],
        max_tokens=found["max_output_tokens"],
        in_conversation=found["conversation"] == "auto",
        metadata=found["metadata"],
        items=items,
    )


def _read_output(value: object, output: dict[str, Any], param: str) -> None:
    object_(value, param)
    assert isinstance(value, dict)
    given = value.get("output", {})
    object_(given, f"{param}.output")
    for name, item in given.items():
        if name == "voice":
            check_voice(item, f"{param}.output.voice")
        elif name == "format":
            check_format(item, f"{param}.output.format")
        else:
            raise invalid(
                f"Unknown parameter: '{param}.output.{name}'.",
                f"{param}.output.{name}",
                "unknown_parameter",
            )
        output[name] = item


def input_counts(items: list[Item], instructions: str) -> TokenCounts:
    """Returns what the conversation costs as input."""
    pairs = [item.input_tokens() for item in items]
    return TokenCounts(
        input_text=prompt_text_tokens([instructions], messages=len(items) + 1) + sum(t for t, _ in pairs),
        input_audio=sum(audio for _, audio in pairs),
    )


async def say(service: Service, call: Call, asked: Asked, items: list[Item]) -> Said:
    """Returns the answer, and its audio (s16le at 24 kHz; empty where none was asked for).

    Raises:
        EngineCrashed: an engine failed on it.
    """
    counts = input_counts(items, asked.instructions)
    asked_for = "\n".join([asked.instructions, *(part.text or "" for item in items for part in item.parts)])
    nothing = Said(words="", pcm=b"", counts=counts, spoken=asked.spoken)
    if service.config.block_prompt_word in asked_for:
        return dataclasses.replace(nothing, status="failed", reason="content_filter")
    if service.config.block_reply_word in asked_for:
        return dataclasses.replace(nothing, status="incomplete", reason="content_filter")
    refused = service.config.refuse_word in asked_for
    words = REFUSAL if refused else answer(await as_heard(items, asked.instructions))
    most = MOST_OUTPUT_TOKENS if asked.max_tokens == "inf" else int(asked.max_tokens)
    spoken = asked.spoken and call.fault.do.corrupt != "text_only"
    text_count = reply_text_tokens(words, spoken=spoken)
    pcm = b""
    if spoken:
        pcm = base64.b64decode((await service.voicing.voice(words, asked.voice, "pcm16")).data)
        if call.fault.do.corrupt == "silent":
            pcm = bytes(len(pcm))
    audio_count = audio_out_tokens(len(pcm) / BYTES_PER_SECOND)
    status, reason = "completed", None
    if text_count + audio_count > most:
        share = most / (text_count + audio_count)
        status, reason = "incomplete", "max_output_tokens"
        words, text_count = shortened(words, share), int(text_count * share)
        audio_count = most - text_count if spoken else 0
        pcm = pcm[: 2 * round(audio_count / AUDIO_OUT_PER_S * BYTES_PER_SECOND / 2)]
    counts = dataclasses.replace(counts, output_text=text_count, output_audio=audio_count)
    return Said(words=words, pcm=pcm, counts=counts, status=status, reason=reason, spoken=spoken)


def usage(counts: TokenCounts, *, cached: int) -> dict[str, Any]:
    """Returns the `usage` of a `response.done`; `cached` of the input tokens were cached, text first."""
    into, out = (
        counts.input_text + counts.input_audio,
        counts.output_text + counts.output_audio,
    )
    cached = min(cached, into) // CACHE_BLOCK * CACHE_BLOCK
    cached_text = min(cached, counts.input_text)
    return {
        "total_tokens": into + out,
        "input_tokens": into,
        "output_tokens": out,
        "input_token_details": {
            "text_tokens": counts.input_text,
            "audio_tokens": counts.input_audio,
            "image_tokens": 0,
            "cached_tokens": cached,
            "cached_tokens_details": {
                "text_tokens": cached_text,
                "audio_tokens": cached - cached_text,
                "image_tokens": 0,
            },
        },
        "output_token_details": {
            "text_tokens": counts.output_text,
            "audio_tokens": counts.output_audio,
        },
    }


def details_of(said: Said) -> dict[str, Any] | None:
    """Returns the `status_details` of a response that said this."""
    if said.status == "failed":
        message = "The response was filtered due to the prompt triggering the content management policy."
        error = {
            "type": "invalid_request_error",
            "code": said.reason,
            "message": message,
        }
        return {"type": "failed", "error": error}
    return None if said.status == "completed" else {"type": said.status, "reason": said.reason}
