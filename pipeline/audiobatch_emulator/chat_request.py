"""Reading a chat completion request: what it asks for, or the service's refusal.

`read_request` takes the parsed body and gives a `ChatRequest`; each check raises the refusal that the
service gives, with its text, `param` and `code`. Audio is only unpacked here; decoding comes later.

Source: the Chat Completions reference (fields and ranges); for the texts, the reports named in
`service_errors.py`, and community.openai.com/t/997997, github.com/truefoundry/models/issues/822 (audio on
neither side), github.com/Agent-Field/agentfield/issues/584 (streaming takes pcm16 only).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from audiobatch_emulator.chat_audio import VOICES, read_audio, read_modalities
from audiobatch_emulator.chat_messages import Message, read_messages
from audiobatch_emulator.checks import (
    boolean,
    check_metadata,
    integer,
    missing,
    number,
    object_,
    text,
    wrong_type,
)
from audiobatch_emulator.request_errors import invalid, invalid_value
from audiobatch_emulator.surface import Surface
from audiobatch_emulator.tokens import MOST_OUT

#: The first dated version with audio. Source: MicrosoftDocs, audio-completions-intro.md.
FIRST_AUDIO_VERSION = "2025-01-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request that is right in itself."""

    messages: tuple[Message, ...]
    spoken: bool
    voice: str
    audio_format: str
    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    seed: int | None
    metadata: dict[str, str] | None
    service_tier: str | None

    @property
    def texts(self) -> list[str]:
        """Every text of every message, in order."""
        return [part for message in self.messages for part in message.texts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What the place that was asked understands."""

    surface: Surface
    api_version: str | None = None
    voices: tuple[str, ...] = VOICES
    max_audio_bytes: int = 20 * 1024 * 1024

    @property
    def knows_audio(self) -> bool:
        """False for dated versions from before audio."""
        return self.api_version is None or self.api_version >= FIRST_AUDIO_VERSION


def read_request(body: object, dialect: Dialect) -> ChatRequest:
    """Reads and checks the request.

    Raises:
        Refusal: 400, as the service would.
    """
    if not isinstance(body, dict):
        raise invalid("Invalid type for the request body: expected an object.", None, "invalid_type")
    _known_fields(body, dialect)
    for name, check in _SCALARS.items():
        if body.get(name) is not None:
            check(body[name], name)
    if "messages" not in body:
        raise missing("messages")
    spoken = read_modalities(body.get("modalities"))
    stream, include_usage = _stream(body)
    voice, audio_format = read_audio(body.get("audio"), spoken=spoken, stream=stream, voices=dialect.voices)
    _response_format(body.get("response_format"))
    messages = read_messages(
        body["messages"], knows_audio=dialect.knows_audio, max_audio_bytes=dialect.max_audio_bytes
    )
    if not spoken and not any(message.has_audio for message in messages):
        raise invalid(
            "This model requires that either input content or output modality contain audio.",
            "model",
            "invalid_value",
        )
    limit = body.get("max_completion_tokens")
    return ChatRequest(
        messages=messages,
        spoken=spoken,
        voice=voice,
        audio_format=audio_format,
        stream=stream,
        include_usage=include_usage,
        choices=body.get("n") or 1,
        max_tokens=body.get("max_tokens") if limit is None else limit,
        seed=body.get("seed"),
        metadata=body.get("metadata"),
        service_tier=body.get("service_tier"),
    )


def _text_list(value: object, param: str) -> None:
    values = value if isinstance(value, list) else [value]
    for index, item in enumerate(values):
        text(item, param if value is item else f"{param}[{index}]")
    if len(values) > 4:
        raise invalid(
            f"Invalid '{param}': array too long. Expected an array with maximum length 4, but got an array with "
            f"length {len(values)} instead.",
            param,
            "array_above_max_length",
        )


def _no_tools(value: object, param: str) -> None:
    if value not in ([], "none"):
        raise invalid(
            f"The emulator does not emulate tools: leave out '{param}'.", param, "unsupported_parameter"
        )


def _not_emulated(value: object, param: str) -> None:
    if value:
        raise invalid(f"The emulator does not emulate '{param}'.", param, "unsupported_parameter")


def _service_tier(value: object, param: str) -> None:
    tiers = ("auto", "default", "flex", "scale", "priority")
    text(value, param)
    if value not in tiers:
        raise invalid_value(value, tiers, param)


_SCALARS: dict[str, Callable[[Any, str], None]] = {
    "model": text,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "n": integer(1, 128),
    "max_tokens": integer(1, MOST_OUT),
    "max_completion_tokens": integer(1, MOST_OUT),
    "seed": integer(-(2**63), 2**63 - 1),
    "top_logprobs": integer(0, 20),
    "store": boolean,
    "stream": boolean,
    "parallel_tool_calls": boolean,
    "logprobs": _not_emulated,
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "prompt_cache_retention": text,
    "prompt_cache_options": object_,
    "moderation": object_,
    "reasoning_effort": text,
    "verbosity": text,
    "service_tier": _service_tier,
    "stop": _text_list,
    "logit_bias": object_,
    "prediction": _not_emulated,
    "web_search_options": _not_emulated,
    "metadata": check_metadata,
    "tools": _no_tools,
    "tool_choice": _no_tools,
    "functions": _no_tools,
    "function_call": _no_tools,
}
_READ_ELSEWHERE = frozenset({"messages", "modalities", "audio", "stream_options", "response_format"})


def _known_fields(body: dict[str, Any], dialect: Dialect) -> None:
    for name in body:
        unheard_of = not dialect.knows_audio and name in ("modalities", "audio")
        if unheard_of or (name not in _SCALARS and name not in _READ_ELSEWHERE):
            if dialect.surface.is_azure:
                raise invalid(f"Unrecognized request argument supplied: {name}", None, None)
            raise invalid(f"Unknown parameter: '{name}'.", name, "unknown_parameter")


def _stream(body: dict[str, Any]) -> tuple[bool, bool]:
    """Reads whether to stream, and whether with usage."""
    stream, options = bool(body.get("stream")), body.get("stream_options")
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise wrong_type("stream_options", "an object", options)
    if not stream:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options", None
        )
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation"):
            param = f"stream_options.{name}"
            raise invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
        boolean(value, f"stream_options.{name}")
    return stream, bool(options.get("include_usage"))


def _response_format(value: object) -> None:
    """Checks `response_format`: no structured outputs. Source: developers.openai.com, models/gpt-audio-1.5."""
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid_value(kind, ("json_object", "json_schema", "text"), "response_format.type")
    if kind != "text":
        raise invalid(
            f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model.",
            "response_format",
            None,
        )
